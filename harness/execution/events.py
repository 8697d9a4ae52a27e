"""What happens in a sweep, for those who show it: each event is a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.record import Damaged, RunRecord
from harness.core.run import RunSpec
from harness.execution.debris import Debris
from harness.planning.forecast.forecast import Span, SweepForecast


@dataclass(frozen=True)
class Started:
    """Run ``index`` of ``total`` begins (1-based), on ``node`` if the site has several."""

    spec: RunSpec
    index: int
    total: int
    node: str = ""


@dataclass(frozen=True)
class Lost:
    """A run has no outcome because its node, or the connection to it, failed. ``again``: it is made once more.

    ``for_good``: nothing more runs on that node.
    """

    spec: RunSpec
    node: str
    reason: str
    for_good: bool
    again: bool


@dataclass(frozen=True)
class PhaseBegan:
    """A run enters a phase."""

    spec: RunSpec
    name: str


@dataclass(frozen=True)
class Ended:
    """A run ended and is recorded; ``reused`` means that an earlier record or artifact replaced it."""

    record: RunRecord
    index: int
    total: int
    reused: bool


@dataclass(frozen=True)
class Withdrawn:
    """A run that had succeeded is now ``invalid``: a file that it read differs from what was hashed."""

    record: RunRecord


@dataclass(frozen=True)
class DamageFound:
    """An earlier attempt is damaged, or a pack is. It was moved to ``moved_to``.

    None if it stays: a pack, whose whole attempts count, or an attempt of which only the log is damaged, which counts.
    """

    damaged: Damaged
    moved_to: str | None


@dataclass(frozen=True)
class ReadingResults:
    """No other sweep writes to the recipe's results from now on, and what is there is read."""

    recipe: str


@dataclass(frozen=True)
class Verifying:
    """The artifact of an earlier sweep is hashed before this one uses it."""

    spec: RunSpec


@dataclass(frozen=True)
class ArtifactDamaged:
    """An artifact of an earlier sweep is damaged and was removed; the run is made again if another needs it."""

    spec: RunSpec
    reason: str


@dataclass(frozen=True)
class NotFetched:
    """An artifact at the shared cache could not be fetched and is made again; the one that is there stays."""

    spec: RunSpec
    reason: str


@dataclass(frozen=True)
class NotShared:
    """What a run made could not be sent to the shared cache; it is in the cache of this machine."""

    spec: RunSpec
    reason: str


@dataclass(frozen=True)
class TakenIn:
    """A run that an earlier sweep could not save, and kept in its spill folder, is now among the results."""

    record: RunRecord


@dataclass(frozen=True)
class Cleared:
    """What interrupted sweeps had left was removed before this one begins."""

    debris: Debris


@dataclass(frozen=True)
class Waiting:
    """What the sweep waits for: nodes of a cluster before it begins, or what another sweep is measuring."""

    message: str


@dataclass(frozen=True)
class GpuUnused:
    """The machine has a GPU, and the sweep runs on the CPU because torch cannot use it."""

    problem: str


@dataclass(frozen=True)
class Expected:
    """What is left to run, and what is expected of it."""

    forecast: SweepForecast


@dataclass(frozen=True)
class Remaining:
    """How long the sweep will go on from now: when it begins, and again whenever a run has ended."""

    left_s: Span


@dataclass(frozen=True)
class Forecasted:
    """The sweep is through: how long the runs that succeeded were expected to take, and took, one after the other.

    ``within`` counts those that took as long as their range says, ``others`` the forecast runs that failed or were not
    made.
    """

    expected_s: Span
    took_s: float
    runs: int
    within: int
    others: int


Event = (
    Waiting
    | GpuUnused
    | Cleared
    | Started
    | PhaseBegan
    | Lost
    | Ended
    | Withdrawn
    | DamageFound
    | ReadingResults
    | Verifying
    | ArtifactDamaged
    | NotFetched
    | NotShared
    | TakenIn
    | Expected
    | Remaining
    | Forecasted
)
