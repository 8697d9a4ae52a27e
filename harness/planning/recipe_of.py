"""The recipe that asks what runs asked: ``plan``'s inverse, for runs whose recipe is not at hand.

Records hold all that a recipe says but how it said it: entries that differ in one parameter become one with a list of
its values, everything is written out, and ``exclude`` leaves out each combination that no run is of. If the runs are of
recipes that differ in what all of their variants share, such as the seed, the last run decides: those that it does not
suit are not planned, which ``case_id`` tells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from harness import plugins as registry
from harness.core.identity import Residency
from harness.core.job import (
    AnswerTask,
    MakeReference,
    MeasurePerformance,
    MeasureQuality,
    MeasureServing,
    QuantizeModel,
    VariantJob,
)
from harness.core.model import MethodRef, ModelRef
from harness.core.run import RunSpec
from harness.core.workload import (
    WRITING,
    CalibrationRef,
    PerplexityWorkload,
    ServingWorkload,
    TaskWorkload,
    TextRef,
)
from harness.errors import UsageError
from harness.planning.exclude_entries import entries_without
from harness.recipe.fields import MAX_EXCLUDED
from harness.text.sources import TEXTS

T = TypeVar("T")
Located = ModelRef | TextRef | TaskWorkload
"""What a recipe names by its place, and records know by its content. Of tasks, those that the user defined."""
Place = Callable[[Located], str | None]
"""Where a model, a text or a task's definition is; None for where the recipe said."""


def recipe_of(specs: Sequence[RunSpec], place: Place = lambda content: None, *, whole: bool = False) -> dict[str, Any]:
    """The recipe's data, as a YAML file would hold it. ``specs`` are runs of one recipe, oldest first.

    ``whole`` writes every parameter of a method; otherwise those that have their default now are left out, unless the
    method's label shows them, so that the label stays. Where a recipe may not exclude as much as no run is of, it plans
    more. Raises UsageError if none of them is of a variant.
    """
    jobs = [spec.job for spec in specs if isinstance(spec.job, VariantJob)]
    if not jobs:
        raise UsageError("no run is of a variant, so there is no recipe that asks for it")
    measured = [job for job in jobs if job.measures_variant] or jobs
    last, variants = jobs[-1], [job.variant for job in jobs]
    rows = [job.variant for job in jobs if job.row_rank is not None] or variants
    timed = [job for job in jobs if isinstance(job, MeasurePerformance)]
    scoped = [each for each in variants if each.skip or each.overrides]
    calibrated = [each.calibration for each in variants if each.calibration is not None]
    repetitions = 1 + max(spec.repetition for spec in specs)
    limits = _set(time=specs[-1].limits.time_s, memory=specs[-1].limits.memory_bytes)
    prices = [spec.readers.price for spec in specs if spec.readers.price is not None]
    gates = [dict(spec.readers.gates) for spec in specs if spec.readers.gates]
    scope: dict[str, Any] = {"quantize": last.variant.scope}
    if scoped:
        own = scoped[-1]
        scope |= {"skip": list(own.skip), "overrides": {name: dict(each) for name, each in own.overrides.items()}}
    return _set(
        name=specs[-1].recipe,
        models=_distinct(_model(each.model, place) for each in variants),
        methods=_listed((each.method.name, _params(each.method, place, whole)) for each in rows),
        engines=_listed((job.variant.engine, dict(job.variant.engine_params)) for job in measured),
        measure=_measure(specs, jobs, place),
        baseline=_named(last.baseline.name, _params(last.baseline, place, whole)),
        repetitions=repetitions if any(job.repeated for job in jobs) else None,
        limits=limits or None,
        scope=scope,
        calibration=_calibration(calibrated[-1], place) if calibrated else None,
        device=last.conditions.device,
        devices=last.conditions.devices,
        residency=_residency(jobs),
        threads=last.conditions.threads,
        attention=last.conditions.attention,
        exclude=entries_without(measured)[:MAX_EXCLUDED] or None,
        seed=last.variant.seed,
        kv_cache=_distinct(job.variant.kv_cache for job in measured),
        decode_mode=_distinct(job.decode_mode for job in timed) or None,
        price=asdict(prices[-1]) if prices else None,
        gates=gates[-1] if gates else None,
    )


def _residency(jobs: Sequence[VariantJob]) -> Residency | Literal["auto"]:
    """Where all runs had their model. Speeds need it whole, so that beside them only ``auto`` streams anything."""
    read = {job.conditions.residency for job in jobs if isinstance(job, MeasureQuality | MakeReference)}
    quantized = {job.conditions.residency for job in jobs if isinstance(job, QuantizeModel)}
    if "streamed" not in read | quantized:
        return "resident"
    whole = any(job.measures_variant and not isinstance(job, MeasureQuality) for job in jobs)
    return "auto" if whole or "resident" in read else "streamed"


def _measure(specs: Sequence[RunSpec], jobs: Sequence[VariantJob], place: Place) -> dict[str, Any]:
    quality = [job for job in jobs if isinstance(job, MeasureQuality | MakeReference)]
    timed = [job for job in jobs if isinstance(job, MeasurePerformance)]
    tasks = [job.task for job in jobs if isinstance(job, AnswerTask)]
    served = [job for job in jobs if isinstance(job, MeasureServing)]
    grids = [job.throughput for job in timed if job.throughput is not None]
    budgets = [spec.readers.budget_bytes for spec in specs if spec.readers.budget_bytes is not None]
    observed = [each for job in quality if isinstance(job, MeasureQuality) for each in job.observers]
    plugins = [*observed, *(each for job in timed for each in job.workloads)]
    divergence = any(isinstance(job, MakeReference) or job.divergence for job in quality)
    grid = {name: value for name, value in asdict(grids[-1]).items() if name != "decode_mode"} if grids else None
    return {each.name: dict(each.params) for each in plugins} | _set(
        perplexity=_distinct(_perplexity(job.perplexity, place) for job in quality if job.perplexity) or None,
        divergence={} if divergence else None,
        memory=_set(budget=budgets[-1] if budgets else None) if any(job.conditions.memory for job in jobs) else None,
        throughput={name: list(each) if isinstance(each, tuple) else each for name, each in grid.items()}
        if grid
        else None,
        tasks=_distinct(_task(each, place) for each in tasks) or None,
        energy={} if any(job.energy for job in timed) or any(job.energy for job in served) else None,
        serving=_serving(served[-1].serving, place) if served else None,
    )


