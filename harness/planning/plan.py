"""From a recipe to the ordered runs of its sweep. Reads headers and hashes; loads nothing, and writes no results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from harness import plugins as registry
from harness.core.engine import Engine
from harness.core.format import TRANSFORMERS_FORMAT, source_format
from harness.core.identity import Kind, KvCache
from harness.core.inputs import Input
from harness.core.model import MAIN_ENGINE
from harness.core.run import Limits, Price, RunSpec
from harness.core.site import MAIN, Machine, Site
from harness.core.workload import CalibrationRef, PerplexityWorkload, TaskWorkload, TextRef, ThroughputWorkload
from harness.errors import SourceError, UsageError
from harness.models.memory import DTYPE_BITS, plain_bytes, quantized
from harness.models.scope import holds_experts
from harness.models.sources import SourceModel, inspect
from harness.planning import workloads
from harness.planning.exclude import excluded, refuse_idle
from harness.planning.expand import Variant, baseline, variants
from harness.planning.support import cache_obstacle, lacking_engine, obstacle, too_long
from harness.planning.validate import (
    refuse_calibration,
    refuse_engines,
    refuse_measure,
    refuse_scope,
    refuse_twins,
    thresholds,
)
from harness.planning.versions import locked
from harness.recipe import Recipe
from harness.storage.checksums import hash_file
from harness.tasks.trust import definition

SCORING = ("reference", "quality")
"""Kinds of runs that read the text of their perplexity workload."""


@dataclass(frozen=True)
class PlannedRun:
    """A run, what its weights are estimated to take, and why it cannot be (None where it can).

    ``inputs`` are the user's files that its figures depend on, as they were when they were hashed.
    """

    spec: RunSpec
    weight_bytes: int | None = None
    unsupported: str | None = None
    inputs: tuple[Input, ...] = ()


@dataclass(frozen=True)
class _Sweep:
    """A recipe whose names are found: what is made of each of its models on each of its engines."""

    recipe: Recipe
    site: Site
    machine: Machine
    allow_leak: bool
    base: Variant
    variants: Sequence[Variant]
    texts: tuple[PerplexityWorkload, ...]
    tasks: tuple[TaskWorkload, ...]
    calibration: CalibrationRef | None


def plan(recipe: Recipe, site: Site, allow_leak: bool = False) -> tuple[PlannedRun, ...]:
    """The runs in the order they are to be made at a site.

    Preparing, calibration and reference runs come first, then each variant's quantization and quality, then
    performance with the variants interleaved and the repetitions outermost, so that a machine that
    slows down slows them all. ``allow_leak`` lets calibration overlap the evaluation text. Raises RecipeError for what
    no model could take, and UsageError for a device that the site lacks; what this model or this site cannot take is
    planned as unsupported.
    """
    machine = site.machine(recipe.device)
    sources = [_source(recipe, index) for index in range(len(recipe.models))]
    refuse_twins(recipe, sources)
    engines = [_engine(recipe, index) for index in range(len(recipe.engines))]
    refuse_measure(recipe)
    base = baseline(recipe)
    chosen = variants(recipe, base)
    texts = workloads.perplexities(recipe)
    calibration = workloads.calibration(recipe, texts, allow_leak)
    sweep = _Sweep(recipe, site, machine, allow_leak, base, chosen, texts, workloads.tasks(recipe), calibration)
    refuse_engines(recipe, engines, chosen)
    refuse_calibration(recipe, chosen)
    refuse_scope(recipe, sources, chosen)
    refuse_idle(recipe, chosen, [source.ref.label for source in sources], engines)
    planned = [
        run
        for source, engine in product(sources, engines)
        for run in _runs(sweep, source, _base_spec(sweep, source, engine))
    ]
    if not any(run.spec.kind in ("quality", "task", "performance") for run in planned):
        raise recipe.error(
            ("measure",), "nothing is left to run: random weights have no quality, only speed and memory"
        )
    once = {run.spec.run_id: run for run in [*_machine(planned, base, site), *planned]}  # engines share what they need
    known = _Inputs({source.ref.path: source.files for source in (*sources, *_published(chosen)) if source.files})
    return tuple(replace(run, inputs=known.of(run.spec)) for run in sorted(once.values(), key=_turn))


def _machine(planned: Sequence[PlannedRun], base: Variant, site: Site) -> Iterator[PlannedRun]:
    """The run that measures the machine, once, where any speed is to be held against it.

    No run needs it: where it fails, speeds are measured all the same and have no bound.
    """
    timed = [run.spec for run in planned if run.spec.kind == "performance" and not run.unsupported]
    spec = next((spec for spec in timed if spec.throughput), None)
    if spec is not None:
        bare = replace(spec, kind="machine", engine=MAIN_ENGINE, stack=MAIN, needs={}, memory=False)
        bare = replace(bare, calibration=None, perplexity=None)
        yield PlannedRun(
            locked(replace(bare, throughput=None, energy=False, kv_cache="model", repetition=0), base, site)
        )


def _published(chosen: Sequence[Variant]) -> Iterator[SourceModel]:
    return (variant.checkpoint for variant in chosen if variant.checkpoint is not None)


@dataclass(frozen=True)
class _Inputs:
    """What was hashed of models, by their path; texts and tasks are added when they are first met."""

    known: dict[str, Input]

    def of(self, spec: RunSpec) -> tuple[Input, ...]:
        """Those that a run depends on, also by way of what other runs make for it."""
        if spec.kind == "machine":
            return ()
        paths = [spec.model.path, *([spec.method.published.path] if spec.method.published else [])]
        found = [self.known[path] for path in paths if path in self.known]
        texts = [workload.text for workload in spec.evaluations]
        texts += [spec.calibration.text] if spec.calibration is not None else []
        texts += [spec.perplexity.text] if spec.perplexity is not None and spec.kind in SCORING else []
        if spec.task is not None:
            texts += [text for text in (spec.task.data, spec.task.fewshot_data) if text is not None]
            found += [self._task(spec.task)] if spec.task.own is not None else []
        return (*found, *(self._text(text) for text in texts if text.path is not None))

    def _text(self, text: TextRef) -> Input:
        path = str(text.path)
        if path not in self.known:
            file = hash_file(Path(path))
            if file.sha256 != text.sha256:
                raise SourceError(f"{path}: changed while it was planned with; plan again when nothing writes to it")
            self.known[path] = Input((file,))
        return self.known[path]

    def _task(self, task: TaskWorkload) -> Input:
        if task.definition not in self.known:
            found = definition(Path(task.definition))
            files = tuple(map(hash_file, found.files))
            if found.hash_content() != task.own:
                raise SourceError(f"{task.definition}: changed while it was planned with; plan again")
            self.known[task.definition] = Input(files)
        return self.known[task.definition]


def _turn(run: PlannedRun) -> int:
    """When a run's turn comes; runs of one turn keep their order."""
    turns = {"quantize": 1, "quality": 1, "task": 1, "performance": 2}
    return turns.get(run.spec.kind, 0) + run.spec.repetition


