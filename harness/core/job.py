"""Job: what one run does. One frozen type per kind of run declares everything that other modules need to know about it.

To add a kind of run:

1. Add a class with its own ``kind`` here and to the union ``Job``. Derive it from ``ModelJob`` (shared by several
   variants) or ``VariantJob`` (for one variant), hold only what the run needs, and override the declarations of
   ``BaseJob`` that differ.
2. Add ``harness/execution/jobs/<kind>.py`` with a function ``run(job, context, out)`` for the worker. It may return a
   ``Later``: what it measures once its artifact is published.
3. Yield it in ``harness/planning/plan.py``.

Everything else asks the job: its order in the sweep, the versions and packages its figures depend on, whether its
artifact is cached, whether a table shows it. No other module lists the kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import truediv
from typing import Any, ClassVar, Literal, get_args

from harness.core.capability import Capability
from harness.core.effort import JobEffort
from harness.core.identity import DecodeMode, Residency, Scalar
from harness.core.json_values import ABSENT_AT_DEFAULT
from harness.core.model import MAIN_ENGINE, MethodRef, ModelRef, model_identity
from harness.core.variant import Variant
from harness.core.workload import (
    ANSWERS_AT_ONCE,
    CalibrationRef,
    GridCell,
    MetricRef,
    PerplexityWorkload,
    ServingWorkload,
    TaskWorkload,
    TextRef,
    ThroughputWorkload,
    text_identity,
)

PROBED_TOKENS = 512
"""About how many tokens the checks of a loaded variant read."""
TYPICAL_QUESTIONS, QUESTION_TOKENS = 1000, 300
"""Of a task whose size is not known before it runs; the tokens are those of all of a question's answers."""
TYPICAL_PROMPT = 100
"""Tokens of a prompt whose length is that of a text's row."""
MACHINE_S = 10.0
"""About how long the bursts of ``harness.metrics.machine`` take."""


@dataclass(frozen=True)
class Conditions:
    """How a process runs: its device, CPU threads (None: the library's choice), attention implementation
    (None: the engine's choice), whether its memory is measured, and how many GPUs it gets if its device is one.

    ``devices`` is the recipe's: over how many GPUs a model is spread. ``gpus`` follows from it and from the engine.
    ``residency`` is no part of an id: a streamed model's results are those of the same model loaded whole.
    """

    device: str = "cpu"
    threads: int | None = None
    attention: str | None = None
    memory: bool = True
    gpus: int = 1
    devices: int = 1
    residency: Residency = field(default="resident", metadata=ABSENT_AT_DEFAULT)


@dataclass(frozen=True)
class Environment:
    """Where and with which software a job runs, and its repetition: what a run id adds to a case id.

    ``lock`` is a digest of the installed packages that the run depends on. ``versions`` are those of the parts of the
    harness, the metrics and the engine; ``method_version`` is the method's, 0 without a method. ``stack`` names the
    interpreter and is not part of the id.
    """

    stack: str = "main"
    lock: str = ""
    hardware: str = ""
    versions: Mapping[str, int] = field(default_factory=dict)
    method_version: int = 0
    repetition: int = 0


