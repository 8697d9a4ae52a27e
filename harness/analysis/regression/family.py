"""Tests that are judged together, without those that could not find anything whatever the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from harness.stats.comparison import Comparison, fewest_units, holm


def together(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same, adjusted by Holm among those that can become significant in so large a family.

    An exact test of few processes or items has no small p-value: among many tests it can reject nothing, and would
    only weaken the others. Which tests those are depends only on their numbers of units, so excluding them preserves
    the level (Tarone, Biometrics 46, 1990). They become tests that are not valid at their n.
    """
    usable = [found for found in comparisons if found.p is not None]
    size = _size(usable)
    able = [found.p is not None and _can(found, size) for found in comparisons]
    judged = iter(holm([found for found, can in zip(comparisons, able, strict=True) if can]))
    count = sum(able)
    return tuple(
        next(judged) if can else _untested(found, count + 1) for found, can in zip(comparisons, able, strict=True)
    )


def _size(usable: Sequence[Comparison]) -> int:
    """The smallest number k for which at most k tests can find anything at the level α / k."""
    alike = Counter((found.alpha, found.design, found.effect.n) for found in usable if found.is_coarse)
    fine = len(usable) - alike.total()

    def able(tests: int) -> int:
        can = (times for (alpha, design, n), times in alike.items() if n >= fewest_units(alpha / tests, design))
        return fine + sum(can)

    return next((tests for tests in range(max(1, fine), len(usable) + 1) if able(tests) <= tests), 1)


def _can(found: Comparison, tests: int) -> bool:
    return replace(found, tests=tests).can_find


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
