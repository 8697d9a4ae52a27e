"""RunSpec: one run, said completely. What the planner makes, the worker reads and the store keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    VariantJob,
)
from harness.core.model import MAIN_ENGINE, MethodRef, ModelRef
from harness.core.variant import Variant
from harness.core.workload import PerplexityWorkload, TaskWorkload, ThroughputWorkload


@dataclass(frozen=True)
class HourlyPrice:
    """What an hour of the machine costs, and in which currency (ISO 4217)."""

    per_hour: float
    currency: str


@dataclass(frozen=True)
class RunLimits:
    """What one child process may take. None means no limit."""

    time_s: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class ReaderSettings:
    """What a recipe names for those who read the figures; it changes none of them, and no id.

    Which of these a run holds is declared by its job.
    """

    budget_bytes: int | None = None
    price: HourlyPrice | None = None
    gates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """One child process: what it does, in which environment, and what it may take.

    ``case_id`` names the question (no versions, no hardware, no repetition) and ``run_id`` the
    question asked here, now, with these libraries, of these artifacts; ``needs`` names, by kind, the
    runs that must have ended well before this one and whose artifacts it reads.
    """

    recipe: str
    job: Annotated[Job, Discriminator("kind")]
    environment: Environment = field(default_factory=Environment)
    needs: Mapping[str, str] = field(default_factory=dict)
    limits: RunLimits = RunLimits()
    readers: ReaderSettings = ReaderSettings()

    @property
    def case_id(self) -> str:
        return digest(self.question)

    @cached_property
    def run_id(self) -> str:
        where = self.environment
        environment = [where.lock, where.hardware, dict(where.versions), where.method_version, where.repetition]
        return digest([self.question, environment, dict(self.needs)])

    @property
    def question(self) -> dict[str, Any]:
        """What ``case_id`` is made of."""
        return self.job.question

    @property
    def kind(self) -> str:
        return self.job.kind

    @property
    def title(self) -> str:
        """A short line for displays and logs."""
        return self.job.title(self.environment)

    @property
    def model(self) -> ModelRef:
        """Raises TypeError for a run of no model."""
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
        """What the row is of in which this run's figures stand. Raises TypeError for a run of no variant."""
        return self._of_variant.variant

    @property
    def method(self) -> MethodRef:
        """Raises TypeError for a run of no variant."""
        return self.variant.method

    @property
    def baseline(self) -> MethodRef:
        """The method that all variants are compared with. Raises TypeError for a run of no variant."""
        return self._of_variant.baseline

    @property
    def is_baseline(self) -> bool:
        """Whether it is a run of the variant that all others are compared with."""
        job = self.job
        if not isinstance(job, VariantJob):
            return False
        return job.variant.method.identity == job.baseline.identity and job.variant.kv_cache == "model"

    @property
    def engine(self) -> str:
        """The engine that it runs on; what several variants share is made on the main one."""
        return self.job.variant.engine if isinstance(self.job, VariantJob) else MAIN_ENGINE

    @property
    def engine_label(self) -> str:
        """The engine with its own parameters, as a reader sees it."""
        return self.job.variant.engine_label if isinstance(self.job, VariantJob) else MAIN_ENGINE

    @property
    def kv_cache(self) -> KvCache:
        return self.job.variant.kv_cache if isinstance(self.job, VariantJob) else "model"

    @property
    def decode_mode(self) -> DecodeMode:
        """How this run decodes, if it does."""
        return self.job.decode_mode

    @property
    def method_label(self) -> str:
        """As ``VariantJob.method_label``. Raises TypeError for a run of no variant."""
        return self._of_variant.method_label

    @property
    def subject(self) -> str:
        """``model × method × engine`` as a reader sees it. Raises TypeError for a run of no variant."""
        return f"{self.model.label} × {self.method_label} × {self.engine_label}"

    @property
    def perplexity(self) -> PerplexityWorkload | None:
        """The text that it scores, if it scores one."""
        return self.job.perplexity if isinstance(self.job, MeasureQuality | MakeReference) else None

    @property
    def task(self) -> TaskWorkload | None:
        """The task that it answers, if it answers one."""
        return self.job.task if isinstance(self.job, AnswerTask) else None

    @property
    def throughput(self) -> ThroughputWorkload | None:
        """The grid that it is timed on, if it is timed."""
        return self.job.throughput if isinstance(self.job, MeasurePerformance) else None

    @property
    def device(self) -> str:
        return self.job.conditions.device

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
        """What a program is told of a run, by name. None where a run is of no model, or of no variant."""
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


def baseline_engine(specs: Iterable[RunSpec]) -> str | None:
    """The engine (its label) whose baseline all rows are compared with: the main one where the baseline runs on it."""
    found = dict.fromkeys(spec.engine_label for spec in specs if spec.is_baseline)
    return MAIN_ENGINE if MAIN_ENGINE in found else next(iter(found), None)
