"""RunSpec: one run, said completely. What the planner makes, the worker reads and the store keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.core.identity import DecodeMode, Kind, KvCache, Scalar, digest
from harness.core.model import MAIN_ENGINE, MethodRef, ModelRef, labelled, model_identity
from harness.core.variant import Variant
from harness.core.workload import CalibrationRef, PerplexityWorkload, TaskWorkload, ThroughputWorkload, text_identity


@dataclass(frozen=True)
class Price:
    """What an hour of the machine costs, and in which currency (ISO 4217)."""

    per_hour: float
    currency: str


@dataclass(frozen=True)
class Limits:
    """What one child process may take. None means no limit."""

    time_s: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class RunSpec:
    """One child process: what it loads, what it does there, what it may take.

    ``case_id`` names the question (no versions, no hardware, no repetition) and ``run_id`` the
    question asked here, now, with these libraries, of these artifacts; ``needs`` names, by kind, the
    runs that must have ended well before this one and whose artifacts it reads. A quality run scores
    ``perplexity``; a calibrate run is held against all ``evaluations`` of the recipe. ``budget_bytes``, ``price`` and
    ``gates`` are for those who read the figures and change none of them. A ``machine`` run
    names a model and a method like all others, but neither is a part of its case or its id.
    """

    kind: Kind
    recipe: str
    model: ModelRef
    method: MethodRef
    baseline: MethodRef
    engine: str
    scope: str
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    calibration: CalibrationRef | None = None
    allow_leak: bool = False
    perplexity: PerplexityWorkload | None = None
    evaluations: tuple[PerplexityWorkload, ...] = ()
    divergence: bool = False
    task: TaskWorkload | None = None
    throughput: ThroughputWorkload | None = None
    memory: bool = True
    budget_bytes: int | None = None
    energy: bool = False
    price: Price | None = None
    gates: Mapping[str, float] = field(default_factory=dict)
    limits: Limits = Limits()
    device: str = "cpu"
    threads: int | None = None
    attention: str | None = None
    kv_cache: KvCache = "model"
    seed: int = 0
    repetition: int = 0
    stack: str = "main"
    lock: str = ""
    hardware: str = ""
    versions: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        return self.method.identity == self.baseline.identity and self.kv_cache == "model"

    @property
    def decode_mode(self) -> DecodeMode:
        """How this run decodes, if it does."""
        timed = self.throughput if self.kind == "performance" else None
        return timed.decode_mode if timed else "eager"

    @property
    def method_label(self) -> str:
        """The method and, where they are not the usual ones, cache and decode mode: ``rtn bits=4 · compiled``."""
        return labelled(self.method.label, self.decode_mode, self.kv_cache)

    @cached_property
    def variant(self) -> Variant:
        """What the row is of in which this run's figures stand."""
        return Variant(
            self.model,
            self.method,
            self.engine,
            self.scope,
            self.skip,
            self.overrides,
            self.calibration,
            self.kv_cache,
            self.seed,
        )

    @property
    def subject(self) -> str:
        """``model × method × engine`` as a reader sees it."""
        return f"{self.model.label} × {self.method_label} × {self.engine}"

    @property
    def title(self) -> str:
        """A short line for displays and logs."""
        if self.kind == "machine":
            return f"machine {self.hardware}"
        of_variants = ("convert", "quantize", "quality", "task", "performance")
        what = self.model.label
        if self.kind in of_variants:
            what = labelled(self.method.label, self.decode_mode, self.kv_cache, self.engine)
        again = f" #{self.repetition + 1}" if self.kind == "performance" else ""
        task = f"{self.task.name} " if self.task else ""
        scores = self.perplexity if self.kind in ("reference", "quality") else None
        protocol = f" by {scores.protocol}" if scores and scores.protocol != "gptq" else ""
        return f"{self.kind} {task}{what}{protocol}{again}"

    @property
    def case_id(self) -> str:
        return digest(self.question)

    @cached_property
    def run_id(self) -> str:
        method_version = 0 if self.kind == "machine" else self.method.version
        environment = [self.lock, self.hardware, dict(self.versions), method_version, self.repetition]
        return digest([self.question, environment, dict(self.needs)])

    @property
    def question(self) -> dict[str, Any]:
        """What ``case_id`` is made of. Model and text count by their content, not by where they lie."""
        if self.kind == "machine":  # of all models and recipes the same
            return {"kind": self.kind, "device": self.device, "threads": self.threads}
        case: dict[str, Any] = {"kind": self.kind, "model": model_identity(self.model)}
        if self.kind in ("prepare", "probe"):
            return case
        if self.kind == "calibrate" and self.calibration is not None:
            return case | {"calibration": self.calibration.identity()}
        case |= {
            "method": self.method.identity,
            "scope": self.scope,
            "seed": self.seed,
            "device": self.device,
            "attention": self.attention,
        }
        if self.skip or self.overrides:
            ordered = [[pattern, dict(own)] for pattern, own in self.overrides.items()]  # the last that matches wins
            case |= {"skip": sorted(set(self.skip)), "overrides": ordered}
        if self.calibration is not None:
            case["calibration"] = self.calibration.identity()
        if self.kind in ("convert", "quantize"):
            return case
        case |= {"engine": self.engine, "threads": self.threads}
        if self.kv_cache != "model":
            case["kv_cache"] = self.kv_cache
        if self.kind != "reference":
            case["memory"] = self.memory
        if self.kind in ("reference", "quality") and self.perplexity is not None:
            case["text"], case["text_format"] = text_identity(self.perplexity.text)
            case["perplexity"] = self.perplexity.settings()
            case["divergence"] = self.divergence
            case["baseline"] = self.baseline.identity
            if self.allow_leak:
                case["allow_leak"] = True
        if self.kind == "task" and self.task is not None:
            case["task"] = self.task.identity()
            if self.allow_leak:
                case["allow_leak"] = True
        if self.kind == "performance":
            case["throughput"] = self.throughput.settings() if self.throughput else None
            if self.energy:
                case["energy"] = True
        return case


def baseline_engine(specs: Iterable[RunSpec]) -> str | None:
    """The engine whose baseline every row is held against: the main one, where the baseline runs on it."""
    found = dict.fromkeys(spec.engine for spec in specs if spec.is_baseline)
    return MAIN_ENGINE if MAIN_ENGINE in found else next(iter(found), None)
