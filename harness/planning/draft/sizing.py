"""Which methods a sweep takes and how much it measures, so that it fits what there is of time and disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E")
ENOUGH = 3
"""So many methods are compared with less text before fewer are compared with more."""


@dataclass(frozen=True)
class SweepEffort:
    """How much is measured of each variant. ``windows`` of the text are scored (None: all of it).

    ``repetitions`` are the processes that are timed, each of them ``iterations`` times after a prompt of
    ``prompt_tokens``. ``samples`` are the sequences that methods are calibrated on.
    """

    windows: int | None
    repetitions: int
    prompt_tokens: int
    new_tokens: int
    iterations: int
    samples: int


EFFORTS = (
    SweepEffort(4, 1, 64, 8, 2, 32),
    SweepEffort(8, 3, 64, 16, 3, 64),
    SweepEffort(16, 3, 128, 32, 3, 128),
    SweepEffort(None, 4, 128, 32, 5, 128),
    SweepEffort(None, 5, 512, 64, 5, 256),
    SweepEffort(None, 8, 512, 128, 5, 512),
)
"""From a first look to a thorough one. Three processes are the fewest that give a speed an interval."""
STANDARD = 1
"""The place of the effort that methods are chosen by."""


@dataclass(frozen=True)
class Sized(Generic[T, E]):
    """The candidates that fit, the effort for them, and why each of the others does not fit.

    Nothing is kept if not even one candidate fits at the least effort.
    """

    kept: tuple[T, ...]
    effort: E
    left_out: tuple[tuple[T, str], ...]


def choose(
    candidates: Sequence[T],
    efforts: Sequence[E],
    obstacle: Callable[[Sequence[T], E], str | None],
    standard: int = STANDARD,
) -> Sized[T, E]:
    """The most candidates, the first before the others, and then the greatest effort for them that fits.

    ``efforts`` rise, ``obstacle`` says why a sweep of some candidates does not fit at an effort (None: it fits).
    Candidates are chosen at the ``standard`` effort, and at a lesser one while fewer than ``ENOUGH`` fit. What is kept
    was itself asked about, so that it fits even if a greater sweep can cost less than a smaller one.
    """
    for place in range(min(standard, len(efforts) - 1), -1, -1):
        kept, left_out = _fitting(candidates, efforts[place], obstacle)
        if len(kept) >= min(ENOUGH, len(candidates)):
            break
    if kept:
        while place + 1 < len(efforts) and obstacle(kept, efforts[place + 1]) is None:
            place += 1
    return Sized(tuple(kept), efforts[place], tuple(left_out))


def _fitting(
    candidates: Sequence[T], effort: E, obstacle: Callable[[Sequence[T], E], str | None]
) -> tuple[list[T], list[tuple[T, str]]]:
    kept: list[T] = []
    left_out: list[tuple[T, str]] = []
    for each in candidates:
        reason = obstacle([*kept, each], effort)
        if reason is None:
            kept.append(each)
        else:
            left_out.append((each, reason))
    return kept, left_out