@dataclass(frozen=True)
class BaseJob:
    """What every job declares. The defaults suit a job that makes an artifact for other runs."""

    kind: str = field(kw_only=True)
    conditions: Conditions

    needs: ClassVar[tuple[str, ...]] = ()
    """Kinds of runs whose artifacts it reads if the plan has them; the first one that failed is the one reported."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Parts of the harness, other than metrics, whose versions affect the result."""
    stacks: ClassVar[tuple[str, ...]] = ()
    """Stacks, beside that which it runs in, whose programs it starts."""
    turn: ClassVar[int] = 0
    """Its position in the sweep; each repetition adds one."""
    cached: ClassVar[bool] = True
    """Whether the cache keeps its artifact or result for other sweeps."""
    repeated: ClassVar[bool] = False
    """Whether it runs once per repetition and is compared only within one session."""
    climbs: ClassVar[bool] = False
    """Whether it measures one level of load after another, the lowest first."""
    alone: ClassVar[bool] = False
    """Whether nothing else may run on the machine meanwhile, because its figures are of time."""
    row_rank: ClassVar[int | None] = None
    """Its rank among the runs that measure a row, lowest first. None: it measures no row."""
    quantizes: ClassVar[bool] = False
    """Whether the run executes the method itself, not only code that reads its result."""
    reader_settings: ClassVar[tuple[str, ...]] = ()
    """Which of the recipe's ``ReaderSettings`` apply to its figures."""

    @property
    def measures_variant(self) -> bool:
        """Whether it measures figures that a recipe's ``measure`` requests."""
        return self.row_rank is not None and not self.quantizes

    @property
    def keeps_model(self) -> bool:
        """Whether its process may go on with another run of this kind and variant, with the loaded model."""
        return False

    @property
    def question(self) -> dict[str, Any]:
        """The content that ``case_id`` hashes. Models and texts are identified by content, not by location."""
        raise NotImplementedError

    @property
    def uses(self) -> tuple[Capability, ...]:
        """The capabilities that it needs from its engine."""
        return ()

    @property
    def uses_one_of(self) -> tuple[Capability, ...]:
        """Capabilities of which it needs one, whichever; none if it is empty."""
        return ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics whose versions its figures depend on."""
        return ()

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages that it depends on in addition to those of its engine, method and model."""
        return ()

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The models whose files its result depends on."""
        return ()

    @property
    def texts(self) -> tuple[TextRef, ...]:
        """The texts that its result depends on, including through the runs that it needs."""
        return ()

    @property
    def tasks(self) -> tuple[TaskWorkload, ...]:
        """The tasks whose definitions its result depends on."""
        return ()

    @property
    def workload(self) -> str:
        """The name of what it scores; empty if it scores nothing."""
        return ""

    @property
    def decode_mode(self) -> DecodeMode:
        return "eager"

    @property
    def effort(self) -> JobEffort:
        """About how much it computes, for forecasts."""
        return JobEffort()

    def title(self, environment: Environment) -> str:
        """A short line for displays and logs."""
        raise NotImplementedError

    @property
    def longest_tokens(self) -> int:
        """The longest sequence that its engine reads and writes; 0 if it is not known before the run."""
        return 0

    @property
    def largest_batch(self) -> int:
        """The most sequences that must be decoded in step; 0 if none are."""
        return 0

    def exceeds(self, context_length: int) -> str | None:
        """Why its workload does not fit a context of this many tokens; None if it fits."""
        return None


@dataclass(frozen=True)
class MeasureMachine(BaseJob):
    """Measures the machine itself: its memory bandwidth and its matrix multiplication rate."""

    kind: Literal["machine"] = field(default="machine", kw_only=True)

    parts = ("machine",)
    alone = True

    @property
    def effort(self) -> JobEffort:
        return JobEffort(apart_s=MACHINE_S)

    @property
    def question(self) -> dict[str, Any]:
        return {"kind": self.kind, "device": self.conditions.device, "threads": self.conditions.threads}

    @property
    def packages(self) -> tuple[str, ...]:
        return ("torch",)

    def title(self, environment: Environment) -> str:
        return f"{self.kind} {environment.hardware}"


@dataclass(frozen=True)
class ModelJob(BaseJob):
    """A job on the unquantized model, shared by all of its variants."""

    model: ModelRef

    needs: ClassVar[tuple[str, ...]] = ("prepare",)

    @property
    def question(self) -> dict[str, Any]:
        return {"kind": self.kind, "model": model_identity(self.model)}

    @property
    def models(self) -> tuple[ModelRef, ...]:
        return (self.model,)

    def title(self, environment: Environment) -> str:
        return f"{self.kind} {self.model.label}"


@dataclass(frozen=True)
class PrepareModel(ModelJob):
    """Makes the checkpoint that all other runs of the model read: converted, dequantized, degridded, or random."""

    kind: Literal["prepare"] = field(default="prepare", kw_only=True)

    needs = ()
    parts = ("prepare",)

    @property
    def effort(self) -> JobEffort:
        return JobEffort(loads=1, writes_model=True)

    @property
    def packages(self) -> tuple[str, ...]:
        return ("gguf",) if self.model.kind == "gguf" else ()


@dataclass(frozen=True)
class MakeCalibration(ModelJob):
    """Makes the calibration set and checks it for overlap with all texts that the recipe scores (``evaluations``)."""

    calibration: CalibrationRef
    evaluations: tuple[PerplexityWorkload, ...] = ()
    allow_leak: bool = False
    kind: Literal["calibrate"] = field(default="calibrate", kw_only=True)

    parts = ("calibration",)

    @property
    def question(self) -> dict[str, Any]:
        return super().question | {"calibration": self.calibration.identity()}

    @property
    def texts(self) -> tuple[TextRef, ...]:
        return (*(each.text for each in self.evaluations), self.calibration.text)

    def exceeds(self, context_length: int) -> str | None:
        length = self.calibration.length
        return f"calibration length {length} exceeds the model's {context_length}" if length > context_length else None


@dataclass(frozen=True)
class KeepProbe(ModelJob):
    """Saves some logits of the model, to check that other libraries read the same model."""

    kind: Literal["probe"] = field(default="probe", kw_only=True)

    parts = ("probe",)

    @property
    def effort(self) -> JobEffort:
        return JobEffort(loads=1, tokens=PROBED_TOKENS)


@dataclass(frozen=True)
class VariantJob(BaseJob):
    """A job on one variant. ``baseline`` is the method that the recipe compares all variants with."""

    variant: Variant
    baseline: MethodRef

    @property
    def model(self) -> ModelRef:
        return self.variant.model

    @property
    def models(self) -> tuple[ModelRef, ...]:
        published = self.variant.method.published
        return (self.model,) if published is None else (self.model, published)

    @property
    def texts(self) -> tuple[TextRef, ...]:
        calibration = self.variant.calibration
        return () if calibration is None else (calibration.text,)

    @property
    def question(self) -> dict[str, Any]:
        """What is quantized, how, and on which device."""
        variant = self.variant
        case: dict[str, Any] = {
            "kind": self.kind,
            "model": model_identity(variant.model),
            "method": variant.method.identity,
            "scope": variant.scope,
            "seed": variant.seed,
            "device": self.conditions.device,
            "attention": self.conditions.attention,
        }
        if variant.skip or variant.overrides:
            case |= {"skip": sorted(set(variant.skip)), "overrides": variant.ordered_overrides}
        if variant.calibration is not None:
            case["calibration"] = variant.calibration.identity()
        return case

    @property
    def _engine_question(self) -> dict[str, Any]:
        """Additional content for jobs that run the variant on its engine."""
        variant = self.variant
        case: dict[str, Any] = {"engine": variant.engine, "threads": self.conditions.threads}
        if variant.engine_params:
            case["engine_params"] = dict(variant.engine_params)
        if self.conditions.devices != 1:
            case["devices"] = self.conditions.devices
        return case if variant.kv_cache == "model" else {**case, "kv_cache": variant.kv_cache}

    @property
    def method_label(self) -> str:
        """The method, plus cache and decode mode if they differ from the defaults: ``rtn bits=4 · compiled``."""
        cache = "" if self.variant.kv_cache == "model" else f" · {self.variant.kv_cache} cache"
        mode = "" if self.decode_mode == "eager" else f" · {self.decode_mode}"
        return self.variant.method.label + cache + mode

    def title(self, environment: Environment) -> str:
        label = self.variant.engine_label
        engine = "" if label == MAIN_ENGINE else f" · {label}"
        return f"{self.kind} {self.method_label}{engine}"


@dataclass(frozen=True)
class ConvertModel(VariantJob):
    """Writes the unquantized model in its engine's own format."""

    kind: Literal["convert"] = field(default="convert", kw_only=True)

    needs = ("prepare", "probe")
    parts = ("gguf", "probe")

    @property
    def effort(self) -> JobEffort:
        return JobEffort(loads=1, writes_model=True, tokens=PROBED_TOKENS)

    @property
    def uses(self) -> tuple[Capability, ...]:
        return ("logits",)


