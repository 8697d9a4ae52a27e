"""Tests that are judged together, without those that could not find anything whatever the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from harness.stats.comparison import Comparison, holm


def together(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same, adjusted by Holm among those that can become significant in so large a family.

    An exact test of few processes or items has no small p-value: among many tests it can reject nothing, and would
    only weaken the others. Which tests those are depends only on their numbers of units, so excluding them preserves
    the level (Tarone, Biometrics 46, 1990). They become tests that are not valid at their n, among as many as there
    would be if that one alone had enough units.
    """
    if not comparisons:
        return ()
    alpha = comparisons[0].alpha
    least = [math.inf if found.p is None else found.least_p for found in comparisons]
    family = Counter(least)
    level = alpha / _size(family, alpha)
    judged = iter(holm([found for found, p in zip(comparisons, least, strict=True) if p <= level]))
    others = {p: _size(family - Counter([p]) + Counter([0.0]), alpha) for p in family if p > level}
    return tuple(
        next(judged) if p <= level else _untested(found, others[p]) for found, p in zip(comparisons, least, strict=True)
    )


def _size(family: Counter[float], alpha: float) -> int:
    """The smallest number k for which at most k tests can find anything at the level α / k.

    ``family`` counts the tests by the smallest p-value that each has.
    """
    size = max(1, family[0.0])
    while sum(times for p, times in family.items() if p <= alpha / size) > size:
        size += 1
    return size


def _untested(found: Comparison, tests: int) -> Comparison:
    return replace(
        found,
        p=None,
        adjusted_p=None,
        equivalence_p=None,
        adjusted_equivalence_p=None,
        equivalence_interval=None,
        test="none",
        tests=tests,
    )
