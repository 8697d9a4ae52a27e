"""RunSpec: one run, said completely. What the planner makes, the worker reads and the store keeps.

Only the standard library is imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

Scalar = str | int | float | bool | None
Kind = Literal["machine", "prepare", "calibrate", "probe", "quantize", "reference", "quality", "task", "performance"]
Stage = Literal["none", "on_load", "offline", "published"]
DecodeMode = Literal["eager", "compiled"]
"""Whether decoding runs layer by layer from Python, or as one compiled graph over a static key-value cache."""


@dataclass(frozen=True)
class ModelRef:
    """The unquantized model of a variant.

    ``content`` identifies the weights and the tokenizer (a sha256, or ``id@revision`` on a hub);
    ``native_quantization`` names the grid on which the published weights already lie, if any.
    """

    id: str
    label: str
    content: str
    kind: Literal["hub", "directory", "gguf", "synthetic"]
    path: str
    dtype: str = "auto"
    degrid: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    native_quantization: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def needs_preparing(self) -> bool:
        """Whether a checkpoint must first be made from it (converted, degridded or drawn)."""
        return self.kind in ("gguf", "synthetic") or self.degrid is not None


@dataclass(frozen=True)
class MethodRef:
    """A method with every parameter resolved; ``label`` shows those that the recipe wrote.

    ``published`` is the checkpoint that somebody else quantized, where that is what is measured, and ``stack``
    the environment that a recipe chose in place of the method's own.
    """

    name: str
    version: int
    params: Mapping[str, Scalar]
    label: str
    stage: Stage
    published: ModelRef | None = None
    stack: str | None = None

    @property
    def identity(self) -> list[Any]:
        """What makes two methods the same one. A published checkpoint counts by its content, not by where it lies."""
        chosen = [self.name, self.published.content] if self.published else [self.name, dict(self.params)]
        return [*chosen, self.stack] if self.stack else chosen


@dataclass(frozen=True)
class TextRef:
    """An evaluation text: a file of plain text or JSON lines, or rows of a hub data set."""

    id: str
    path: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    field: str = "text"
    sha256: str | None = None

    def same_as(self, other: TextRef) -> bool:
        """Whether both are one text, wherever it lies and however its rows are read."""
        return bool(_text_identity(self)[0] == _text_identity(other)[0])


@dataclass(frozen=True)
class CalibrationRef:
    """How calibration samples are made of a text: see harness.text.calibration."""

    text: TextRef
    packing: Literal["concat", "crop", "pad"]
    bos: Literal["auto", "always", "never"]
    chat_template: bool
    samples: int
    length: int
    seed: int


@dataclass(frozen=True)
class PerplexityWorkload:
    """Which windows of which text are scored. ``windows`` of None means all of them; ``stride`` is of sliding alone."""

    text: TextRef
    protocol: str
    context: int
    windows: int | None
    stride: int | None = None
    bos: Literal["auto", "always", "never"] = "auto"

    def settings(self) -> dict[str, Any]:
        """All but the text. What was added later stands there only where it is used: a question keeps its name."""
        usual = {"stride": None, "bos": "auto"}
        settings = asdict(self)
        del settings["text"]
        return {name: value for name, value in settings.items() if name not in usual or value != usual[name]}


@dataclass(frozen=True)
class TaskWorkload:
    """One task or group of lm-eval, where its definition lies, and how its questions are put.

    ``definition`` is a YAML file, ``own`` the sha256 of one that does not come with lm-eval. Without ``data`` the
    task's own data set is read.
    """

    name: str
    definition: str
    own: str | None = None
    fewshot: int | None = None
    sampler: Literal["default", "first_n"] | None = None
    limit: int | None = None
    data: TextRef | None = None
    fewshot_data: TextRef | None = None
    chat_template: bool = False
    system: str | None = None
    bos: Literal["auto", "always", "never"] = "auto"
    cluster: str | None = None
    seed: int = 1234

    def identity(self) -> dict[str, Any]:
        """What makes two tasks the same one: their data count by content, a definition by its name or its content."""
        question = asdict(self)
        del question["definition"]
        for name, text in (("data", self.data), ("fewshot_data", self.fewshot_data)):
            question[name] = text.sha256 if text else None
        return question


@dataclass(frozen=True)
class ThroughputWorkload:
    """One grid of batch size × prompt length, each decoded for a fixed number of tokens."""

    batch_sizes: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    new_tokens: int
    warmup: int
    iterations: int
    decode_mode: DecodeMode = "eager"

    def settings(self) -> dict[str, Any]:
        """All of it. What was added later stands there only where it is used: a question keeps its name."""
        settings = asdict(self)
        if self.decode_mode == "eager":
            del settings["decode_mode"]
        return settings

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The points of the grid in the order they are measured."""
        grid = product(self.batch_sizes, self.prompt_tokens)
        return tuple(Cell(batch, prompt, self.new_tokens, self.decode_mode) for batch, prompt in grid)


