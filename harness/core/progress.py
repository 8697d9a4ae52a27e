"""How far a sweep is, as it notes beside its results, so that others can watch it from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

MISSED_HEARTBEATS = 4
"""A sweep that has been silent for so many heartbeats does not run any more."""

Ending = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class RunUnderWay:
    """A run that executes: its title and phase, when it began (ISO 8601, UTC), and the device or node."""

    title: str
    phase: str
    began: str
    where: str


@dataclass(frozen=True)
class RunFailure:
    """A run that ended without figures, and the first line of the reason."""

    title: str
    status: str
    phase: str
    message: str


@dataclass(frozen=True)
class SweepProgress:
    """The state of a sweep at the moment ``noted`` (ISO 8601, UTC, like ``began``).

    ``runs`` are all that were planned; ``ended`` counts those that have a record by status, of which ``reused`` have an
    earlier one. ``saved`` grows whenever a record may have been written. ``failures`` are the last ones. ``left_s`` is
    how long the rest is expected to take, None if that is not known. A note comes at least every ``heartbeat_s``.
    ``preparing`` says what a sweep does that has not planned its runs yet; it is empty afterwards.
    """

    recipe: str
    began: str
    noted: str
    heartbeat_s: float
    runs: int
    ended: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    saved: int = 0
    running: tuple[RunUnderWay, ...] = ()
    failures: tuple[RunFailure, ...] = ()
    left_s: float | None = None
    ending: Ending = "running"
    preparing: str = ""

    @property
    def done(self) -> int:
        """How many runs have ended."""
        return sum(self.ended.values())

    @property
    def waiting(self) -> int:
        """How many runs have not begun."""
        return max(self.runs - self.done - len(self.running), 0)

    def is_silent(self, silence_s: float) -> bool:
        """Whether a sweep that did not say that it ended must have: its last note is ``silence_s`` old."""
        return self.ending == "running" and silence_s > MISSED_HEARTBEATS * self.heartbeat_s


def seconds_between(earlier: str, later: str) -> float:
    """From one ISO 8601 date to another; 0 if one of them is none."""
    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except (TypeError, ValueError):  # TypeError: one has a time zone and the other has none
        return 0.0