def _runs(sweep: _Sweep, source: SourceModel, spec: RunSpec) -> Iterator[PlannedRun]:
    """The runs of one model on one engine: what several of its variants need, then theirs."""
    base, site = sweep.base, sweep.site
    runtime = registry.engine(spec.engine)
    kept = [
        (each, lacking_engine(runtime, site) or obstacle(source, each, sweep.machine, site, spec.skip))
        for each in sweep.variants
        if each.runs_on(runtime)
        if each.ref == base.ref or not excluded(sweep.recipe, each, source.ref.label, spec.engine)
    ]
    able = [each for each, blocked in kept if not blocked]
    weight_bytes = _weight_bytes(source, base)
    shared: dict[str, str] = {}

    def needed(kind: Kind, perplexity: PerplexityWorkload | None = spec.perplexity) -> PlannedRun:
        """A run that others need, found by its run_id. It knows nothing of what varies between them."""
        calibration = spec.calibration if kind == "calibrate" else None
        allow_leak = spec.allow_leak and calibration is not None
        bare = replace(spec, skip=(), overrides={}, calibration=calibration, allow_leak=allow_leak)
        bare = replace(bare, perplexity=perplexity, evaluations=sweep.texts if kind == "calibrate" else ())
        bare = replace(bare, engine=MAIN_ENGINE)
        made = locked(replace(bare, kind=kind, needs=dict(shared)), base, site)
        return PlannedRun(made, weight_bytes, source.degrid_obstacle or too_long(source, made))

    if source.ref.needs_preparing:
        prepare = needed("prepare")
        shared["prepare"] = prepare.spec.run_id
        yield prepare
    extra: dict[str | PerplexityWorkload, PlannedRun] = {}
    if any(each.method.calibrated(each.params) for each in able):
        extra["calibrate"] = needed("calibrate")
    if any(each.method.stack != MAIN or _converted(runtime, source, each) for each in able):
        extra["probe"] = needed("probe")
    if spec.divergence and spec.perplexity is not None:
        extra |= {workload: needed("reference", workload) for workload in sweep.texts}
    yield from extra.values()
    for variant, blocked in kept:
        yield from _variant_runs(sweep, source, replace(spec, needs=shared), variant, blocked, extra)