@dataclass(frozen=True)
class QuantizeModel(VariantJob):
    """Runs the method's offline quantization and saves some logits of the result."""

    kind: Literal["quantize"] = field(default="quantize", kw_only=True)

    needs = ("prepare", "calibrate", "probe")
    turn = 1
    row_rank = 0
    quantizes = True
    alone = True

    @property
    def effort(self) -> JobEffort:
        return JobEffort(loads=1, writes_model=True, tokens=PROBED_TOKENS, calibration=self.variant.calibration)


@dataclass(frozen=True)
class WriteText(VariantJob):
    """Writes a text with the baseline: its answers to some prompts, which all variants are then scored on."""

    perplexity: PerplexityWorkload
    kind: Literal["write"] = field(default="write", kw_only=True)

    needs = ("prepare",)
    parts = ("generated",)

    @property
    def effort(self) -> JobEffort:
        """As many rounds of decoding as there are groups of answers."""
        text = self.perplexity
        rounds = -(-(text.windows or 1) // text.written_at_once)
        rows, context = text.written_at_once, text.context
        return JobEffort(
            loads=1,
            timed=ThroughputWorkload((rows,), (1,), context, 0, rounds),
            largest=GridCell(rows, min(TYPICAL_PROMPT, context), max(context - TYPICAL_PROMPT, 0)),
        )

    @property
    def question(self) -> dict[str, Any]:
        return super().question | self._engine_question | _scored(self.perplexity, False, self.baseline)

    @property
    def uses(self) -> tuple[Capability, ...]:
        return ("generates",)

    @property
    def texts(self) -> tuple[TextRef, ...]:
        return (*super().texts, self.perplexity.text)

    def title(self, environment: Environment) -> str:
        return f"{self.kind} {self.model.label}"

    def exceeds(self, context_length: int) -> str | None:
        return _too_long(self.perplexity, context_length)


@dataclass(frozen=True)
class MakeReference(VariantJob):
    """Runs the baseline over a text and saves its states, which the divergence of variants is measured against."""

    perplexity: PerplexityWorkload
    kind: Literal["reference"] = field(default="reference", kw_only=True)

    needs = ("prepare", "write")
    parts = ("windows",)

    @property
    def effort(self) -> JobEffort:
        return JobEffort(loads=2, scored=self.perplexity, kept=True)

    @property
    def question(self) -> dict[str, Any]:
        return super().question | self._engine_question | _scored(self.perplexity, True, self.baseline)

    @property
    def uses(self) -> tuple[Capability, ...]:
        return ("logits",)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("divergence",)

    @property
    def texts(self) -> tuple[TextRef, ...]:
        return (*super().texts, self.perplexity.text)

    def title(self, environment: Environment) -> str:
        return f"{self.kind} {self.model.label}{_by(self.perplexity)}"

    def exceeds(self, context_length: int) -> str | None:
        return _too_long(self.perplexity, context_length)


@dataclass(frozen=True)
class MeasureQuality(VariantJob):
    """Perplexity of a variant over a text and, if the recipe requests it, its divergence from the baseline.

    ``perplexity`` is None only in records of early versions, which did not keep it. ``observers`` are plugin metrics
    that see the same forward pass.
    """

    perplexity: PerplexityWorkload | None
    divergence: bool = False
    allow_leak: bool = False
    observers: tuple[MetricRef, ...] = ()
    kind: Literal["quality"] = field(default="quality", kw_only=True)

    needs = ("prepare", "quantize", "convert", "calibrate", "write", "reference")
    parts = ("windows",)
    turn = 1
    cached = False
    row_rank = 1
    reader_settings = ("gates",)

    @property
    def effort(self) -> JobEffort:
        return JobEffort(loads=1, scored=self.perplexity, compared=self.divergence, tokens=PROBED_TOKENS)

    @property
    def question(self) -> dict[str, Any]:
        case = super().question | self._engine_question | {"memory": self.conditions.memory}
        if self.perplexity is None:
            return case
        case |= _scored(self.perplexity, self.divergence, self.baseline) | _leaky(self.allow_leak)
        return case | _of_plugins(self.observers)

    @property
    def uses(self) -> tuple[Capability, ...]:
        return ("logits",)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("perplexity", "divergence", "memory", *(each.name for each in self.observers))

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(package for each in self.observers for package in each.packages)

    @property
    def texts(self) -> tuple[TextRef, ...]:
        return (*super().texts, self.perplexity.text) if self.perplexity else super().texts

    @property
    def workload(self) -> str:
        return self.perplexity.protocol if self.perplexity else ""

    def title(self, environment: Environment) -> str:
        return super().title(environment) + (_by(self.perplexity) if self.perplexity else "")

    @property
    def longest_tokens(self) -> int:
        return self.perplexity.context if self.perplexity else 0

    def exceeds(self, context_length: int) -> str | None:
        return _too_long(self.perplexity, context_length) if self.perplexity else None


@dataclass(frozen=True)
class AnswerTask(VariantJob):
    """Answers one task with a variant. ``verify``: this run verifies the variant because no quality run does."""

    task: TaskWorkload
    allow_leak: bool = False
    verify: bool = True
    kind: Literal["task"] = field(default="task", kw_only=True)

    needs = ("prepare", "quantize", "convert", "calibrate")
    turn = 1
    cached = False
    row_rank = 3
    reader_settings = ("gates",)

    @property
    def effort(self) -> JobEffort:
        task, questions = self.task, self.task.limit or TYPICAL_QUESTIONS
        prompt, answer = QUESTION_TOKENS * (1 + (task.fewshot or 0)), task.new_tokens or QUESTION_TOKENS
        return JobEffort(
            loads=1, tokens=questions * task.samples * answer, largest=GridCell(ANSWERS_AT_ONCE, prompt, answer)
        )

    @property
    def keeps_model(self) -> bool:
        """Its figures are of no time, and of no memory that a table shows. A task's own code could change the next."""
        return not self.task.trust_task_code

    @property
    def question(self) -> dict[str, Any]:
        asked = {"memory": self.conditions.memory, "task": self.task.identity()}
        return super().question | self._engine_question | asked | _leaky(self.allow_leak)

    @property
    def uses(self) -> tuple[Capability, ...]:
        return ("scores",)

    @property
    def uses_one_of(self) -> tuple[Capability, ...]:
        return ("generates", "completes") if self.task.writing else ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("tasks", "memory")

    @property
    def packages(self) -> tuple[str, ...]:
        return ("lm-eval", "datasets")

    @property
    def texts(self) -> tuple[TextRef, ...]:
        own = (self.task.data, self.task.fewshot_data)
        return (*super().texts, *(text for text in own if text is not None))

    @property
    def tasks(self) -> tuple[TaskWorkload, ...]:
        return (self.task,)

    @property
    def workload(self) -> str:
        return self.task.name

    def title(self, environment: Environment) -> str:
        return super().title(environment).replace(self.kind, f"{self.kind} {self.task.name}", 1)


@dataclass(frozen=True)
class MeasurePerformance(VariantJob):
    """Speed, memory and energy of a variant over a grid; without a grid only its memory when loaded.

    ``verify``: this run verifies the variant because no quality run does. ``workloads`` are plugin metrics, measured
    last.
    """

    throughput: ThroughputWorkload | None
    energy: bool = False
    verify: bool = True
    workloads: tuple[MetricRef, ...] = ()
    kind: Literal["performance"] = field(default="performance", kw_only=True)

    needs = ("prepare", "quantize", "convert")
    parts = ("traffic",)
    turn = 2
    cached = False
    repeated = True
    alone = True
    row_rank = 2
    reader_settings = ("budget_bytes", "price", "gates")

    @property
    def effort(self) -> JobEffort:
        largest = self.throughput.largest if self.throughput else None
        passes = 2 if self.energy else 1
        return JobEffort(loads=1, tokens=PROBED_TOKENS, timed=self.throughput, passes=passes, largest=largest)

    @property
    def question(self) -> dict[str, Any]:
        timed = self.throughput.settings() if self.throughput else None
        asked = {"memory": self.conditions.memory, "throughput": timed} | ({"energy": True} if self.energy else {})
        return super().question | self._engine_question | asked | _of_plugins(self.workloads)

    @property
    def uses(self) -> tuple[Capability, ...]:
        own: tuple[Capability, ...] = ("decodes", "logits") if self.verify else ("decodes",)
        return tuple(dict.fromkeys((*own, *(used for each in self.workloads for used in each.uses))))

    @property
    def metrics(self) -> tuple[str, ...]:
        energy = ("energy",) if self.energy else ()
        return ("throughput", "memory", *energy, *(each.name for each in self.workloads))

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(package for each in self.workloads for package in each.packages)

    @property
    def decode_mode(self) -> DecodeMode:
        return self.throughput.decode_mode if self.throughput else "eager"

    def title(self, environment: Environment) -> str:
        return f"{super().title(environment)} #{environment.repetition + 1}"

    @property
    def longest_tokens(self) -> int:
        return max(self.throughput.prompt_tokens) + self.throughput.new_tokens if self.throughput else 0

    @property
    def largest_batch(self) -> int:
        return max(self.throughput.batch_sizes) if self.throughput else 0

    def exceeds(self, context_length: int) -> str | None:
        needed = self.longest_tokens
        if needed <= context_length:
            return None
        return f"prompt and new tokens, {needed}, exceed the model's context of {context_length}"


@dataclass(frozen=True)
class MeasureServing(VariantJob):
    """Starts a variant's server and measures it under load."""

    serving: ServingWorkload
    energy: bool = False
    kind: Literal["serve"] = field(default="serve", kw_only=True)

    needs = ("prepare", "quantize", "convert")
    parts = ("load",)
    stacks = ("vllm",)  # whose benchmark of servers sends the requests
    turn = 2
    cached = False
    repeated = True
    climbs = True
    alone = True
    row_rank = 4
    reader_settings = ("gates",)

    @property
    def effort(self) -> JobEffort:
        """Schedules take their time; the work of a level is about that of reading all of its tokens.

        Levels that bisect count like the lowest one, whose schedule is the longest; they are not known before.
        """
        workload = self.serving
        levels = (*workload.levels, *workload.bisect * workload.levels[:1])
        warmup = workload.warmup if workload.requests else 0  # those of a duration come within it
        counts = [warmup + workload.requests_at(level) for level in levels]
        waits = 0.0 if workload.arrival == "concurrent" else sum(map(truediv, counts, levels))
        prompt = workload.prompt_tokens or TYPICAL_PROMPT
        together = max(levels) if workload.arrival == "concurrent" else 1  # of a schedule it is not known before
        largest = GridCell(math.ceil(together), prompt, workload.new_tokens)
        tokens = sum(counts) * (prompt + workload.new_tokens)
        return JobEffort(loads=1, tokens=tokens, apart_s=waits, largest=largest)

    @property
    def question(self) -> dict[str, Any]:
        asked = {"serving": self.serving.settings(), "text": text_identity(self.serving.text)}
        return super().question | self._engine_question | asked | ({"energy": True} if self.energy else {})

    @property
    def uses(self) -> tuple[Capability, ...]:
        return ("serves",)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("serving",)

    @property
    def texts(self) -> tuple[TextRef, ...]:
        return (*super().texts, self.serving.text)

    def title(self, environment: Environment) -> str:
        return f"{super().title(environment)} #{environment.repetition + 1}"

    @property
    def energy_obstacle(self) -> str | None:
        """Why the energy that it is to count cannot be: the load is measured without it. None if nothing is known."""
        if not self.energy or self.variant.method.server is None:
            return None
        return "the counters of this machine do not count what the server takes that it asks"

    @property
    def longest_tokens(self) -> int:
        return self.serving.prompt_tokens + self.serving.new_tokens if self.serving.prompt_tokens else 0

    def exceeds(self, context_length: int) -> str | None:
        needed = self.longest_tokens
        if needed <= context_length:
            return None
        return f"prompt and new tokens, {needed}, exceed the model's context of {context_length}"


Job = (
    MeasureMachine
    | PrepareModel
    | MakeCalibration
    | KeepProbe
    | ConvertModel
    | QuantizeModel
    | WriteText
    | MakeReference
    | MeasureQuality
    | AnswerTask
    | MeasurePerformance
    | MeasureServing
)
JOBS: Mapping[str, type[BaseJob]] = {each.kind: each for each in get_args(Job)}
"""The job type of each kind of run."""


def _scored(workload: PerplexityWorkload, divergence: bool, baseline: MethodRef) -> dict[str, Any]:
    content, how = text_identity(workload.text)
    return {
        "text": content,
        "text_format": how,
        "perplexity": workload.settings(),
        "divergence": divergence,
        "baseline": baseline.identity,
    }


def _leaky(allowed: bool) -> dict[str, Scalar]:
    """Part of a question only if leaks are allowed, so existing ids do not change."""
    return {"allow_leak": True} if allowed else {}


def _of_plugins(metrics: tuple[MetricRef, ...]) -> dict[str, Any]:
    """Part of a question only if a plugin measures something."""
    return {"metrics": [each.identity for each in metrics]} if metrics else {}


def _by(workload: PerplexityWorkload) -> str:
    """The protocol, for a title, if it is not the default."""
    return "" if workload.protocol == "gptq" else f" by {workload.protocol}"


def _too_long(workload: PerplexityWorkload, context_length: int) -> str | None:
    if workload.context <= context_length:
        return None
    return f"perplexity context {workload.context} exceeds the model's {context_length}"