@dataclass(frozen=True)
class Cell:
    """One point of the grid: what is run there, and by which words its figures are known."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    decode_mode: DecodeMode = "eager"

    @property
    def protocol(self) -> dict[str, Scalar]:
        return asdict(self)


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
    seed: int = 0
    repetition: int = 0
    stack: str = "main"
    lock: str = ""
    hardware: str = ""
    versions: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        return self.method.identity == self.baseline.identity

    @property
    def decode_mode(self) -> DecodeMode:
        """How this run decodes, if it does."""
        timed = self.throughput if self.kind == "performance" else None
        return timed.decode_mode if timed else "eager"

    @property
    def method_label(self) -> str:
        """The method and, where it is not the usual one, the decode mode: ``rtn bits=4 · compiled``."""
        return labelled(self.method.label, self.decode_mode)

    @property
    def variant(self) -> str:
        """``model × method × engine`` as a reader sees it."""
        return f"{self.model.label} × {self.method_label} × {self.engine}"

    @property
    def title(self) -> str:
        """A short line for displays and logs."""
        if self.kind == "machine":
            return f"machine {self.hardware}"
        what = self.method_label if self.kind in ("quantize", "quality", "task", "performance") else self.model.label
        again = f" #{self.repetition + 1}" if self.kind == "performance" else ""
        task = f"{self.task.name} " if self.task else ""
        scores = self.perplexity if self.kind in ("reference", "quality") else None
        protocol = f" · {scores.protocol}" if scores and scores.protocol != "gptq" else ""
        return f"{self.kind} {task}{what}{again}{protocol}"

    @property
    def case_id(self) -> str:
        return digest(self.question)

    @property
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
        if self.kind == "calibrate":
            return case | {"calibration": self._calibration()}
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
            case["calibration"] = self._calibration()
        if self.kind == "quantize":
            return case
        case |= {"engine": self.engine, "threads": self.threads}
        if self.kind != "reference":
            case["memory"] = self.memory
        if self.kind in ("reference", "quality") and self.perplexity is not None:
            case["text"], case["text_format"] = _text_identity(self.perplexity.text)
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

    def _calibration(self) -> list[Any]:
        assert self.calibration is not None
        settings = asdict(self.calibration)
        del settings["text"]
        return [settings, _text_identity(self.calibration.text)]


def labelled(method: str, decode_mode: DecodeMode) -> str:
    """A method's label with the decode mode, where that is not the usual one."""
    return method if decode_mode == "eager" else f"{method} · {decode_mode}"


def _text_identity(text: TextRef) -> list[Any]:
    """A text's content, and how its rows are read."""
    content = text.sha256 or [text.hub, text.config, text.split, text.revision]
    return [content, [text.field, (text.path or "").endswith((".jsonl", ".json"))]]


def model_identity(model: ModelRef) -> list[Any]:
    """What makes two models the same one: content, dtype it runs in, and how it was made."""
    return [model.content, model.dtype, model.degrid, dict(model.config), model.seed]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """The first 16 hexadecimal digits of the sha256 of the value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
