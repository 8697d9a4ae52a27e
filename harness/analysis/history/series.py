"""The parts of a history: series of figures, each of one question on one machine, and where they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.analysis.regression.findings import Change
from harness.core.record import Damaged, Status

Noise = Literal["none", "repeats", "noisy"]
"""A count; a figure that is usually bit for bit the same; or one with noise."""


@dataclass(frozen=True)
class Point:
    """One figure of one session; ``n`` counts the processes, windows or questions behind it."""

    session: str
    started_at: str
    value: float
    n: int


@dataclass(frozen=True)
class LevelChange:
    """A new level, from the point at ``position`` on.

    ``before`` and ``after`` are the levels: medians between two changes. ``size`` is their difference, a fraction of
    ``before`` if the series is relative, None if that is zero. ``matters`` says whether it is larger than the gate's
    threshold, ``better`` whether it is an improvement (None: neither direction is). ``environment`` lists what changed
    in the environment between the last point before and the first one after.
    """

    position: int
    session: str
    started_at: str
    before: float
    after: float
    size: float | None
    matters: bool
    better: bool | None
    environment: tuple[Change, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """One metric of one case on one machine, oldest first.

    ``metric`` is a gate's name, ``where`` its conditions. ``apart`` says what distinguishes it from series of the same
    name that must not be joined with it: another machine, protocol, version of the metric. ``threshold`` is the change
    that does not matter, and ``sigma`` the standard deviation of one figure: fractions of it if ``relative``,
    otherwise in ``unit``. ``note`` says why no change was searched for.
    """

    model: str
    method: str
    engine: str
    is_baseline: bool
    metric: str
    where: str
    apart: tuple[str, ...]
    unit: str
    direction: str
    relative: bool
    threshold: float
    noise: Noise
    sigma: float | None
    points: tuple[Point, ...]
    changes: tuple[LevelChange, ...]
    note: str = ""

    @property
    def variant(self) -> str:
        return f"{self.model} × {self.method} × {self.engine}"


@dataclass(frozen=True)
class Failed:
    """A run that gave no figure."""

    session: str
    started_at: str
    run: str
    status: Status
    reason: str


@dataclass(frozen=True)
class Silent:
    """A load of which the servers of a session answered no request in ``silent`` of its ``processes``.

    A latency counts them as infinitely slow: if they are half or more, there is none of this session.
    """

    session: str
    started_at: str
    run: str
    load: str
    silent: int
    processes: int


@dataclass(frozen=True)
class History:
    """``sessions`` counts those that gave figures; ``damaged`` are attempts that are not as they were written."""

    names: tuple[str, ...]
    sessions: int
    series: tuple[Series, ...]
    failed: tuple[Failed, ...]
    damaged: tuple[Damaged, ...] = ()
    silent: tuple[Silent, ...] = ()