def _model(model: ModelRef, place: Place) -> dict[str, Any]:
    entry = _set(
        id=place(model) or model.id,
        label=model.label,
        dtype=model.dtype,
        revision=model.revision,
        degrid=model.degrid,
        native="dequantize" if model.dequantize else None,
        trust_remote_code=model.trust_remote_code or None,
    )
    return entry | ({"config": dict(model.config), "seed": model.seed} if model.kind == "synthetic" else {})


def _params(method: MethodRef, place: Place, whole: bool) -> dict[str, Any]:
    """A method's parameters; of a published checkpoint, its place."""
    kept = dict(method.params)
    if not whole:
        defaults = {name: each.default for name, each in registry.method(method.name).params.model_fields.items()}
        shown = set(re.findall(r"(?:^|\s)(\w+)(?==|\s|$)", method.label.partition(" ")[2]))
        kept = {name: value for name, value in kept.items() if name in shown or value != defaults.get(name, object())}
    if method.published is not None:
        kept["id"] = place(method.published) or kept["id"]
        kept |= {"trust_remote_code": True} if method.published.trust_remote_code else {}
    if method.server is not None:
        kept |= _set(url=method.server.url, api_key_env=method.server.api_key_env)
    return kept | ({"stack": method.stack} if method.stack else {})


def _perplexity(workload: PerplexityWorkload, place: Place) -> dict[str, Any]:
    if workload.generation is not None:
        amounts = {"answers": workload.windows, "tokens": workload.context}
        prompts = _text(workload.text, place)
        return {"text": {"generated": {"prompts": prompts, **amounts, **asdict(workload.generation)}}}
    settings = {name: value for name, value in asdict(workload).items() if name not in ("text", "generation")}
    return {"text": _text(workload.text, place)} | _set(**settings)


def _task(task: TaskWorkload, place: Place) -> dict[str, Any]:
    beside = ("name", "definition", "own", "data", "fewshot_data", *WRITING)
    settings = {name: value for name, value in asdict(task).items() if name not in beside and value is not False}
    return _set(
        name=task.name if task.own is None else place(task) or task.definition,
        data=_file(task.data, place) if task.data else None,
        fewshot_data=_file(task.fewshot_data, place) if task.fewshot_data else None,
        **settings,
        **task.writing,
    )


def _serving(load: ServingWorkload, place: Place) -> dict[str, Any]:
    limits = load.slo.limits | {"attainment": load.slo.share} if load.slo else None
    at_once = load.arrival == "concurrent"
    return _set(
        arrival=load.arrival,
        concurrency=[int(level) for level in load.levels] if at_once else None,
        rates=None if at_once else list(load.levels),
        prompts={"text": _text(load.text, place), "tokens": load.prompt_tokens or "rows"},
        new_tokens=load.new_tokens,
        length="natural" if load.natural else "fixed",
        warmup=load.warmup,
        requests=load.requests,
        duration=load.duration_s,
        slo=limits,
        bisect=load.bisect,
    )


def _calibration(ref: CalibrationRef, place: Place) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(ref).items() if name != "text"}
    return {"text": _text(ref.text, place), **settings}


def _text(text: TextRef, place: Place) -> dict[str, Any]:
    if text.hub is not None:
        return _set(hub=text.hub, config=text.config, split=text.split, revision=text.revision, field=text.field)
    found = place(text)
    source = {"name": text.id} if text.id in TEXTS and found in (None, text.id) else {"file": _file(text, place)}
    return source | ({"field": text.field} if text.field != "text" else {})


def _file(text: TextRef, place: Place) -> str:
    return place(text) or text.path or text.id


def _listed(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any] | str]:
    """Entries that expand to just these, as few as there are once those that differ in one parameter have become one.

    A recipe of many variants is a product of lists, and one entry for each would be more than a recipe may have.
    """
    found = [(name, {key: [value] for key, value in params.items()}) for name, params in _distinct(entries)]
    for key in dict.fromkeys(key for _, params in found for key in params):
        merged: dict[str, tuple[str, dict[str, list[Any]]]] = {}
        for name, params in found:
            others = {each: sorted(map(_content, values)) for each, values in params.items() if each != key}
            _, known = merged.setdefault(_content([name, others, key in params]), (name, params))
            if known is not params and key in params:
                known[key] += params[key]
        found = list(merged.values())
    return [
        _named(name, {key: values if len(values) > 1 else values[0] for key, values in params.items()})
        for name, params in found
    ]


def _named(name: str, params: Mapping[str, Any]) -> dict[str, Any] | str:
    return {name: dict(params)} if params else name


def _set(**values: Any) -> dict[str, Any]:
    """Those that say something."""
    return {name: value for name, value in values.items() if value is not None}


def _distinct(values: Iterable[T]) -> list[T]:
    return list({_content(each): each for each in values}.values())


def _content(value: object) -> str:
    return json.dumps(value, sort_keys=True)
