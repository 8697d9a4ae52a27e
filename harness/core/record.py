"""What a run leaves behind: measurements, the machine's fingerprint, and the record around them.

Records are JSON with a schema version; ``harness.core.upgrade`` reads those of older ones. Raw values are kept and
summaries are derived, so that old results stay comparable without the code that measured them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.core.identity import Scalar
from harness.core.label import Fact, FactCode, Label
from harness.core.run import RunSpec
from harness.core.upgrade import SCHEMA_VERSION

Status = Literal["ok", "failed", "unsupported", "out_of_memory", "timeout", "crashed", "invalid"]
FAILURES: frozenset[str] = frozenset({"failed", "out_of_memory", "timeout", "crashed", "invalid"})


@dataclass(frozen=True)
class Measurement:
    """One quantity, raw.

    ``evidence`` says how the values may be used: ``exact`` (a count, no noise), ``samples``
    (repeated timings of one thing) or ``paired`` (one value per item; the item of another run with
    the same id is its pair). ``weights`` count what each value stands for (tokens of a window);
    ``cluster_ids`` name the group within which items are not independent.
    """

    metric: str
    version: int
    unit: str
    direction: Literal["lower", "higher", "neither"]
    evidence: Literal["exact", "samples", "paired"]
    values: tuple[float, ...]
    protocol: Mapping[str, Scalar] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    item_ids: tuple[str, ...] = ()
    cluster_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """The machine and its software when a run began or ended.

    ``state`` holds what drifts: load, available memory, times of the CPU, clocks and temperature of the GPU.
    """

    hardware: Mapping[str, Scalar]
    software: Mapping[str, str]
    state: Mapping[str, float]


@dataclass(frozen=True)
class Moment:
    """What drifted in the machine at a moment of a run; ``state`` as a fingerprint's."""

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
    """What a worker says of its run. The parent adds the rest (see RunRecord).

    ``facts`` are findings that a table shows (kernels that ran, what was skipped), ``labels`` warnings that every
    table must carry. ``moments`` come in pairs around what was timed, the device being hot at both.
    """

    status: Status
    failure: Failure | None = None
    measurements: tuple[Measurement, ...] = ()
    labels: tuple[Label, ...] = ()
    facts: tuple[Fact, ...] = ()
    phases: tuple[Phase, ...] = ()
    moments: tuple[Moment, ...] = ()
    before: Fingerprint | None = None
    after: Fingerprint | None = None

    def fact(self, code: FactCode) -> Fact | None:
        """The first fact of that code, if there is one."""
        return next((each for each in self.facts if each.code == code), None)


@dataclass(frozen=True)
class RunRecord:
    """One attempt at one run. ``session`` is the sweep it was measured in."""

    spec: RunSpec
    outcome: Outcome
    session: str
    attempt: int
    started_at: str
    wall_s: float
    schema_version: int = SCHEMA_VERSION

    @property
    def status(self) -> Status:
        return self.outcome.status

    def find(self, metric: str, **protocol: Scalar) -> Measurement | None:
        """The measurement of that name whose protocol has the given values, if there is one."""
        for measurement in self.outcome.measurements:
            if measurement.metric == metric and protocol.items() <= dict(measurement.protocol).items():
                return measurement
        return None
