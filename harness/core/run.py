"""RunSpec: the complete description of one run. The planner creates it, the worker reads it, the store keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import Discriminator

from harness.core.identity import DecodeMode, KvCache, digest
from harness.core.job import (
    AnswerTask,
    Environment,
    Job,
    MakeReference,
    MeasureMachine,
    MeasurePerformance,
    MeasureQuality,
    MeasureServing,
    VariantJob,
    WriteText,
)
from harness.core.model import MAIN_ENGINE, MethodRef, ModelRef, model_identity
from harness.core.variant import Variant
from harness.core.workload import PerplexityWorkload, ServingWorkload, TaskWorkload, ThroughputWorkload


@dataclass(frozen=True)
class HourlyPrice:
    """The price of one machine hour, and its currency (ISO 4217)."""

    per_hour: float
    currency: str


@dataclass(frozen=True)
class RunLimits:
    """The limits of one child process. None means no limit."""

    time_s: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class ReaderSettings:
    """Recipe settings for reading the figures. They change no figure and no id.

    The run's job declares which of them the run holds.
    """

    budget_bytes: int | None = None
    price: HourlyPrice | None = None
    gates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """One child process: its job, environment and limits.

    ``case_id`` identifies the question (no versions, hardware or repetition). ``run_id`` identifies the question
    together with the hardware, the libraries, the repetition and the artifacts. ``needs`` maps kinds to the ids of
    the runs that must succeed before this one and whose artifacts it reads. What is quantized while loading is the same
    whether each run does so or a run before it that saved the result, so that one is no part of the ``run_id``.
    """

    recipe: str
    job: Annotated[Job, Discriminator("kind")]
    environment: Environment = field(default_factory=Environment)
    needs: Mapping[str, str] = field(default_factory=dict)
    limits: RunLimits = RunLimits()
    readers: ReaderSettings = ReaderSettings()

    @cached_property
    def case_id(self) -> str:
        return digest(self.question)

    @cached_property
    def run_id(self) -> str:
        where = self.environment
        environment = [where.lock, where.hardware, dict(where.versions), where.method_version, where.repetition]
        needs = {kind: run for kind, run in self.needs.items() if not (kind == "quantize" and self._is_on_load)}
        return digest([self.question, environment, needs])

    @property
    def quantizes_on_load(self) -> bool:
        """Whether it quantizes its variant while loading it, because no run before it saved the result."""
        return self._is_on_load and not self.job.quantizes and "quantize" not in self.needs

    @property
    def quantizes_for_loading(self) -> bool:
        """Whether it saves what the runs that need it would otherwise quantize while loading."""
        return self._is_on_load and self.job.quantizes

    @property
    def _is_on_load(self) -> bool:
        return isinstance(self.job, VariantJob) and self.job.variant.method.stage == "on_load"

    @property
    def question(self) -> dict[str, Any]:
        """The content that ``case_id`` hashes."""
        return self.job.question

    @property
    def kind(self) -> str:
        return self.job.kind

    @property
    def title(self) -> str:
        """A short line for displays and logs."""
        return self.job.title(self.environment)

    def may_share_process(self, earlier: RunSpec) -> bool:
        """Whether the process that made an earlier run may make this one with the model that it has loaded."""
        one, other = self.job, earlier.job
        if not (isinstance(one, VariantJob) and isinstance(other, VariantJob)):
            return False
        if not (one.keeps_model and other.keeps_model):
            return False
        return (one.kind, one.variant, one.conditions, self.stack, self.limits, self.needs) == (
            other.kind,
            other.variant,
            other.conditions,
            earlier.stack,
            earlier.limits,
            earlier.needs,
        )

    @property
    def model(self) -> ModelRef:
        """Raises TypeError for a run without a model."""
        if isinstance(self.job, MeasureMachine):
            raise TypeError(f"a {self.kind} run is of no model")
        return self.job.model

    @property
    def _of_variant(self) -> VariantJob:
        if not isinstance(self.job, VariantJob):
            raise TypeError(f"a {self.kind} run is of no variant")
        return self.job

    @property
    def variant(self) -> Variant:
        """The variant that this run's figures belong to. Raises TypeError for a run without a variant."""
        return self._of_variant.variant

    @property
    def method(self) -> MethodRef:
        """Raises TypeError for a run without a variant."""
        return self.variant.method

    @property
    def baseline(self) -> MethodRef:
        """The method that all variants are compared with. Raises TypeError for a run without a variant."""
        return self._of_variant.baseline

    @cached_property
    def is_baseline(self) -> bool:
        """Whether this run belongs to the variant that all others are compared with."""
        job = self.job
        if not isinstance(job, VariantJob):
            return False
        return job.variant.method.identity == job.baseline.identity and job.variant.kv_cache == "model"

    @property
    def engine(self) -> str:
        """The engine it runs on. Runs that several variants share use the main engine."""
        return self.job.variant.engine if isinstance(self.job, VariantJob) else MAIN_ENGINE

    @property
    def engine_label(self) -> str:
        """The engine with its own parameters, for display."""
        return self.job.variant.engine_label if isinstance(self.job, VariantJob) else MAIN_ENGINE

    @property
    def kv_cache(self) -> KvCache:
        return self.job.variant.kv_cache if isinstance(self.job, VariantJob) else "model"

    @property
    def decode_mode(self) -> DecodeMode:
        """How this run decodes, if it decodes."""
        return self.job.decode_mode

    @property
    def method_label(self) -> str:
        """See ``VariantJob.method_label``. Raises TypeError for a run without a variant."""
        return self._of_variant.method_label

    @property
    def subject(self) -> str:
        """``model × method × engine``, for display. Raises TypeError for a run without a variant."""
        return f"{self.model.label} × {self.method_label} × {self.engine_label}"

    @property
    def perplexity(self) -> PerplexityWorkload | None:
        """The text that this run writes or scores, if any."""
        return self.job.perplexity if isinstance(self.job, MeasureQuality | MakeReference | WriteText) else None

    @property
    def task(self) -> TaskWorkload | None:
        """The task that this run answers, if any."""
        return self.job.task if isinstance(self.job, AnswerTask) else None

    @property
    def throughput(self) -> ThroughputWorkload | None:
        """The grid that this run times, if any."""
        return self.job.throughput if isinstance(self.job, MeasurePerformance) else None

    @property
    def serving(self) -> ServingWorkload | None:
        """The load that this run puts on a server, if any."""
        return self.job.serving if isinstance(self.job, MeasureServing) else None

    @property
    def device(self) -> str:
        return self.job.conditions.device

    @property
    def gpus_at_once(self) -> int:
        """How many GPUs compute at the same time. Those that the main engine spreads layers over take turns."""
        return 1 if self.engine == MAIN_ENGINE else self.job.conditions.gpus

    @property
    def cores(self) -> int | None:
        """With how many cores it is content, so that other runs may use the rest of a CPU; None if it may use all.

        Stacks have libraries that choose their cores themselves.
        """
        beside_others = self.device == "cpu" and not self.job.alone and self.stack == Environment.stack
        return self.job.conditions.threads if beside_others else None

    @property
    def hardware(self) -> str:
        return self.environment.hardware

    @property
    def stack(self) -> str:
        return self.environment.stack

    @property
    def repetition(self) -> int:
        return self.environment.repetition

    def names(self) -> dict[str, str | int | None]:
        """The run's description for programs, by name. None for what a run without a model or variant lacks."""
        variant = self.job.variant if isinstance(self.job, VariantJob) else None
        model = None if isinstance(self.job, MeasureMachine) else self.job.model
        return {
            "run_id": self.run_id,
            "kind": self.kind,
            "model": model.label if model else None,
            "method": variant.method.label if variant else None,
            "engine": self.engine_label,
            "decode_mode": self.decode_mode,
            "kv_cache": self.kv_cache,
            "repetition": self.repetition,
        }


def compared_within(spec: RunSpec) -> str:
    """Equal for runs of one kind and of variants of one model, whose speeds are compared."""
    return digest([spec.kind, [model_identity(model) for model in spec.job.models[:1]]])


def turn_of(spec: RunSpec) -> int:
    """Where runs execute side by side, those of a lower turn go first."""
    return spec.job.turn + spec.repetition


def titles_among(specs: Iterable[RunSpec]) -> Callable[[RunSpec], str]:
    """The title of a run in a list of these, which names its model too if they are of several."""
    several = len({model.label for spec in specs for model in spec.job.models[:1]}) > 1

    def title(spec: RunSpec) -> str:
        label = next((model.label for model in spec.job.models), "") if several else ""
        is_named = f" {label} " in f" {spec.title} "  # as in that of a run that prepares the model
        return f"{spec.title} · {label}" if label and not is_named else spec.title

    return title


def baseline_engine(specs: Iterable[RunSpec]) -> str | None:
    """The label of the engine whose baseline all rows are compared with: the main engine if the baseline runs there."""
    found = dict.fromkeys(spec.engine_label for spec in specs if spec.is_baseline)
    return MAIN_ENGINE if MAIN_ENGINE in found else next(iter(found), None)
