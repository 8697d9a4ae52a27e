"""The workloads of a model: texts to score, tasks to answer, a grid to time, samples to calibrate with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal

from harness.core.capability import Capability
from harness.core.identity import DecodeMode, Scalar
from harness.core.json_values import ABSENT_AT_DEFAULT


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
        """Whether both are the same text, regardless of location and of how its rows are read."""
        return bool(text_identity(self)[0] == text_identity(other)[0])


@dataclass(frozen=True)
class CalibrationRef:
    """How to draw calibration samples from a text: see harness.text.calibration."""

    text: TextRef
    packing: Literal["concat", "crop", "pad"]
    bos: Literal["auto", "always", "never"]
    chat_template: bool
    samples: int
    length: int
    seed: int

    def identity(self) -> list[Any]:
        """Equal for equal calibration sets. The text is compared by content."""
        settings = asdict(self)
        del settings["text"]
        return [settings, text_identity(self.text)]


GENERATED = "generated"
"""The protocol of texts that the baseline writes."""
WRITTEN_AT_ONCE, MOST_AT_ONCE = 2**16, 16
"""Tokens that a generated text's answers may have together while they are written, and how many of them are at most."""


@dataclass(frozen=True)
class Generation:
    """How the baseline writes a text: one answer to each of the first rows of another text, its prompts.

    ``temperature`` 0 writes the likeliest token. ``chat_template``: a prompt is a user's message.
    """

    seed: int
    temperature: float
    chat_template: bool = False


