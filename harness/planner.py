"""From a recipe to the ordered runs of its sweep. Reads headers and hashes; loads and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from harness import recipe as written
from harness import registry
from harness.errors import SourceError, UsageError
from harness.machine import Machine, choose
from harness.models.prepare import VERSION as PREPARE_VERSION
from harness.models.sources import SourceModel, inspect
from harness.recipe import Recipe
from harness.spec import (
    Limits,
    PerplexityWorkload,
    RunSpec,
    ThroughputWorkload,
    digest,
    model_identity,
)
from harness.text.sources import resolve
from harness.text.windows import VERSION as WINDOWS_VERSION
from harness.variants import Variant, baseline, matches, variants

METRICS: Mapping[str, tuple[str, ...]] = {
    "reference": ("divergence",),
    "quality": ("perplexity", "divergence", "memory"),
    "performance": ("throughput", "memory"),
}
"""Whose versions a figure of a kind of run belongs to."""
DTYPE_BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0}


@dataclass(frozen=True)
class PlannedRun:
    """A run, what its weights are estimated to take, and why it cannot be (None where it can)."""

    spec: RunSpec
    weight_bytes: int | None = None
    unsupported: str | None = None


def plan(recipe: Recipe, machine: Machine | None = None) -> tuple[PlannedRun, ...]:
    """The runs in the order they are to be made.

    Preparing and reference runs come first, then each variant's quantization and quality, then
    performance with the variants interleaved and the repetitions outermost, so that a machine that
    slows down slows them all. Raises RecipeError for what no model could take; what this model or
    this environment cannot take is planned as unsupported.
    """
    machine = machine or choose(recipe.device)
    sources = [_source(recipe, index) for index in range(len(recipe.models))]
    _refuse_twins(recipe, sources)
    engines = [_engine(recipe, index) for index in range(len(recipe.engines))]
    base = baseline(recipe)
    chosen = variants(recipe, base)
    for index, pattern in enumerate(recipe.exclude):
        if not any(matches(pattern, v, s.ref.label, e) for v, s, e in product(chosen, sources, engines)):
            raise recipe.error(("exclude", index), "matches no variant of this recipe")
    planned = [
        run
        for source, engine in product(sources, engines)
        for run in _runs(recipe, source, _base_spec(recipe, source, base, engine, machine), base, chosen)
    ]
    if not any(run.spec.kind in ("quality", "performance") for run in planned):
        raise recipe.error(
            ("measure",), "nothing is left to run: random weights have no quality, only speed and memory"
        )
    return tuple(sorted(planned, key=_turn))


def _refuse_twins(recipe: Recipe, sources: Sequence[SourceModel]) -> None:
    """Raises RecipeError for one model written twice, and for two that a table could not tell apart."""
    if len({source.ref.label for source in sources}) < len(sources):
        raise recipe.error(("models",), "two models have the same label; give one a 'label' of its own")
    if len({digest(model_identity(source.ref)) for source in sources}) < len(sources):
        raise recipe.error(("models",), "the same model stands here twice")


def _turn(run: PlannedRun) -> int:
    """When a run's turn comes; runs of one turn keep their order."""
    turns = {"prepare": 0, "reference": 0, "quantize": 1, "quality": 1, "performance": 2}
    return turns[run.spec.kind] + run.spec.repetition


def _runs(
    recipe: Recipe, source: SourceModel, spec: RunSpec, base: Variant, chosen: Sequence[Variant]
) -> Iterator[PlannedRun]:
    """The runs of one model on one engine: what all its variants need, then theirs."""
    weight_bytes = _weight_bytes(source, base)
    needs: dict[str, str] = {}
    if source.ref.needs_preparing:
        prepare = _locked(replace(spec, kind="prepare"), base)
        yield PlannedRun(prepare, weight_bytes)
        needs = {"prepare": prepare.run_id}
    reference = None
    if spec.perplexity is not None and spec.divergence:
        reference = _locked(replace(spec, kind="reference", needs=needs), base)
        yield PlannedRun(reference, weight_bytes, _too_long(source, reference))
    for variant in chosen:
        excluded = any(matches(pattern, variant, source.ref.label, spec.engine) for pattern in recipe.exclude)
        if variant.ref == base.ref or not excluded:
            yield from _variant_runs(recipe, source, replace(spec, method=variant.ref, needs=needs), variant, reference)