def _variant_runs(
    sweep: _Sweep,
    source: SourceModel,
    spec: RunSpec,
    variant: Variant,
    blocked: str | None,
    extra: Mapping[str | PerplexityWorkload, PlannedRun],
) -> Iterator[PlannedRun]:
    """The runs of one variant; ``extra`` are the runs that only some variants need."""
    site, runtime = sweep.site, registry.engine(spec.engine)
    weight_bytes = _weight_bytes(variant.checkpoint or source, variant)
    calibrated = variant.method.calibrated(variant.params)
    spec = replace(
        spec,
        method=variant.ref,
        calibration=spec.calibration if calibrated else None,
        allow_leak=spec.allow_leak and calibrated,
    )
    if variant.ref.stage not in ("on_load", "offline"):
        spec = replace(spec, skip=(), overrides={})
    calibrate: dict[str, str] = {}
    if calibrated and "calibrate" in extra:
        calibrate = {"calibrate": extra["calibrate"].spec.run_id}
        blocked = blocked or extra["calibrate"].unsupported
    if variant.ref.stage == "offline":
        elsewhere = variant.method.stack != MAIN and "probe" in extra
        needs = {**spec.needs, **calibrate, **({"probe": extra["probe"].spec.run_id} if elsewhere else {})}
        quantize = locked(replace(spec, kind="quantize", needs=needs, stack=variant.method.stack), variant, site)
        yield PlannedRun(quantize, weight_bytes, blocked)
        spec = replace(spec, needs={**spec.needs, "quantize": quantize.run_id})
    spec = replace(spec, stack=runtime.stack)
    if _converted(runtime, source, variant) and "probe" in extra:
        needs = {**spec.needs, "probe": extra["probe"].spec.run_id}
        convert = locked(replace(spec, kind="convert", needs=needs), variant, site)
        yield PlannedRun(convert, weight_bytes, blocked)
        spec = replace(spec, needs={**spec.needs, "convert": convert.run_id})
    for kv_cache in _caches(sweep, variant, spec):
        for asked in _questions(sweep, source, variant, replace(spec, kv_cache=kv_cache), calibrate, extra):
            run = locked(asked, variant, site)
            yield PlannedRun(run, weight_bytes, blocked or cache_obstacle(run, site) or too_long(source, run))


def _caches(sweep: _Sweep, variant: Variant, spec: RunSpec) -> tuple[KvCache, ...]:
    """The key-value caches that a variant is measured with: the baseline with the model's own, whatever is asked."""
    recipe, model = sweep.recipe, spec.model.label
    wanted = tuple(each for each in recipe.kv_cache if not excluded(recipe, variant, model, spec.engine, each))
    return wanted if variant.ref != sweep.base.ref else tuple(dict.fromkeys(("model", *wanted)))


