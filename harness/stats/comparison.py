"""What a comparison found, in figures and in one word; and many comparisons judged together."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.stats.estimate import Estimate

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
Better = Literal["lower", "higher"]
Design = Literal["paired", "two samples"]

POWER = 0.8
"""How often a difference of the detectable size is to be found."""
FEWEST_UNITS = 6
"""Below, no test of paired units stands on more than the form of their distribution."""
MOST_UNITS = 10**9
"""Where planning gives up."""

Test = Literal[
    "exact permutation test",
    "Welch's t-test",
    "McNemar's exact test",
    "t-test for dependent neighbours",
    "exact sign-flip test",
    "clustered t-test",
    "identity",
    "none",
]


@dataclass(frozen=True)
class Comparison:
    """A variant beside a baseline by one metric, in the metric's unit.

    ``effect`` is variant − baseline with its interval at 1 − alpha, and ``n`` in it the independent units, each one
    of ``units``; for two samples it is that of the smaller. ``p`` is that of no difference, ``equivalence_p`` that
    of a difference of ``margin`` or more (two one-sided tests), whose interval at 1 − 2 alpha is
    ``equivalence_interval``; None where no test is valid at this n. ``detectable`` is the least true difference that
    this test finds in POWER of cases, and ``units_needed`` about how many units would settle it: find a true
    difference of ``margin``, or show equivalence where there is none. ``scatter`` is that of one unit.
    ``tests`` counts the comparisons that were judged together; the adjusted p-values are then Holm's.
    """

    metric: str
    unit: str
    better: Better
    margin: float
    alpha: float
    effect: Estimate
    units: str
    design: Design
    test: Test
    p: float | None
    equivalence_p: float | None
    equivalence_interval: tuple[float, float] | None
    detectable: float | None
    scatter: float | None
    notes: tuple[str, ...] = ()
    tests: int = 1
    adjusted_p: float | None = None
    adjusted_equivalence_p: float | None = None

    @property
    def different(self) -> bool:
        return self.adjusted_p is not None and self.adjusted_p <= self.alpha

    @property
    def equivalent(self) -> bool:
        return self.adjusted_equivalence_p is not None and self.adjusted_equivalence_p <= self.alpha

    @property
    def agrees(self) -> bool:
        """Whether figure and test point the same way.

        Of two samples the effect is that of the figures that reports show, and the test goes by the means of the
        processes. Where these disagree the interval spans zero.
        """
        low, high = self.effect.low, self.effect.high
        return self.design == "paired" or low is None or high is None or low > 0 or high < 0

    @property
    def verdict(self) -> Verdict:
        """Equivalent goes first: a difference that is real and lies within the margin is none that matters."""
        if self.equivalent:
            return "equivalent"
        if not self.different or not self.agrees:
            return "inconclusive"
        return "better" if (self.effect.value > 0) == (self.better == "higher") else "worse"

    @property
    def units_needed(self) -> int | None:
        """None where the units seen say nothing of how much they scatter."""
        level = self.alpha / self.tests
        fewest = fewest_units(level, self.design)
        if self.scatter is None:
            return fewest if self.effect.n < fewest else None
        return max(fewest, _planned(self.scatter / self.margin, level, self.design))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is, in sentences without full stops."""
        return (*self._findings(), *self.notes)

    def _findings(self) -> list[str]:
        found = []
        if self.p is None:
            fewest = fewest_units(self.alpha / self.tests, self.design)
            found.append(f"no test is valid at n = {self.effect.n} {self.units}: it takes at least {fewest}")
        elif self.different:
            found.append(f"the difference is real (p = {self.adjusted_p:.2g}, {self.test})")
        else:
            found.append(f"no difference was found (p = {self.adjusted_p:.2g}, {self.test})")
        if self.equivalent:
            found.append(f"it lies within ±{self.margin:.3g} {self.unit} (p = {self.adjusted_equivalence_p:.2g})")
        elif self.equivalence_interval is not None:
            found.append(f"it may exceed ±{self.margin:.3g} {self.unit}")
        if self.verdict == "inconclusive" and self.scatter is not None and self.units_needed is not None:
            found.append(f"about {float(f'{self.units_needed:.2g}'):,.0f} {self.units} would settle it")
        return found


def holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same, judged together: p-values adjusted after Holm (Scandinavian Journal of Statistics 6, 1979).

    Among all of them the chance of any false "better" or "worse" is then at most alpha, and so is that of any false
    "equivalent". A comparison without a valid test stays inconclusive and costs the others nothing. Intervals stay
    as they are. Raises ValueError where they do not share one alpha.
    """
    if len({found.alpha for found in comparisons}) > 1:
        raise ValueError("comparisons that are judged together must share one alpha")
    differences = _adjusted([found.p for found in comparisons])
    equivalences = _adjusted([found.equivalence_p for found in comparisons])
    return tuple(
        replace(found, tests=len(comparisons), adjusted_p=difference, adjusted_equivalence_p=equivalence)
        for found, difference, equivalence in zip(comparisons, differences, equivalences, strict=True)
    )


def fewest_units(level: float, design: Design) -> int:
    """Units (of two samples: in each) with which an exact two-sided test can reach a level at all."""
    if design == "paired":
        return max(FEWEST_UNITS, math.ceil(1 - math.log2(level)))
    return next(count for count in range(2, 1000) if 2 / math.comb(2 * count, count) <= level)


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    given = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(given):
        largest = max(largest, min(1.0, (len(given) - rank) * p))
        adjusted[position] = largest
    return adjusted


def _planned(scatter: float, level: float, design: Design) -> int:
    """The least number of units at which both tests have POWER; ``scatter`` in margins."""
    from scipy.special import stdtrit

    samples = 1 if design == "paired" else 2

    def suffices(count: int) -> bool:
        degrees = samples * (count - 1)
        found = stdtrit(degrees, 1 - level / 2) + stdtrit(degrees, POWER)
        settled = stdtrit(degrees, 1 - level) + stdtrit(degrees, (1 + POWER) / 2)
        return bool(samples * (max(found, settled) * scatter) ** 2 <= count)

    return 2 + bisect_left(range(2, MOST_UNITS), True, key=suffices)
