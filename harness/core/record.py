"""The results of a run: measurements, the machine's fingerprint, and the record that holds them.

Records are JSON with a schema version; ``harness.core.upgrade`` reads older versions. Records keep raw values and
summaries are derived from them, so old results stay comparable without the code that measured them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, GetPydanticSchema

from harness.core.column import ArrayColumn, LazyColumn
from harness.core.foreign import shortened, shown
from harness.core.identity import NAME, Scalar
from harness.core.json_values import ABSENT_AT_DEFAULT, not_finite
from harness.core.label import Fact, FactCode, Label
from harness.core.run import RunSpec
from harness.core.upgrade import SCHEMA_VERSION
from harness.errors import UndrivenError

T = TypeVar("T")
Status = Literal["ok", "failed", "unsupported", "out_of_memory", "timeout", "crashed", "invalid"]
UNFINISHED = "the run was ended while it was measured"
"""The reason of a fact that what a run measures last is missing. Alone it says that the whole sweep was ended then."""
MAX_NODE_CHARACTERS = 64
MAX_NOTES = 1_000
"""Labels of a run, and facts; runs have fewer than ten of each, and one for each pattern of a recipe's scope."""
FAILURES: frozenset[str] = frozenset({"failed", "out_of_memory", "timeout", "crashed", "invalid"})


def _as_tuple(kind: Any, handler: Callable[[Any], Any]) -> Any:
    return handler(tuple.__class_getitem__((*kind.__args__, ...)))


Columnar = Annotated[Sequence[T], GetPydanticSchema(_as_tuple)]
"""A field that is decoded as a tuple of any length, and may hold a column."""


@dataclass(frozen=True)
class Measurement:
    """The raw values of one quantity.

    ``evidence`` says how to use the values: ``exact`` (a count, no noise), ``samples`` (repeated timings of one
    thing) or ``paired`` (one value per item; items of two runs pair by id). ``weights`` count what each value stands
    for (tokens of a window). ``cluster_ids`` name the group of each item; items of one group are not independent.
    Each is a tuple, or a column: an ``ArrayColumn`` where a metric has measured many values, and a ``LazyColumn`` of
    what a results folder holds.
    """

    metric: str
    version: int
    unit: str
    direction: Literal["lower", "higher", "neither"]
    evidence: Literal["exact", "samples", "paired"]
    values: Columnar[float]
    protocol: Mapping[str, Scalar] = field(default_factory=dict)
    weights: Columnar[float] = ()
    item_ids: Columnar[str] = ()
    cluster_ids: Columnar[str] = ()

    def __post_init__(self) -> None:
        """Raises ValueError unless weights and ids are one per value, or none, and no weight is negative."""
        for name, beside in (("weights", self.weights), ("items", self.item_ids), ("clusters", self.cluster_ids)):
            if beside and len(beside) != len(self.values):
                raise ValueError(f"{shortened(self.metric)} has {len(self.values)} values and {len(beside)} {name}")
        if isinstance(self.weights, LazyColumn) and not isinstance(self.weights, ArrayColumn):
            return  # the reader of the evidence checked them
        if self.weights and -math.inf < min(self.weights) < 0:  # the store refuses infinities itself
            raise ValueError(f"{shortened(self.metric)} has a negative weight")

    @property
    def mean(self) -> float:
        """The mean of the values, weighted if they have weights; NaN if there is nothing to weigh."""
        total = sum(self.weights) if self.weights else float(len(self.values))
        weights = self.weights or repeat(1.0, len(self.values))
        return sum(v * w for v, w in zip(self.values, weights, strict=True)) / total if total else math.nan


@dataclass(frozen=True)
class Fingerprint:
    """The machine and its software at the start or end of a run.

    ``software`` are the versions that affect figures. ``state`` holds what drifts: load, available memory, CPU times,
    GPU clocks and GPU temperature. ``installed`` are the versions of all distributions, noted at the start alone;
    ``beside`` has those of each other stack whose programs the run starts, and its Python's.
    """

    hardware: Mapping[str, Scalar]
    software: Mapping[str, str]
    state: Mapping[str, float]
    installed: Mapping[str, str] = field(default_factory=dict, metadata=ABSENT_AT_DEFAULT)
    beside: Mapping[str, Mapping[str, str]] = field(default_factory=dict, metadata=ABSENT_AT_DEFAULT)


@dataclass(frozen=True)
class Moment:
    """The machine's ``state``, as in a fingerprint, at a named moment of a run."""

    name: str
    state: Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """Where and why a run ended early, with the last lines of its log."""

    phase: str
    type: str
    message: str
    log_tail: str = ""


@dataclass(frozen=True)
class Phase:
    """A named part of a run and its wall time."""

    name: str
    wall_s: float


