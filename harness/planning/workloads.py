"""Turns a recipe's ``measure`` section into workloads: looks up names, hashes files, reports errors with their line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import plugins
from harness import recipe as written
from harness.core.foreign import locate, shown
from harness.core.metric import Metric
from harness.core.workload import (
    GENERATED,
    CalibrationRef,
    Generation,
    MetricRef,
    PerplexityWorkload,
    ServingWorkload,
    Slo,
    TaskWorkload,
    TextRef,
)
from harness.errors import RecipeError, SourceError, UsageError, did_you_mean
from harness.planning.expand import checked, validate_names
from harness.recipe import Generated, Measure, Perplexity, Recipe
from harness.recipe.measure import USUAL_REQUESTS
from harness.tasks.catalog import catalog, is_own, output_types, read_names
from harness.tasks.trust import definition
from harness.text.protocols import PRESETS
from harness.text.sources import resolve

Place = tuple[str | int, ...]


def text(recipe: Recipe, wanted: written.Text, place: Place) -> TextRef:
    """The text that a key of the recipe names. Raises RecipeError if it does not exist."""
    try:
        return resolve(wanted, recipe.folder_of((*place, "file")))
    except SourceError as error:
        raise recipe.error(place, str(error)) from None


def perplexities(recipe: Recipe) -> tuple[PerplexityWorkload, ...]:
    """The texts to score, each with its protocol. Raises RecipeError for an invalid stride or a duplicate."""
    found = tuple(_perplexity(recipe, index) for index in range(len(recipe.measure.perplexity)))
    if len(set(found)) < len(found):
        raise recipe.error(("measure", "perplexity"), "scores one text twice in the same way")
    return found


def _perplexity(recipe: Recipe, index: int) -> PerplexityWorkload:
    place: Place = ("measure", "perplexity", index)
    entry = recipe.measure.perplexity[index]
    if entry.text.generated is not None:
        return _generated(recipe, entry, entry.text.generated, place)
    preset = PRESETS[entry.protocol]
    context = entry.context or preset.context
    stride = entry.stride or (context // 2 if preset.strided else None)
    if stride is not None and not preset.strided:
        raise recipe.error((*place, "stride"), f"belongs to the protocol 'sliding'; {preset.name} has its own")
    if stride is not None and stride > context:
        raise recipe.error((*place, "stride"), f"exceeds the context of {context}: some tokens would never be scored")
    scored = text(recipe, entry.text, (*place, "text"))
    return PerplexityWorkload(scored, preset.name, context, entry.windows, stride, entry.bos)


def _generated(recipe: Recipe, entry: Perplexity, wanted: Generated, place: Place) -> PerplexityWorkload:
    for key in Perplexity.model_fields.keys() & entry.model_fields_set - {"text"}:
        raise recipe.error((*place, key), "cuts a text that exists; a generated one has 'answers' and 'tokens' instead")
    prompts = text(recipe, wanted.prompts, (*place, "text", "generated", "prompts"))
    generation = Generation(wanted.seed, wanted.temperature, wanted.chat_template)
    return PerplexityWorkload(prompts, GENERATED, wanted.tokens, wanted.answers, generation=generation)


def tasks(recipe: Recipe) -> tuple[TaskWorkload, ...]:
    """The tasks of a recipe; a tag expands to its tasks. Raises RecipeError for an unknown task or a duplicate."""
    found = tuple(each for index in range(len(recipe.measure.tasks)) for each in _task(recipe, index))
    seen: set[TaskWorkload] = set()
    for each in found:
        if each in seen:
            raise recipe.error(("measure", "tasks"), f"asks {each.name!r} twice in the same way")
        seen.add(each)
    return found


def _task(recipe: Recipe, index: int) -> tuple[TaskWorkload, ...]:
    place: Place = ("measure", "tasks", index)
    entry = recipe.measure.tasks[index]
    if entry.fewshot_data is not None and entry.data is None:
        raise recipe.error((*place, "fewshot_data"), "needs 'data' beside it: both replace the task's own data set")
    settings = {
        **entry.model_dump(exclude={"name", "data", "fewshot_data"}),
        "data": _file(recipe, entry.data, (*place, "data")),
        "fewshot_data": _file(recipe, entry.fewshot_data, (*place, "fewshot_data")),
    }
    if entry.name.endswith((".yaml", ".yml")):
        found: tuple[TaskWorkload, ...] = (_own(recipe, entry.name, (*place, "name"), settings),)
    elif entry.trust_task_code:
        raise recipe.error((*place, "trust_task_code"), "has no effect on a task that lm-eval brings; leave it out")
    else:
        try:
            known = catalog()
            paths = {name: str(known.paths[name]) for name in known.members(entry.name)}
            if any(map(is_own, paths.values())):
                settings = _of_own(recipe, settings, place)
            found = tuple(TaskWorkload(name, path, **settings) for name, path in paths.items())
        except UsageError as error:
            raise recipe.error((*place, "name"), str(error)) from None
    for each in found:
        if each.writing and output_types(Path(each.definition)) - {"generate_until"}:
            named = next(iter(each.writing))
            raise recipe.error(
                (*place, named), f"the model writes no answers to {each.name}: it scores given ones; leave it out"
            )
    return found


def _of_own(recipe: Recipe, settings: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The settings of the project's own task: by the chat template, clustered by tool if by nothing else."""
    for key in ("data", "fewshot_data", "fewshot", "sampler", "system"):
        if settings[key] is not None:
            raise recipe.error((*place, key), "has no effect on tool-calls, which has its own prompts; leave it out")
    return {**settings, "chat_template": True, "cluster": settings["cluster"] or "tool"}


