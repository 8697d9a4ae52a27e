"""Turns a recipe into the ordered runs of a sweep. Reads headers and hashes files; loads and writes nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from harness import plugins as registry
from harness.core.engine import Engine, refuses_nothing
from harness.core.format import GGUF_FORMAT, TRANSFORMERS_FORMAT, source_format
from harness.core.identity import DecodeMode, KvCache, Residency, Scalar
from harness.core.inputs import Input
from harness.core.job import (
    AnswerTask,
    Conditions,
    ConvertModel,
    Job,
    KeepProbe,
    MakeCalibration,
    MakeReference,
    MeasureMachine,
    MeasurePerformance,
    MeasureQuality,
    MeasureServing,
    PrepareModel,
    QuantizeModel,
    WriteText,
)
from harness.core.model import MAIN_ENGINE, Attention
from harness.core.run import HourlyPrice, ReaderSettings, RunLimits, RunSpec
from harness.core.site import MAIN, Machine, Site
from harness.core.variant import Variant
from harness.core.workload import (
    CalibrationRef,
    MetricRef,
    PerplexityWorkload,
    ServingWorkload,
    TaskWorkload,
    TextRef,
    ThroughputWorkload,
)
from harness.errors import SourceError
from harness.models.memory import DTYPE_BITS, Quantized, plain_bytes, quantized
from harness.models.published import becomes_dense, quantization_config
from harness.models.scope import holds_experts
from harness.models.shapes import ModelSize, attention_of, size_of
from harness.models.sources import SourceModel, inspect
from harness.planning import workloads
from harness.planning.evidence import validate_evidence
from harness.planning.exclude import excluded, validate_exclude
from harness.planning.expand import EngineChoice, MethodChoice, baseline, choices, engine_choices
from harness.planning.peaks import WIDE_BYTES, ModelLoad, converting_peak_bytes, peak_bytes
from harness.planning.residency import Residence, Wanted, overfull_elsewhere, place, room
from harness.planning.support import (
    Combination,
    Reason,
    in_scope,
    refusal,
    too_large,
    unpacking_note,
    unsupported_engine_reason,
    unsupported_job_reason,
    unsupported_reason,
)
from harness.planning.validate import (
    reject_duplicates,
    thresholds,
    validate_calibration,
    validate_devices,
    validate_engines,
    validate_measure,
    validate_scope,
)
from harness.planning.versions import environment
from harness.recipe import Recipe
from harness.storage.checksums import hash_file
from harness.tasks.trust import definition

MAX_RUNS = 5000
"""Measuring runs of one plan, counted before ``exclude`` and what is unsupported are taken from them."""


LOGIT_COPIES = 3
"""Logits in float32, their logarithms, and those of the reference."""
LIBRARY_BYTES = 2**30
"""What torch and the other libraries take at most."""

Measuring = MeasureQuality | AnswerTask | MeasurePerformance | MeasureServing
Loading = KeepProbe | WriteText | MakeReference | QuantizeModel | Measuring
LoadingJob = TypeVar("LoadingJob", bound=Loading)


@dataclass(frozen=True)
class PlannedRun:
    """A run, the estimated size of its weights, and the reason why it is unsupported (None if it is supported).

    ``peak_bytes`` is about the most memory that it needs, and ``memory_bytes`` what there is for it, 0 if that is not
    known. ``note`` is what its user should know before it runs. ``inputs`` are the user's files that its figures depend
    on, as they were when hashed. ``size`` is the model's, None if it is not known yet; ``checkpoint_bytes`` is the
    estimated size of the checkpoint that the run writes.
    """

    spec: RunSpec
    weight_bytes: int | None = None
    reason: Reason | None = None
    inputs: tuple[Input, ...] = ()
    note: str | None = None
    size: ModelSize | None = None
    checkpoint_bytes: int = 0
    peak_bytes: int | None = None
    memory_bytes: int = 0

    @property
    def unsupported(self) -> str | None:
        """The reason as a sentence."""
        return None if self.reason is None else str(self.reason)

    @property
    def needed_bytes(self) -> int:
        """What it may need of a CPU's memory that others use too: its limit, or else two copies of it in float32.

        A run whose model's size is not known yet may need everything.
        """
        limit_bytes = self.spec.limits.memory_bytes
        if limit_bytes is not None:
            return limit_bytes
        if self.size is None:
            return sys.maxsize
        logits = LOGIT_COPIES * self.spec.job.longest_tokens * self.size.vocabulary
        return WIDE_BYTES * (2 * self.size.parameters + logits) + LIBRARY_BYTES


@dataclass(frozen=True)
class _Resolved:
    """A recipe with its names looked up: what to run for each of its models on each of its engines."""

    recipe: Recipe
    site: Site
    machine: Machine
    allow_leak: bool
    base: MethodChoice
    methods: Sequence[MethodChoice]
    texts: tuple[PerplexityWorkload, ...]
    tasks: tuple[TaskWorkload, ...]
    observers: tuple[MetricRef, ...]
    workloads: tuple[MetricRef, ...]
    calibration: CalibrationRef | None
    serving: ServingWorkload | None
    inputs: _Inputs

    @property
    def conditions(self) -> Conditions:
        """Of a process that loads no model with an engine."""
        recipe = self.recipe
        memory = recipe.measure.memory is not None
        return Conditions(self.machine.device, recipe.threads, recipe.attention, memory, devices=recipe.devices)

    @property
    def _memory_limit(self) -> int | None:
        """Of the host's memory. On a GPU it has never been tried, so that only ``device: cuda`` turns it on there."""
        wanted = self.machine.device == "cpu" or self.recipe.device == "cuda"
        return self.recipe.limits.memory if wanted else None

    def place(self, load: ModelLoad, in_parts: bool = False) -> Residence:
        """Whether a run has its model in memory as a whole, which one that works only ``in_parts`` never has."""
        wanted: Wanted = "streamed" if in_parts else self.recipe.residency
        return place(wanted, load, room(self.machine, load.job.conditions, self._memory_limit))

    def overfull(self, load: ModelLoad) -> str | None:
        """Why memory cannot hold what an engine other than the main one loads; None if it may do."""
        return overfull_elsewhere(load, room(self.machine, load.job.conditions, self._memory_limit))

    def memory_bytes(self, job: Job) -> int:
        """What a run has in all; 0 if it is not known."""
        return room(self.machine, job.conditions, self._memory_limit).all_bytes

    def weight_bytes(self, source: SourceModel, method: MethodChoice, runtime: Engine[Any]) -> int | None:
        """Estimated bytes of the weights that an engine loads; None if they are not known yet.

        Codes of a checkpoint that was published quantized take what its files do, unless transformers unpacks them,
        and a GGUF file that the engine reads as it is what it does itself.
        """
        loaded = method.checkpoint or source
        if method.ref.stage in ("none", "published") and _is_read_as_gguf(loaded, method, runtime):
            return loaded.stored_bytes or None
        if loaded.quantization is None:
            return _weight_bytes(loaded, method, self.machine.device, self.skip(method))
        stored = quantization_config(Path(loaded.ref.path))
        if runtime.name != MAIN_ENGINE or not becomes_dense(stored, self.machine, self.site):
            return loaded.stored_bytes or None
        parameters = source.decoder_parameters + source.other_parameters
        return int(plain_bytes(parameters, _plain_bits(source, method))) or None

    def skip(self, method: MethodChoice) -> tuple[str, ...]:
        """What the recipe has a method leave unquantized."""
        return self.recipe.scope.skip if method.ref.stage in ("on_load", "offline") else ()

    def conditions_on(self, choice: EngineChoice) -> Conditions:
        """Of a process that loads a model with an engine."""
        on_gpu = self.machine.device == "cuda"
        gpus = choice.engine.gpus(choice.params, self.recipe.devices) if on_gpu else 1
        return replace(self.conditions, gpus=gpus, memory=self.conditions.memory and not choice.engine.remote)

    def run(
        self, job: Job, method: MethodChoice, made: Mapping[str, str], stack: str = MAIN, repetition: int = 0
    ) -> PlannedRun:
        """A job as a run of this sweep. ``made`` maps kinds to the ids of the runs whose artifacts it may read."""
        recipe = self.recipe
        spec = RunSpec(
            recipe=recipe.name,
            job=job,
            environment=environment(job, method, self.machine, self.site, stack, repetition),
            needs={kind: made[kind] for kind in job.needs if kind in made},
            limits=RunLimits(recipe.limits.time, self._memory_limit),
            readers=_reader_settings(recipe, job),
        )
        return PlannedRun(spec, inputs=self.inputs.of(job), memory_bytes=self.memory_bytes(job))