@dataclass(frozen=True)
class Outcome:
    """What a worker reports about its run. The parent adds the rest (see RunRecord).

    ``facts`` are findings that tables show (kernels that ran, what was skipped); ``labels`` are warnings that every
    table must carry. ``moments`` come in pairs, before and after the timed part; the device is warm at both.
    """

    status: Status
    failure: Failure | None = None
    measurements: Columnar[Measurement] = ()
    labels: Annotated[tuple[Label, ...], Field(max_length=MAX_NOTES)] = ()
    facts: Annotated[tuple[Fact, ...], Field(max_length=MAX_NOTES)] = ()
    phases: tuple[Phase, ...] = ()
    moments: tuple[Moment, ...] = ()
    before: Fingerprint | None = None
    after: Fingerprint | None = None

    def finite_parts(self) -> Outcome:
        """The outcome without parts that hold NaN or infinity, which no record may."""
        kept: dict[str, Any] = {
            name: tuple(each for each in getattr(self, name) if not_finite(each) is None)
            for name in ("measurements", "labels", "facts", "phases", "moments")
        }
        for name in ("before", "after"):
            kept[name] = None if not_finite(getattr(self, name)) else getattr(self, name)
        return replace(self, **kept)

    def cut_short(self, cause: str) -> Outcome:
        """The outcome of a run that was ended while it measured the last of it; ``cause`` is how."""
        facts = tuple(
            replace(fact, arguments={**fact.arguments, "reason": f"{UNFINISHED}: {cause}"})
            if fact.arguments.get("reason") == UNFINISHED
            else fact
            for fact in self.facts
        )
        return replace(self, facts=facts)

    @property
    def is_interrupted(self) -> bool:
        """Whether the sweep was ended while the run measured the last of it: the next one makes the run again."""
        return any(fact.arguments.get("reason") == UNFINISHED for fact in self.facts)

    def unstorable(self, reason: Failure) -> Outcome:
        """What is kept of an outcome that cannot be stored for a reason. If the run had not failed, it is invalid.

        Of its measurements these are the ones with one value: of the others there may be too many.
        """
        left = self.finite_parts()
        single = tuple(each for each in left.measurements if len(each.values) == 1)
        if left.failure is None:
            return replace(left, status="invalid", failure=reason, measurements=single)
        both = replace(left.failure, message=f"{left.failure.message}; and {reason.message}")
        return replace(left, failure=both, measurements=single)

    @property
    def suspicions(self) -> tuple[Label, ...]:
        """The labels that say why its timings cannot be trusted; empty if they can."""
        return tuple(label for label in self.labels if label.code == "suspect")

    def fact(self, code: FactCode) -> Fact | None:
        """The first fact with this code, if any."""
        return next((each for each in self.facts if each.code == code), None)

    def measured(self, metric: str) -> tuple[Measurement, ...]:
        """All measurements of a metric, in order."""
        return self._by_metric.get(metric, ())

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` derives from this outcome, called once for each key: many variants share a baseline's runs."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]  # type: ignore[no-any-return]

    @cached_property
    def _remembered(self) -> dict[Hashable, Any]:
        return {}

    @cached_property
    def _by_metric(self) -> Mapping[str, tuple[Measurement, ...]]:
        found: dict[str, list[Measurement]] = {}
        for each in self.measurements:
            found.setdefault(each.metric, []).append(each)
        return {metric: tuple(members) for metric, members in found.items()}


@dataclass(frozen=True)
class Damaged:
    """An attempt that is not as it was written: its folder, and what is wrong.

    ``log_only``: only its log is damaged; the record was read, and its figures are valid. ``url`` is that of the folder
    if the path is that of its copy on this machine.
    """

    path: Path
    reason: str
    log_only: bool = False
    url: str = ""

    @property
    def sentence(self) -> str:
        return f"{shown(self.url or self.path)}: {self.reason}"

    def entry(self) -> dict[str, str | bool]:
        """For programs."""
        return {"path": self.url or str(self.path), "reason": self.reason, "log_only": self.log_only}

    @property
    def remark(self) -> str:
        """What a reader of figures must know about it."""
        return f"{'the figures are valid, but the log is damaged' if self.log_only else 'left out'}: {self.sentence}"


@dataclass(frozen=True)
class Forecast:
    """How long a run was expected to take, before it began: as likely longer as shorter, and a range for four of five.

    ``basis``: what it rested on. ``same``: earlier runs of this case; ``alike``: of other cases of its kind, scaled;
    ``arithmetic``: the job, the model's size and the machine's speeds alone.
    """

    expected_s: float
    low_s: float
    high_s: float
    basis: Literal["same", "alike", "arithmetic"]


@dataclass(frozen=True)
class RunRecord:
    """One attempt at one run. ``session`` is the sweep that measured it.

    ``node`` tells the machine apart from the others of that sweep (``node-1``); empty if there was one. ``forecast`` is
    what was expected of ``wall_s`` before the sweep began.
    """

    spec: RunSpec
    outcome: Outcome
    session: str
    attempt: int
    started_at: str
    wall_s: float
    schema_version: int = SCHEMA_VERSION
    node: Annotated[str, Field(pattern=rf"^({NAME.pattern})?$", max_length=MAX_NODE_CHARACTERS)] = field(
        default="", metadata=ABSENT_AT_DEFAULT
    )
    forecast: Forecast | None = field(default=None, metadata=ABSENT_AT_DEFAULT)

    @property
    def status(self) -> Status:
        return self.outcome.status

    @property
    def gives_figures(self) -> bool:
        """Whether figures are taken from it.

        It ended well; or it failed at a level of load that was too much for its server or its client, and what it
        measured before is as good as in any other run. A run that is invalid for another reason has no such part.
        """
        if self.status == "ok":
            return True
        failure = self.outcome.failure
        overloaded = self.status in ("failed", "out_of_memory") or (
            failure is not None and failure.type == UndrivenError.__name__
        )
        return self.spec.job.climbs and overloaded and bool(self.outcome.measurements)

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the attempt wherever it is kept: its number may change on the way to another folder."""
        return self.spec.run_id, self.session, self.started_at

    @property
    def timed_within(self) -> tuple[str, str]:
        """The session and the node: speeds are compared only where these are equal."""
        return self.session, self.node

    def find(self, metric: str, **protocol: Scalar) -> Measurement | None:
        """The first measurement of this metric whose protocol has the given values, if any."""
        for measurement in self.outcome.measured(metric):
            if protocol.items() <= dict(measurement.protocol).items():
                return measurement
        return None