def _own(recipe: Recipe, name: str, place: Place, settings: dict[str, object]) -> TaskWorkload:
    """A task that the user defined. Raises RecipeError, with file and line, if it contains untrusted code."""
    try:
        path = locate(name, recipe.folder_of(place), RecipeError)
        if not path.is_file():
            raise UsageError(f"task file not found: {shown(path)}")
        found, names = definition(path), read_names(path)
    except UsageError as error:
        raise recipe.error(place, str(error)) from None
    if not names:
        raise recipe.error(place, f"{shown(path)} names no 'task' and no 'group'")
    if found.code and not settings["trust_task_code"]:
        raise recipe.error(
            place,
            f"{'; '.join(found.code)}. Read that code, then allow it beside the task's name: trust_task_code: true",
        )
    return TaskWorkload(names[0], str(path), own=found.hash_content(), **settings)  # type: ignore[arg-type]


def plugin_metrics(recipe: Recipe) -> tuple[tuple[MetricRef, ...], tuple[MetricRef, ...]]:
    """The plugin metrics that ``measure`` names: the observers, and the workloads.

    Raises RecipeError for an unknown name or parameter, and for a kind that a recipe cannot request.
    """
    found = [_plugin_metric(recipe, name, params) for name, params in recipe.measure.of_plugins.items()]
    observers, measured = (
        tuple(ref for metric, ref in found if metric.kind == kind) for kind in ("observer", "workload")
    )
    return observers, measured


def _plugin_metric(recipe: Recipe, name: str, given: Mapping[str, Any]) -> tuple[Metric, MetricRef]:
    place: Place = ("measure", name)
    known = plugins.plugin_metric_names()
    if name not in known:
        every = [*Measure.model_fields, *known]
        raise recipe.error(place, f"unknown metric{did_you_mean(name, every)}; known: {', '.join(every)}")
    try:
        metric = plugins.metric(name)
    except UsageError as error:
        raise recipe.error(place, str(error)) from None
    validate_names(recipe, name, metric.params, given, place)
    params = checked(recipe, metric.params, given, place)
    if metric.kind == "instrument":
        raise recipe.error(place, "is an instrument; a plugin's metric is an observer or a workload")
    if metric.kind == "observer" and not recipe.measure.perplexity:
        raise recipe.error(place, "needs 'perplexity' beside it: it is measured on its text")
    return metric, MetricRef(name, params.model_dump(), metric.uses, metric.packages)


def serving(recipe: Recipe) -> ServingWorkload | None:
    """The load on a server that the recipe asks for, if any. Raises RecipeError if its text does not exist."""
    entry = recipe.measure.serving
    if entry is None:
        return None
    limits = entry.slo
    return ServingWorkload(
        arrival=entry.arrival,
        levels=entry.levels,
        text=text(recipe, entry.prompts.text, ("measure", "serving", "prompts", "text")),
        prompt_tokens=None if entry.prompts.tokens == "rows" else entry.prompts.tokens,
        new_tokens=entry.new_tokens,
        natural=entry.length == "natural",
        requests=entry.requests or (USUAL_REQUESTS if entry.duration is None else None),
        duration_s=entry.duration,
        warmup=entry.warmup,
        slo=Slo(limits.ttft, limits.tpot, limits.itl, limits.e2e, limits.attainment) if limits else None,
        bisect=entry.bisect,
    )


def _file(recipe: Recipe, name: str | None, place: Place) -> TextRef | None:
    return None if name is None else text(recipe, written.Text(file=name), place)


def calibration(recipe: Recipe, scored: Sequence[PerplexityWorkload], allow_leak: bool) -> CalibrationRef | None:
    """The recipe's calibration. Raises RecipeError if its text is also scored, unless ``allow_leak``."""
    entry = recipe.calibration
    if entry is None:
        return None
    found = text(recipe, entry.text, ("calibration", "text"))
    if not allow_leak and any(found.same_as(workload.text) for workload in scored):
        raise recipe.error(
            ("calibration", "text"),
            "is the evaluation text; calibrated methods would be measured on what they have seen. "
            "Name another text, or allow it and have every row marked: --allow-leak",
        )
    return CalibrationRef(found, **entry.model_dump(exclude={"text"}))