@dataclass(frozen=True)
class PerplexityWorkload:
    """Which windows of a text to score. ``windows`` None means all; only the sliding protocol has a ``stride``.

    With ``generation`` the text holds prompts, and each window is one of them and the baseline's answer to it, together
    ``context`` tokens at most; only the answer is scored.
    """

    text: TextRef
    protocol: str
    context: int
    windows: int | None
    stride: int | None = None
    bos: Literal["auto", "always", "never"] = "auto"
    generation: Generation | None = field(default=None, metadata=ABSENT_AT_DEFAULT)

    def settings(self) -> dict[str, Any]:
        """Everything but the text. Fields added later appear only if they are used, so existing ids do not change."""
        usual = {"stride": None, "bos": "auto"}
        settings = asdict(self)
        del settings["text"]
        settings |= settings.pop("generation") or {}
        return {name: value for name, value in settings.items() if name not in usual or value != usual[name]}

    @property
    def written_at_once(self) -> int:
        """How many answers of a generated text are written together; fewer of long ones, to bound memory."""
        return max(1, min(MOST_AT_ONCE, self.windows or MOST_AT_ONCE, WRITTEN_AT_ONCE // self.context))


ANSWERS_AT_ONCE = 16
"""Answers of a task that are written in one batch."""
WRITING = {"samples": 1, "temperature": None, "top_p": 1.0, "new_tokens": None, "think_end_token": None}
"""How answers are written, by the names of the fields, if a recipe says nothing of it."""


@dataclass(frozen=True)
class TaskWorkload:
    """One lm-eval task or group, the path of its definition, and how to pose its questions.

    ``definition`` is a YAML file. If it does not come with lm-eval, ``own`` hashes it and the user's files that it
    names. ``trust_task_code``: whether code in those files may run. Without ``data`` the task's own data set is read.

    With a ``temperature`` each question of a task that generates text is answered ``samples`` times, each time with
    randomness of its own; None leaves it to the task. ``new_tokens`` replaces the task's own limit of an answer, and
    of an answer with a ``think_end_token`` only what follows the last one is scored.
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
    trust_task_code: bool = False
    samples: int = field(default=1, metadata=ABSENT_AT_DEFAULT)
    temperature: float | None = field(default=None, metadata=ABSENT_AT_DEFAULT)
    top_p: float = field(default=1.0, metadata=ABSENT_AT_DEFAULT)
    new_tokens: int | None = field(default=None, metadata=ABSENT_AT_DEFAULT)
    think_end_token: str | None = field(default=None, metadata=ABSENT_AT_DEFAULT)

    @property
    def writing(self) -> dict[str, Scalar]:
        """How answers are written, as far as the recipe says so; a task that writes none cannot have it."""
        return {name: getattr(self, name) for name, usual in WRITING.items() if getattr(self, name) != usual}

    def identity(self) -> dict[str, Any]:
        """Equal for equal tasks. Data are compared by content, a definition by its name or its content.

        Fields added later appear only if they are used, so existing ids do not change.
        """
        question = asdict(self)
        del question["definition"], question["trust_task_code"]
        for name in WRITING.keys() - self.writing.keys():
            del question[name]
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
        """All fields. Those added later appear only if they are used, so existing ids do not change."""
        settings = asdict(self)
        if self.decode_mode == "eager":
            del settings["decode_mode"]
        return settings

    @property
    def largest(self) -> GridCell:
        """The point of the grid that takes most memory."""
        return GridCell(max(self.batch_sizes), max(self.prompt_tokens), self.new_tokens, self.decode_mode)

    @property
    def cells(self) -> tuple[GridCell, ...]:
        """The points of the grid in the order they are measured."""
        grid = product(self.batch_sizes, self.prompt_tokens)
        return tuple(GridCell(batch, prompt, self.new_tokens, self.decode_mode) for batch, prompt in grid)


@dataclass(frozen=True)
class Slo:
    """What a request must meet, each limit in seconds; None is no limit. ``share`` of the requests must meet them all.

    TTFT is the time to the first token, TPOT the time per token after it, ITL the time between two tokens, and e2e the
    time to the last one.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None
    share: float = 0.9

    @property
    def limits(self) -> dict[str, float]:
        """The limits that there are, by name."""
        every = {"ttft": self.ttft_s, "tpot": self.tpot_s, "itl": self.itl_s, "e2e": self.e2e_s}
        return {name: limit for name, limit in every.items() if limit is not None}

    @property
    def label(self) -> str:
        """``ttft ≤ 0.5 s, itl ≤ 0.05 s for 90%``."""
        limits = ", ".join(f"{name} ≤ {limit:g} s" for name, limit in self.limits.items())
        return f"{limits} for {self.share * 100:g}%"


Arrival = Literal["concurrent", "poisson", "constant"]
"""When requests come: as soon as one of so many is answered, or by a schedule, at random or evenly."""
LEAST_OF_LOWEST = 4
"""The lowest level of load is at most so many times as high as the lowest that bisecting comes to."""


def shown_level(level: float) -> str:
    """A level of load as figures name it. Two that are shown alike could not be told apart."""
    return f"{level:g}"


@dataclass(frozen=True)
class ServingWorkload:
    """A ladder of loads on a server, and the requests, which are the same for every variant.

    ``levels`` are requests that wait at the same time if ``arrival`` is ``concurrent``, otherwise requests per second.
    Each level has ``requests``, or as many as come in ``duration_s``; the first ``warmup`` are left out. A prompt has
    ``prompt_tokens`` of the ``text``, or is one of its rows if that is None. Answers have ``new_tokens`` each, or at
    most so many if ``natural``. Between the highest level that holds the ``slo`` and the next, ``bisect`` more are
    measured, none of them below ``least_level``.
    """

    arrival: Arrival
    levels: tuple[float, ...]
    text: TextRef
    prompt_tokens: int | None
    new_tokens: int
    natural: bool
    requests: int | None
    duration_s: float | None
    warmup: int
    slo: Slo | None
    bisect: int = 0

    def settings(self) -> dict[str, Any]:
        """Everything but the text."""
        settings = asdict(self)
        del settings["text"]
        return settings

    def requests_at(self, level: float) -> int:
        """How many requests a level has, those to warm up left out; about as many come in a duration."""
        return self.requests or int(level * (self.duration_s or 0))

    @property
    def unit(self) -> str:
        """Of its levels."""
        return "concurrent requests" if self.arrival == "concurrent" else "requests/s"

    @property
    def least_level(self) -> float:
        """The lowest level that bisecting may come to, where none holds the SLO.

        The lower a rate, the longer its requests take to come: halving without end would take hours.
        """
        return self.levels[0] / LEAST_OF_LOWEST

    @property
    def protocol(self) -> dict[str, Scalar]:
        """What identifies its figures, apart from the level."""
        prompts = "rows" if self.prompt_tokens is None else f"{self.prompt_tokens} tokens"
        return {
            "arrival": self.arrival,
            "prompts": f"{prompts} of {self.text.id}",
            "answers": f"at most {self.new_tokens} tokens" if self.natural else f"{self.new_tokens} tokens",
        }


@dataclass(frozen=True)
class GridCell:
    """One point of the grid: what runs there, and the protocol that identifies its figures."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    decode_mode: DecodeMode = "eager"

    @property
    def protocol(self) -> dict[str, Scalar]:
        return asdict(self)


@dataclass(frozen=True)
class MetricRef:
    """A plugin metric that a recipe's ``measure`` names, with every parameter resolved.

    ``uses`` and ``packages`` are what the metric declares: see ``Metric``.
    """

    name: str
    params: Mapping[str, Scalar] = field(default_factory=dict)
    uses: tuple[Capability, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def identity(self) -> list[Any]:
        return [self.name, dict(self.params)]


def text_identity(text: TextRef) -> list[Any]:
    """A text's content and how its rows are read."""
    content = text.sha256 or [text.hub, text.config, text.split, text.revision]
    return [content, [text.field, (text.path or "").endswith((".jsonl", ".json"))]]
