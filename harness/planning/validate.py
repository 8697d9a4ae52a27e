"""Rejects recipe entries that no model could use or that have no effect, before anything is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from harness import plugins as registry
from harness.core.engine import Engine
from harness.core.foreign import quoted
from harness.core.identity import digest
from harness.core.model import model_identity
from harness.core.site import Machine
from harness.errors import UsageError
from harness.figures.gate import threshold
from harness.models.scope import Modules, modules
from harness.models.sources import SourceModel
from harness.planning.expand import MethodChoice
from harness.recipe import Measure, Recipe
from harness.recipe.faults import expected


def reject_duplicates(recipe: Recipe, sources: Sequence[SourceModel]) -> None:
    """Raises RecipeError for a model listed twice, and for models that a table could not distinguish."""
    if len({source.ref.label.casefold() for source in sources}) < len(sources):
        raise recipe.error(
            ("models",), "two models have the same label (capital letters do not count); give one a 'label' of its own"
        )
    if len({digest(model_identity(source.ref)) for source in sources}) < len(sources):
        raise recipe.error(("models",), "the same model is listed twice")


def validate_devices(devices: int, machine: Machine) -> None:
    """Raises UsageError if a machine lacks the GPUs that a recipe spreads its models over."""
    if devices == 1:
        return
    if machine.device == "cpu":
        raise UsageError(f"devices: {devices} needs as many GPUs, and this sweep runs on a CPU; leave it out")
    if devices > machine.gpus:
        raise UsageError(
            f"devices: {devices} needs as many GPUs of one kind, and {machine.gpus} may be used here; see "
            "'qharness doctor'"
        )
    if any(name.startswith("MIG-") for name in machine.uuids[:devices]):
        raise UsageError(f"devices: {devices} needs whole GPUs: a process can use one MIG slice; leave it out")


def validate_measure(recipe: Recipe) -> None:
    """Raises RecipeError if nothing is measured, or if a measurement lacks another one that it needs."""
    if recipe.measure == Measure():
        raise recipe.error(("measure",), "nothing is measured; name perplexity, tasks, memory, throughput or serving")
    if recipe.measure.throughput is None:
        _validate_without_throughput(recipe)
    if recipe.measure.divergence is not None and not recipe.measure.perplexity:
        raise recipe.error(("measure", "divergence"), "needs 'perplexity', because it is measured on its text")


def _validate_without_throughput(recipe: Recipe) -> None:
    """Raises RecipeError for settings that need the timing of prefill and decode."""
    memory = recipe.measure.memory
    wanted: list[tuple[tuple[str, ...], object, str]] = [
        (
            ("measure", "energy"),
            None if recipe.measure.serving else recipe.measure.energy,
            "it is measured at the points of its grid, or under the load of 'serving'",
        ),
        (("measure", "memory", "budget"), memory and memory.budget, "what fits is computed from its prompts"),
        (("price",), recipe.price, "the cost of a token is computed from its speeds"),
        (("decode_mode",), recipe.decode_mode != ("eager",) or None, "without it no decoding speed is measured"),
    ]
    for place, value, why in wanted:
        if value is not None:
            raise recipe.error(place, f"needs 'throughput' under measure: {why}")


def thresholds(recipe: Recipe) -> Mapping[str, float]:
    """The thresholds of the recipe's gates. Raises RecipeError for an unknown gate or an invalid threshold."""
    try:
        return {name: threshold(registry.gates(), name, written) for name, written in recipe.gates.items()}
    except ValueError as error:
        raise recipe.error(("gates",), str(error)) from None


def validate_calibration(recipe: Recipe, chosen: Sequence[MethodChoice]) -> None:
    """Raises RecipeError if a calibrated method has no calibration text."""
    lacking = [each.ref.name for each in chosen if each.calibrated]
    if lacking and recipe.calibration is None:
        raise recipe.error(
            ("methods",), f"{lacking[0]} is calibrated on text; add 'calibration: {{}}' (the harness's own) or name one"
        )


def validate_engines(recipe: Recipe, engines: Sequence[Engine[Any]], chosen: Sequence[MethodChoice]) -> None:
    """Raises RecipeError for a method that no engine of the recipe can run. Other engines skip it."""
    for method in chosen:
        if not any(method.runs_on(engine) for engine in engines):
            able = [name for name in registry.engine_names() if method.runs_on(registry.engine(name))]
            known = f"runs on {', '.join(able)}; name it under 'engines'" if able else "runs on no installed engine"
            raise recipe.error(("methods",), f"{method.ref.label} {known}")


def validate_scope(recipe: Recipe, sources: Sequence[SourceModel], chosen: Sequence[MethodChoice]) -> None:
    """Raises RecipeError for patterns that match nothing, an empty scope, and overrides that no method supports."""
    for source in sources:
        if source.ref.kind in ("directory", "hub") and source.matrices:  # else names are unknown before preparing
            _validate_patterns(recipe, source.ref.label, modules(source.matrices))
    for pattern, own in recipe.scope.overrides.items():
        if not own:
            raise recipe.error(("scope", "overrides", pattern), "names no parameter")
        _validate_override(recipe, pattern, [each for each in chosen if each.method.overrides])


def _validate_patterns(recipe: Recipe, model: str, found: Modules) -> None:
    for key, patterns in (("skip", recipe.scope.skip), ("overrides", tuple(recipe.scope.overrides))):
        for pattern in patterns:
            if not any(found.matching(module, [pattern]) for module in found.scope):
                example = f"its modules have names such as {quoted(found.scope[0])}"
                raise recipe.error(("scope", key), f"{quoted(pattern)} matches no module of {model}; {example}")
    if all(found.matching(module, recipe.scope.skip) for module in found.scope):
        raise recipe.error(("scope", "skip"), f"leaves nothing of {model} to quantize")


def _validate_override(recipe: Recipe, pattern: str, able: Sequence[MethodChoice]) -> None:
    """``able`` are the variants whose methods support separate parameters for single modules."""
    place, own = ("scope", "overrides", pattern), recipe.scope.overrides[pattern]
    for key in own:
        if not any(key in each.method.params.model_fields for each in able):
            raise recipe.error((*place, key), "no method of this recipe supports this parameter for single modules")
    for each in able:
        mine = {key: value for key, value in own.items() if key in each.method.params.model_fields}
        try:
            each.method.params.model_validate({**each.params.model_dump(), **mine})
        except ValidationError as error:
            fault = error.errors()[0]
            raise recipe.error((*place, *fault["loc"][:1]), f"{each.ref.name}: {expected(fault)}") from None