def plan(
    recipe: Recipe,
    site: Site,
    allow_leak: bool = False,
    models: Sequence[SourceModel] | None = None,
) -> tuple[PlannedRun, ...]:
    """The runs in the order in which they execute at a site.

    Prepare, calibration and reference runs come first, then each variant's quantization and quality, then performance
    with the variants interleaved and the repetitions outermost, so that a machine that slows down affects all variants.
    ``allow_leak`` lets calibration overlap the evaluation text. ``models`` are the recipe's as they were found before,
    so that their files are not hashed again.
    Raises RecipeError for what no model could use, and UsageError for a device that the site lacks. What this model or
    this site cannot use is planned as unsupported. The servers that a recipe names are not asked: see ``servers``.
    """
    machine = site.machine(recipe.device)
    validate_devices(recipe.devices, machine)
    sources = models or [_source(recipe, index) for index in range(len(recipe.models))]
    reject_duplicates(recipe, sources)
    engines = engine_choices(recipe)
    validate_measure(recipe)
    base = baseline(recipe)
    methods = choices(recipe, base)
    texts = workloads.perplexities(recipe)
    calibration = workloads.calibration(recipe, texts, allow_leak)
    tasks = workloads.tasks(recipe)
    serving = workloads.serving(recipe)
    validate_evidence(recipe, texts, serving)
    observers, measured = workloads.plugin_metrics(recipe)
    validate_engines(recipe, [choice.engine for choice in engines], methods)
    validate_calibration(recipe, methods)
    validate_scope(recipe, sources, methods)
    _validate_runs(recipe, len(sources) * len(engines) * len(methods), len(texts) + len(tasks))
    validate_exclude(recipe, methods, [source.ref.label for source in sources], engines)
    checkpoints = [method.checkpoint for method in methods if method.checkpoint is not None]
    known = _Inputs({source.ref.path: source.files for source in (*sources, *checkpoints) if source.files})
    sweep = _Resolved(
        recipe, site, machine, allow_leak, base, methods, texts, tasks, observers, measured, calibration, serving, known
    )
    planned = [run for source in sources for run in _OfModel(sweep, source, engines).runs()]
    if not any(run.spec.job.measures_variant for run in planned):
        raise recipe.error(
            ("measure",), "nothing is left to run: random weights have no quality, only speed and memory"
        )
    once = _once([*_machine(sweep, planned), *planned])
    return _without_use(sorted(once, key=lambda run: run.spec.job.turn + run.spec.repetition))