def _variant_runs(
    recipe: Recipe, source: SourceModel, spec: RunSpec, variant: Variant, reference: RunSpec | None
) -> Iterator[PlannedRun]:
    """The runs of one variant; ``spec`` names the method and what every run of the model needs."""
    weight_bytes = _weight_bytes(source, variant)
    blocked = _unsupported(source, variant)
    if variant.ref.stage == "offline":
        quantize = _locked(replace(spec, kind="quantize"), variant)
        yield PlannedRun(quantize, weight_bytes, blocked)
        spec = replace(spec, needs={**spec.needs, "quantize": quantize.run_id})
    if spec.perplexity is not None:
        needs = {**spec.needs, "reference": reference.run_id} if reference else spec.needs
        quality = _locked(replace(spec, kind="quality", needs=needs), variant)
        yield PlannedRun(quality, weight_bytes, blocked or _too_long(source, quality))
    if spec.throughput is not None or (spec.memory and spec.perplexity is None):
        for repetition in range(recipe.repetitions):
            run = _locked(replace(spec, kind="performance", repetition=repetition), variant)
            yield PlannedRun(run, weight_bytes, blocked or _too_long(source, run))


def _base_spec(recipe: Recipe, source: SourceModel, base: Variant, engine: str, machine: Machine) -> RunSpec:
    measure = recipe.measure
    if measure == written.Measure():
        raise recipe.error(("measure",), "nothing is measured; name perplexity, divergence, memory or throughput")
    if measure.divergence is not None and measure.perplexity is None:
        raise recipe.error(("measure", "divergence"), "needs 'perplexity' beside it: it is measured on its text")
    perplexity = throughput = None
    if measure.perplexity is not None and source.ref.kind != "synthetic":  # random weights have no quality
        entry = measure.perplexity
        try:
            text = resolve(entry.text, recipe.folder)
        except SourceError as error:
            raise recipe.error(("measure", "perplexity", "text"), str(error)) from None
        perplexity = PerplexityWorkload(text, entry.protocol, entry.context, entry.windows)
    if measure.throughput is not None:
        throughput = ThroughputWorkload(**measure.throughput.model_dump())
    return RunSpec(
        kind="quality",
        recipe=recipe.name,
        model=source.ref,
        method=base.ref,
        baseline=base.ref,
        engine=engine,
        scope=recipe.scope,
        perplexity=perplexity,
        divergence=measure.divergence is not None,
        throughput=throughput,
        memory=measure.memory is not None,
        limits=Limits(recipe.limits.time, recipe.limits.memory),
        device=machine.device,
        threads=recipe.threads,
        attention=recipe.attention,
        seed=recipe.seed,
        hardware=machine.hardware,
    )


def _locked(spec: RunSpec, variant: Variant) -> RunSpec:
    """The spec with the versions that a repetition of it must share."""
    runtime = registry.engine(spec.engine)
    converts = ("gguf",) if spec.kind == "prepare" and spec.model.kind == "gguf" else ()
    packages = (*runtime.packages, *variant.method.packages, *converts)
    lock = digest({package: registry.installed_version(package) for package in packages})
    versions = {name: registry.metric(name).version for name in METRICS.get(spec.kind, ())}
    if spec.kind == "prepare":
        versions["prepare"] = PREPARE_VERSION
    else:
        versions[runtime.name] = runtime.version
    if spec.kind in ("reference", "quality"):
        versions["windows"] = WINDOWS_VERSION
    return replace(spec, lock=lock, versions=versions)


def _source(recipe: Recipe, index: int) -> SourceModel:
    try:
        return inspect(recipe.models[index], recipe.folder)
    except SourceError as error:
        raise recipe.error(("models", index, "id"), str(error)) from None


def _engine(recipe: Recipe, index: int) -> str:
    try:
        return registry.engine(recipe.engines[index]).name
    except UsageError as error:
        raise recipe.error(("engines", index), str(error)) from None


def _unsupported(source: SourceModel, variant: Variant) -> str | None:
    """Why this model or this environment cannot take the variant."""
    lacking = registry.missing(variant.method)
    if lacking:
        return lacking
    group = variant.method.group_size(variant.params)
    refused = sorted({width for width in source.widths.values() if group and width % group})
    if refused:
        return f"group_size {group} does not divide the input widths {', '.join(map(str, refused))} of this model"
    return None


def _too_long(source: SourceModel, spec: RunSpec) -> str | None:
    """Why the workload does not fit the model's context."""
    limit = source.context_length
    if limit is None:
        return None
    if spec.kind in ("quality", "reference") and spec.perplexity and spec.perplexity.context > limit:
        return f"perplexity context {spec.perplexity.context} exceeds the model's {limit}"
    if spec.kind == "performance" and spec.throughput:
        needed = max(spec.throughput.prompt_tokens) + spec.throughput.new_tokens
        if needed > limit:
            return f"prompt and new tokens, {needed}, exceed the model's context of {limit}"
    return None


def _weight_bytes(source: SourceModel, variant: Variant) -> int | None:
    """Estimated bytes of the loaded weights; None where the model's shapes are not known yet."""
    if not source.widths:
        return None
    plain = DTYPE_BITS.get(variant.method.run_dtype(variant.params, source.ref.dtype), 16.0)
    mean_width = sum(source.widths.values()) // len(source.widths)
    bits = variant.method.bits_per_weight(variant.params, plain, mean_width)
    return int((source.decoder_parameters * bits + source.other_parameters * plain) / 8)