def _questions(
    sweep: _Sweep,
    source: SourceModel,
    variant: Variant,
    spec: RunSpec,
    calibrate: Mapping[str, str],
    extra: Mapping[str | PerplexityWorkload, PlannedRun],
) -> Iterator[RunSpec]:
    """What is asked of a variant with one key-value cache."""
    needs = {**spec.needs, **calibrate}
    for text in sweep.texts if _has_quality(source) else ():
        reference = {"reference": extra[text].spec.run_id} if text in extra else {}
        yield replace(spec, kind="quality", perplexity=text, needs={**needs, **reference})
    for task in sweep.tasks if _has_quality(source) else ():
        yield replace(spec, kind="task", task=task, needs=needs)
    for grid in _timed(sweep, variant, spec):
        for repetition in range(sweep.recipe.repetitions):
            yield replace(spec, kind="performance", throughput=grid, repetition=repetition)


def _converted(runtime: Engine[Any], source: SourceModel, variant: Variant) -> bool:
    """Whether an unquantized variant must first be written in the engine's own form."""
    if runtime.convert is None or TRANSFORMERS_FORMAT in runtime.reads or variant.ref.stage != "none":
        return False
    as_it_is = variant.method.run_dtype(variant.params, source.ref.dtype) == source.ref.dtype
    return not (as_it_is and source_format(source.ref) in runtime.reads and source.ref.degrid is None)


def _timed(sweep: _Sweep, variant: Variant, spec: RunSpec) -> Iterator[ThroughputWorkload | None]:
    """What performance runs time: the grid in each decode mode, or nothing where only memory is measured."""
    if spec.throughput is not None:
        for mode in sweep.recipe.decode_mode:
            if spec.is_baseline or not excluded(
                sweep.recipe, variant, spec.model.label, spec.engine, spec.kv_cache, mode
            ):
                yield replace(spec.throughput, decode_mode=mode)
    elif spec.memory and spec.perplexity is None:
        yield None


def _has_quality(source: SourceModel) -> bool:
    """Random weights have none."""
    return source.ref.kind != "synthetic"


def _base_spec(sweep: _Sweep, source: SourceModel, engine: str) -> RunSpec:
    """What all runs of one model on one engine share."""
    recipe, base = sweep.recipe, sweep.base
    measure = recipe.measure
    return RunSpec(
        kind="quality",
        recipe=recipe.name,
        model=source.ref,
        method=base.ref,
        baseline=base.ref,
        engine=engine,
        scope=recipe.scope.quantize,
        skip=recipe.scope.skip,
        overrides=recipe.scope.overrides,
        calibration=sweep.calibration,
        allow_leak=sweep.allow_leak,
        perplexity=sweep.texts[0] if sweep.texts and _has_quality(source) else None,
        divergence=measure.divergence is not None,
        throughput=ThroughputWorkload(**measure.throughput.model_dump()) if measure.throughput else None,
        memory=measure.memory is not None,
        budget_bytes=measure.memory.budget if measure.memory else None,
        energy=measure.energy is not None,
        price=Price(**recipe.price.model_dump()) if recipe.price else None,
        gates=thresholds(recipe),
        limits=Limits(recipe.limits.time, recipe.limits.memory),
        device=sweep.machine.device,
        threads=recipe.threads,
        attention=recipe.attention,
        seed=recipe.seed,
        hardware=sweep.machine.hardware,
    )


def _source(recipe: Recipe, index: int) -> SourceModel:
    try:
        return inspect(recipe.models[index], recipe.folder_of(("models", index, "id")))
    except SourceError as error:
        raise recipe.error(("models", index, "id"), str(error)) from None


def _engine(recipe: Recipe, index: int) -> str:
    try:
        return registry.engine(recipe.engines[index]).name
    except UsageError as error:
        raise recipe.error(("engines", index), str(error)) from None


def _weight_bytes(source: SourceModel, variant: Variant) -> int | None:
    """Estimated bytes of the loaded weights; None where the model's shapes are not known yet."""
    if not source.matrices:
        return None
    plain = DTYPE_BITS.get(variant.method.run_dtype(variant.params, source.ref.dtype), 16.0)
    leaves = variant.method.leaves_experts(source.model_type)
    left = [shape for name, shape in source.matrices.items() if leaves and holds_experts(name, len(shape))]
    covered = [shape for name, shape in source.matrices.items() if not (leaves and holds_experts(name, len(shape)))]
    decoder = quantized(variant.method, variant.params, plain, covered)
    others = source.other_parameters + sum(map(math.prod, left))
    return int(decoder.memory + decoder.modules + plain_bytes(others, plain))