def _once(planned: Sequence[PlannedRun]) -> Iterable[PlannedRun]:
    """Each run once. Engines share some, and one that an engine has no use for runs if another engine needs it."""
    once: dict[str, PlannedRun] = {}
    for run in planned:
        known = once.setdefault(run.spec.run_id, run)
        if known.unsupported and not run.unsupported:
            once[run.spec.run_id] = run
    return once.values()


def _without_use(planned: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """The same runs in their order: one that only unsupported runs need is unsupported, for the first one's reason."""
    reasons: dict[str, list[Reason | None]] = {}  # of the runs that need each, the last first
    runs: list[PlannedRun] = []
    for run in reversed(planned):
        readers = reasons.get(run.spec.run_id, [None])
        reason = run.reason or (None if None in readers else readers[-1])
        for needed in run.spec.needs.values():
            reasons.setdefault(needed, []).append(reason)
        runs.append(replace(run, reason=reason))
    return tuple(reversed(runs))


def _validate_runs(recipe: Recipe, variants: int, questions: int) -> None:
    """Raises RecipeError for too many runs; ``questions`` are the texts and tasks that each variant gets."""
    rows = variants * len(recipe.kv_cache)
    timed = (len(recipe.decode_mode) + (recipe.measure.serving is not None)) * recipe.repetitions
    runs = rows * (questions + timed)
    if runs > MAX_RUNS:
        raise recipe.error(
            (),
            f"plans {runs} runs: {rows} variants × ({questions} texts and tasks + {timed} repetitions), and the limit "
            f"is {MAX_RUNS}; list fewer values or repetitions, or divide it into several recipes",
        )


def _machine(sweep: _Resolved, planned: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """The run that measures the machine, once, if any speed needs a bound.

    No run depends on it: if it fails, speeds are still measured but have no bound.
    """
    if any(run.spec.throughput is not None and not run.unsupported for run in planned):
        conditions = Conditions(sweep.conditions.device, sweep.conditions.threads, memory=False)
        yield sweep.run(MeasureMachine(conditions), sweep.base, {})


def _reader_settings(recipe: Recipe, job: Job) -> ReaderSettings:
    """The recipe's reader settings that apply to the job's figures."""
    memory = recipe.measure.memory
    settings = {
        "budget_bytes": memory.budget if memory else None,
        "price": hourly_price(recipe),
        "gates": thresholds(recipe),
    }
    return ReaderSettings(**{name: settings[name] for name in job.reader_settings})  # type: ignore[arg-type]


def hourly_price(recipe: Recipe) -> HourlyPrice | None:
    """The recipe's price of the machine, if it names one."""
    return HourlyPrice(**recipe.price.model_dump()) if recipe.price else None


@dataclass(frozen=True)
class _Inputs:
    """Hashed inputs by path: models from the start, texts and tasks when first used."""

    known: dict[str, Input]

    def of(self, job: Job) -> tuple[Input, ...]:
        """The inputs that a job depends on, including through the runs that it needs."""
        return (
            *(self.known[model.path] for model in job.models if model.path in self.known),
            *(self._task(task) for task in job.tasks if task.own is not None),
            *(self._text(text) for text in job.texts if text.path is not None),
        )

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


@dataclass(frozen=True)
class _Shared:
    """The runs of one model on one engine that several variants need."""

    prepare: PlannedRun | None = None
    calibrate: PlannedRun | None = None
    probe: PlannedRun | None = None
    written: Mapping[PerplexityWorkload, PlannedRun] = field(default_factory=dict)
    references: Mapping[PerplexityWorkload, PlannedRun] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        single = (self.prepare, self.calibrate, self.probe)
        return (*(run for run in single if run is not None), *self.written.values(), *self.references.values())

    def before(self, text: PerplexityWorkload | None) -> Mapping[str, PlannedRun]:
        """The runs that must come before a text is scored, by kind."""
        found = {"write": self.written, "reference": self.references}
        return {kind: runs[text] for kind, runs in found.items() if text is not None and text in runs}


@dataclass(frozen=True)
class _OfModel:
    """One model on all engines, which share its artifacts and what these need."""

    sweep: _Resolved
    source: SourceModel
    choices: Sequence[EngineChoice]

    def runs(self) -> Iterator[PlannedRun]:
        """The runs that several variants need, then each engine's own."""
        engines = [_OnEngine(self.sweep, self.source, choice) for choice in self.choices]
        methods = [each for on in engines for each in on.methods]
        shared = self._shared([each for each in methods if not each.unsupported])
        yield from shared.runs
        for each in methods:
            yield from each.runs(shared)

    def _shared(self, supported: Sequence[_OfMethod]) -> _Shared:
        """The runs that the supported variants need."""
        sweep, model, conditions = self.sweep, self.source.ref, self.sweep.conditions
        main = registry.engine(MAIN_ENGINE)
        on_main = sweep.conditions_on(EngineChoice(main, main.params()))
        prepare = self._shared_run(PrepareModel(conditions, model), {}) if model.needs_preparing else None
        made = {"prepare": prepare.spec.run_id} if prepare else {}
        calibrate = probe = None
        if sweep.calibration is not None and any(each.choice.calibrated for each in supported):
            existing = tuple(text for text in sweep.texts if text.generation is None)
            job = MakeCalibration(conditions, model, sweep.calibration, existing, sweep.allow_leak)
            calibrate = self._shared_run(job, made)
        if any(each.needs_probe for each in supported):
            probe = self._shared_run(KeepProbe(on_main, model), made)
        base = Variant(model, sweep.base.ref, MAIN_ENGINE, sweep.recipe.scope.quantize, seed=sweep.recipe.seed)
        texts = sweep.texts if _has_quality(self.source) else ()
        written = {
            text: self._shared_run(WriteText(on_main, base, sweep.base.ref, text), made)
            for text in texts
            if text.generation is not None
        }
        references: dict[PerplexityWorkload, PlannedRun] = {}
        for text in texts if sweep.recipe.measure.divergence is not None else ():
            write = written.get(text)
            needed = made | ({"write": write.spec.run_id} if write else {})
            reference = MakeReference(on_main, base, sweep.base.ref, text)
            references[text] = self._shared_run(reference, needed, write.reason if write else None)
        return _Shared(prepare, calibrate, probe, written, references)

    @cached_property
    def _weight_bytes(self) -> int | None:
        """Of the baseline on the main engine."""
        return self.sweep.weight_bytes(self.source, self.sweep.base, registry.engine(MAIN_ENGINE))

    def _shared_run(self, job: Job, made: Mapping[str, str], unwritten: Reason | None = None) -> PlannedRun:
        """``unwritten`` is why the text that it reads cannot be written."""
        reason = unwritten or self.source.degrid_obstacle or _too_long(self.source, job)
        weight_bytes = self._weight_bytes
        main, note = registry.engine(MAIN_ENGINE), None
        load = ModelLoad(job, self.source, self.sweep.base, main, weight_bytes)
        if isinstance(job, KeepProbe | WriteText | MakeReference):
            placed = self.sweep.place(load)
            job, note = _placed(job, placed), placed.note
            reason = reason or placed.unsupported
        written = weight_bytes or 0 if job.effort.writes_model else 0
        residency: Residency = "streamed" if isinstance(job, PrepareModel) else job.conditions.residency
        peak = peak_bytes(load, residency, self.sweep.memory_bytes(job)) if job.effort.loads else None
        return _with_peak(
            self.sweep.run(job, self.sweep.base, made),
            peak,
            reason=reason,
            note=note,
            size=size_of(self.source),
            weight_bytes=weight_bytes,
            checkpoint_bytes=written,
        )


@dataclass(frozen=True)
class _OnEngine:
    """One model on one engine."""

    sweep: _Resolved
    source: SourceModel
    choice: EngineChoice

    @property
    def engine(self) -> Engine[Any]:
        return self.choice.engine

    @cached_property
    def methods(self) -> tuple[_OfMethod, ...]:
        """The methods whose results the engine reads, without those that the recipe excludes."""
        found = (_OfMethod(self, method) for method in self.sweep.methods if method.runs_on(self.engine))
        return tuple(each for each in found if each.is_base or not each.is_excluded())

    @cached_property
    def size(self) -> ModelSize | None:
        return size_of(self.source)

    @cached_property
    def attention(self) -> Attention | None:
        """The model's attention, read only if the engine may refuse something."""
        return None if self.engine.refuses is refuses_nothing else attention_of(self.source)


@dataclass(frozen=True)
class _PlacedJob:
    """A run that measures a variant, what it loads, and where it has that."""

    job: Measuring
    load: ModelLoad
    residence: Residence

    @property
    def is_streamed(self) -> bool:
        return self.residence.residency == "streamed"


@dataclass(frozen=True)
class _OfMethod:
    """One method on one engine: making its artifact, and measuring its variants."""

    on: _OnEngine
    choice: MethodChoice

    @property
    def sweep(self) -> _Resolved:
        return self.on.sweep

    @property
    def source(self) -> SourceModel:
        return self.on.source

    @property
    def engine(self) -> Engine[Any]:
        return self.on.engine

    @property
    def is_base(self) -> bool:
        return self.choice.ref.identity == self.sweep.base.ref.identity

    def is_excluded(self, kv_cache: KvCache | None = None, mode: DecodeMode | None = None) -> bool:
        return excluded(self.sweep.recipe, self.choice, self.source.ref.label, self.on.choice, kv_cache, mode)

    @property
    def _combination(self) -> Combination:
        sweep = self.sweep
        return Combination(self.source, self.choice, self.on.choice, sweep.site, sweep.machine, sweep.recipe.scope)

    @cached_property
    def unsupported(self) -> Reason | None:
        """Why nothing of it can be measured on the engine."""
        return (
            unsupported_engine_reason(self.engine, self.sweep.site)
            or unsupported_reason(self._combination)
            or refusal(self._combination, self.on.attention)
        )

    @cached_property
    def is_converted(self) -> bool:
        """Whether an unquantized variant must first be converted to the engine's own format."""
        return _is_converted(self.source, self.choice, self.engine)

    @property
    def needs_probe(self) -> bool:
        """Whether what another environment makes of the model is compared with what this one reads."""
        return self.choice.method.stack != MAIN or self.is_converted

    @cached_property
    def _weight_bytes(self) -> int | None:
        """Of the loaded variant; None on a server."""
        return None if self.engine.remote else self.sweep.weight_bytes(self.source, self.choice, self.engine)

    @cached_property
    def _note(self) -> str | None:
        return None if self.engine.remote else unpacking_note(self._combination)

    def runs(self, shared: _Shared) -> Iterator[PlannedRun]:
        """Making the artifact, then measuring its variants with each key-value cache."""
        unsupported = self.unsupported
        made = {"prepare": shared.prepare.spec.run_id} if shared.prepare else {}
        if self.choice.calibrated and shared.calibrate is not None:
            made |= {"calibrate": shared.calibrate.spec.run_id}
            unsupported = unsupported or shared.calibrate.reason
        if self.needs_probe and shared.probe is not None:
            made |= {"probe": shared.probe.spec.run_id}
            unsupported = unsupported or shared.probe.reason
        measured = [
            (self._placed_job(job), repetition)
            for kv_cache in self._caches()
            for job, repetition in self._measurements(kv_cache)
        ]
        if self._quantizes_apart(each for each, _ in measured):
            quantize = self._quantize(made, unsupported)
            yield quantize
            made |= {"quantize": quantize.spec.run_id}
        if self.is_converted and shared.probe is not None:
            convert = self._convert(made, unsupported)
            yield convert
            made |= {"convert": convert.spec.run_id}
        for each, repetition in measured:
            job = each.job
            before = shared.before(job.perplexity if isinstance(job, MeasureQuality) else None)
            needed = made | {kind: run.spec.run_id for kind, run in before.items()}
            unwritten = before["write"].reason if "write" in before else None
            yield self._measure(each, repetition, needed, unsupported or unwritten)

    def _placed_job(self, job: Measuring) -> _PlacedJob:
        params = self.on.choice.params
        load = ModelLoad(job, self.source, self.choice, self.engine, self._weight_bytes, engine_params=params)
        return _PlacedJob(job, load, self.sweep.place(load))

    def _quantizes_apart(self, measured: Iterable[_PlacedJob]) -> bool:
        """Whether it is quantized in a run of its own.

        A method that quantizes while loading is where a streamed run would do so in each pass, and its library can save
        what it makes. Other runs of it quantize while they load.
        """
        if self.choice.ref.stage != "on_load":
            return self.choice.ref.stage == "offline"
        unsaved = self.choice.method.unsaved(self.choice.params, self.sweep.machine.device)
        return unsaved is None and any(each.is_streamed for each in measured)

    def _quantize(self, made: Mapping[str, str], unsupported: Reason | None) -> PlannedRun:
        sweep, choice, device = self.sweep, self.choice, self.sweep.machine.device
        job = QuantizeModel(sweep.conditions, self._variant("model", self._artifacts_engine), sweep.base.ref)
        source_bytes = _weight_bytes(self.source, sweep.base, device)
        written = _checkpoint_bytes(self.source, choice, device, sweep.skip(choice))
        load = ModelLoad(job, self.source, choice, registry.engine(MAIN_ENGINE), source_bytes, written)
        placed = sweep.place(load, in_parts=choice.ref.stage == "on_load")
        return _with_peak(
            self._run(_placed(job, placed), made, choice.method.stack),
            peak_bytes(load, placed.residency, sweep.memory_bytes(job)),
            reason=unsupported or placed.unsupported,
            note=placed.note,
            checkpoint_bytes=written,
        )

    def _convert(self, made: Mapping[str, str], unsupported: Reason | None) -> PlannedRun:
        sweep = self.sweep
        job = ConvertModel(sweep.conditions, self._variant("model", self.engine.name), sweep.base.ref)
        load = ModelLoad(job, self.source, self.choice, self.engine, self._weight_bytes)
        return _with_peak(
            self._run(job, made, self.engine.stack),
            converting_peak_bytes(load),
            note=None,
            reason=unsupported or sweep.overfull(load) or unsupported_job_reason(job, self.engine, sweep.site),
            checkpoint_bytes=self._weight_bytes or 0,
        )

    def _measure(
        self, measured: _PlacedJob, repetition: int, made: Mapping[str, str], unsupported: Reason | None
    ) -> PlannedRun:
        sweep, weight_bytes, residence = self.sweep, self._weight_bytes, measured.residence
        job = _placed(measured.job, residence)
        if self.choice.ref.stage == "on_load" and not measured.is_streamed:
            made = {kind: run for kind, run in made.items() if kind != "quantize"}
        reason = (
            unsupported
            or residence.unsupported
            or (None if measured.is_streamed else too_large(weight_bytes, job.conditions, self.engine, sweep.machine))
            or unsupported_job_reason(job, self.engine, sweep.site)
            or _too_long(self.source, job)
            or refusal(self._combination, self.on.attention, job)
        )
        return _with_peak(
            self._run(job, made, self.engine.stack, repetition),
            peak_bytes(measured.load, residence.residency, sweep.memory_bytes(job)),
            reason=reason,
            note="; ".join(filter(None, (self._note, residence.note, _energy_note(job)))) or None,
        )

    def _run(self, job: Job, made: Mapping[str, str], stack: str, repetition: int = 0) -> PlannedRun:
        run = self.sweep.run(job, self.choice, made, stack, repetition)
        return replace(run, weight_bytes=self._weight_bytes, size=self.on.size)

    def _measurements(self, kv_cache: KvCache) -> Iterator[tuple[Measuring, int]]:
        """The measuring jobs of a variant, each with its repetition."""
        sweep, measure = self.sweep, self.sweep.recipe.measure
        leak = sweep.allow_leak and self.choice.calibrated
        variant = self._variant(kv_cache, self.engine.name, self.on.choice.changed)
        of = (sweep.conditions_on(self.on.choice), variant, sweep.base.ref)
        verify = not (sweep.texts and _has_quality(self.source))
        for text in sweep.texts if _has_quality(self.source) else ():
            yield MeasureQuality(*of, text, measure.divergence is not None, leak, sweep.observers), 0
        for task in sweep.tasks if _has_quality(self.source) else ():
            yield AnswerTask(*of, task, leak, verify), 0
        for grid in self._grids(kv_cache):
            for repetition in range(sweep.recipe.repetitions):
                yield MeasurePerformance(*of, grid, measure.energy is not None, verify, sweep.workloads), repetition
        if sweep.serving is not None:
            conditions, variant, base = of
            apart = replace(conditions, memory=False)  # the server is another process than that of the run
            for repetition in range(sweep.recipe.repetitions):
                yield MeasureServing(apart, variant, base, sweep.serving, measure.energy is not None), repetition

    def _grids(self, kv_cache: KvCache) -> Iterator[ThroughputWorkload | None]:
        """What performance runs time: the grid in each decode mode, or None if only memory or plugins measure."""
        measure = self.sweep.recipe.measure
        if measure.throughput is not None:
            for mode in self.sweep.recipe.decode_mode:
                if (self.is_base and kv_cache == "model") or not self.is_excluded(kv_cache, mode):
                    yield ThroughputWorkload(**measure.throughput.model_dump(), decode_mode=mode)
        elif self.sweep.workloads or (self._shows_memory and not (self.sweep.texts and _has_quality(self.source))):
            yield None

    @property
    def _shows_memory(self) -> bool:
        """Whether the recipe asks for memory and the engine has the model where it can be measured."""
        return self.sweep.recipe.measure.memory is not None and not self.engine.remote

    def _caches(self) -> tuple[KvCache, ...]:
        """The key-value caches that the method is measured with. The baseline always includes the model's own."""
        wanted = tuple(each for each in self.sweep.recipe.kv_cache if not self.is_excluded(each))
        return tuple(dict.fromkeys(("model", *wanted))) if self.is_base else wanted

    @property
    def _artifacts_engine(self) -> str:
        """The engine that an artifact's runs name: one for all that read it, so that it is made once."""
        return MAIN_ENGINE if self.choice.runs_on(registry.engine(MAIN_ENGINE)) else self.engine.name

    def _variant(self, kv_cache: KvCache, engine: str, engine_params: Mapping[str, Scalar] | None = None) -> Variant:
        """Pass ``engine_params`` only for jobs that run on the engine: artifacts are shared by all of its settings."""
        recipe = self.sweep.recipe
        scoped = self.choice.ref.stage in ("on_load", "offline")
        return Variant(
            model=self.source.ref,
            method=self.choice.ref,
            engine=engine,
            scope=recipe.scope.quantize,
            skip=self.sweep.skip(self.choice),
            overrides=recipe.scope.overrides if scoped else {},
            calibration=self.sweep.calibration if self.choice.calibrated else None,
            kv_cache=kv_cache,
            seed=recipe.seed,
            engine_params=engine_params or {},
        )


def _with_peak(run: PlannedRun, peak: int | None, note: str | None, **changes: Any) -> PlannedRun:
    """The run with its peak, and with a note if that is more than the memory there is; the peak is only estimated."""
    have = run.memory_bytes
    if peak is not None and have and peak > have:
        tight = f"it may run out of memory: about {peak / 2**30:.1f} GiB of {have / 2**30:.1f} GiB"
        note = "; ".join(filter(None, (note, tight)))
    return replace(run, peak_bytes=peak, note=note, **changes)


def _energy_note(job: Job) -> str | None:
    obstacle = job.energy_obstacle if isinstance(job, MeasureServing) else None
    return obstacle and f"without its energy: {obstacle}"


def _placed(job: LoadingJob, residence: Residence) -> LoadingJob:
    """The job where its model is."""
    return replace(job, conditions=replace(job.conditions, residency=residence.residency))


def _too_long(source: SourceModel, job: Job) -> str | None:
    """Why a job's workload does not fit the model's context; None if it fits."""
    limit = source.context_length
    return job.exceeds(limit) if limit is not None else None


def _has_quality(source: SourceModel) -> bool:
    """Whether quality can be measured: random weights have none."""
    return source.ref.kind != "synthetic"


def _source(recipe: Recipe, index: int) -> SourceModel:
    try:
        return inspect(recipe.models[index], recipe.folder_of(("models", index, "id")))
    except SourceError as error:
        raise recipe.error(("models", index, "id"), str(error)) from None


def _is_converted(source: SourceModel, method: MethodChoice, engine: Engine[Any]) -> bool:
    if engine.convert is None or TRANSFORMERS_FORMAT in engine.reads or method.ref.stage != "none":
        return False
    model = source.ref
    as_it_is = method.method.run_dtype(method.params, model.dtype) == model.dtype
    return not (as_it_is and source_format(model) in engine.reads and not model.altered)


def _is_read_as_gguf(loaded: SourceModel, method: MethodChoice, engine: Engine[Any]) -> bool:
    is_gguf = source_format(loaded.ref) == GGUF_FORMAT and GGUF_FORMAT in engine.reads
    return is_gguf and not _is_converted(loaded, method, engine)


def _weight_bytes(source: SourceModel, method: MethodChoice, device: str, skip: tuple[str, ...] = ()) -> int | None:
    """Estimated bytes of the loaded weights; None if the model's shapes are not known yet."""
    if not source.matrices:
        return None
    decoder, others = _estimated(source, method, device, skip)
    return int(decoder.memory + decoder.modules + others)


def _checkpoint_bytes(source: SourceModel, method: MethodChoice, device: str, skip: tuple[str, ...]) -> int:
    """Estimated bytes of the checkpoint that the method writes; 0 if the model's shapes are not known yet."""
    if not source.matrices:
        return 0
    decoder, others = _estimated(source, method, device, skip)
    return int(decoder.disk + others)


def _estimated(
    source: SourceModel, method: MethodChoice, device: str, skip: tuple[str, ...]
) -> tuple[Quantized, float]:
    """The matrices that the method quantizes, and the bytes of all other weights."""
    plain = _plain_bits(source, method)
    leaves = method.method.leaves_experts(source.model_type)
    scope = in_scope(source, skip)
    covered = [shape for name, shape in scope.items() if not (leaves and holds_experts(name, len(shape)))]
    others = source.other_parameters + source.decoder_parameters - sum(map(math.prod, covered))
    return quantized(method.method, method.params, plain, covered, device), plain_bytes(others, plain)


def _plain_bits(source: SourceModel, method: MethodChoice) -> float:
    """Of an unquantized weight in the dtype that the method runs in."""
    return DTYPE_BITS.get(method.method.run_dtype(method.params, source.ref.dtype), 16.0)
