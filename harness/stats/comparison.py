"""The result of a comparison, in figures and in one word; and many comparisons judged together."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.stats.estimate import Estimate
from harness.stats.repeats import FEWEST_PROCESSES

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
Better = Literal["lower", "higher"]
Design = Literal["paired", "two samples"]

POWER = 0.8
"""The probability with which a difference of the detectable size is found."""
FEWEST_UNITS = 6
"""With fewer, a test of paired units depends entirely on the assumed distribution."""
MOST_UNITS = 10**9
"""The number of units at which planning gives up."""

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
    """A variant compared with a baseline by one metric, in the metric's unit.

    ``effect`` is variant − baseline with its interval at 1 − alpha; its ``n`` counts the independent units, each one
    of ``units``; for two samples, those of the smaller, and ``larger`` those of the other. ``p`` is that of no
    difference, ``equivalence_p`` that of a difference of ``margin`` or more (two one-sided tests), whose interval at
    1 − 2 alpha is ``equivalence_interval``; None if no test is valid at this n. ``scatter`` is the standard
    deviation of one unit, estimated with ``degrees`` of freedom. ``step`` is by how much one more unit that changes
    moves the effect, for a test that counts changes; else 0. ``units_needed`` is about how many units would settle it:
    find a true difference of ``margin``, or show equivalence if there is none.
    ``tests`` counts the comparisons that were judged together; the adjusted p-values are then Holm's. For one without a
    valid test it counts all of the family, as if each had enough units.
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
    scatter: float | None
    degrees: float | None = None
    larger: int = 0
    step: float = 0.0
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

        For two samples the effect is that of the figures in reports, while the test uses the means of the processes.
        If these disagree, the interval spans zero.
        """
        low, high = self.effect.low, self.effect.high
        return self.design == "paired" or low is None or high is None or low > 0 or high < 0

    @property
    def verdict(self) -> Verdict:
        """Equivalent has priority: a real difference within the margin does not matter."""
        if self.equivalent:
            return "equivalent"
        if not self.different or not self.agrees:
            return "inconclusive"
        return "better" if (self.effect.value > 0) == (self.better == "higher") else "worse"

    @property
    def level(self) -> float:
        """The p-value that Holm demands of the smallest among all tests: in the worst case, of this one."""
        return self.alpha / self.tests

    @property
    def least_p(self) -> float:
        """The smallest p-value that the test has for so many units, whatever the data; 0 if there is none."""
        if self.test == "exact permutation test":
            return _least_of_two_samples(self.effect.n, self.larger)
        return 2.0 ** (1 - self.effect.n) if self.test in ("exact sign-flip test", "McNemar's exact test") else 0.0

    @property
    def can_find(self) -> bool:
        """Whether the test could find anything at ``level``, whatever the data."""
        return self.p is not None and self.least_p <= self.level

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that this test finds at ``level`` with probability POWER.

        None if it could find none, or if the scatter is unknown. A test that counts changes finds nothing unless
        ``fewest_units`` change alike, which is likely only if the Poisson distribution of their number makes it so. If
        all units change alike, it finds that for certain.
        """
        from scipy.special import gammaincinv, stdtrit

        if not self.can_find or self.scatter is None or self.degrees is None:
            return None
        error = self.scatter * math.sqrt((1 if self.design == "paired" else 2) / self.effect.n)
        reach = stdtrit(self.degrees, 1 - self.level / 2) + stdtrit(self.degrees, POWER)
        least = gammaincinv(fewest_units(self.level, "paired"), POWER) * self.step
        found = max(float(reach * error), float(least))
        return min(found, self.step * self.effect.n) if self.step else found

    @property
    def units_needed(self) -> int | None:
        """None if the scatter of the observed units is unknown."""
        fewest = fewest_units(self.level, self.design)
        if self.scatter is None:
            return None if self.can_find else fewest
        return max(fewest, _planned(self.scatter / self.margin, self.level, self.design))

    @property
    def finding(self) -> str:
        """What the test of no difference says, in words."""
        if self.p is None:
            fewest = fewest_units(self.level, self.design, self.larger)
            among = f" among {self.tests} tests" if self.tests > 1 else ""
            beside = f" beside {self.larger} of the other side" if self.larger > self.effect.n else ""
            return f"{too_few(self.effect.n, self.units, fewest)}{beside}{among}"
        found = "the difference is real" if self.different else "no difference was found"
        return f"{found} (p = {self.adjusted_p:.2g}, {self.test})"


def holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same comparisons judged together: p-values adjusted by Holm (Scandinavian Journal of Statistics 6, 1979).

    The probability of any false "better" or "worse" among all of them is then at most alpha, and so is that of any
    false "equivalent". A comparison without a valid test stays inconclusive and does not affect the others. Intervals
    are not adjusted. Raises ValueError if they do not share one alpha.
    """
    if len({found.alpha for found in comparisons}) > 1:
        raise ValueError("comparisons that are judged together must share one alpha")
    tested = sum(found.p is not None for found in comparisons)
    differences = _adjusted([found.p for found in comparisons])
    equivalences = _adjusted([found.equivalence_p for found in comparisons])
    return tuple(
        replace(
            found,
            tests=len(comparisons) if found.p is None else tested,
            adjusted_p=difference,
            adjusted_equivalence_p=equivalence,
        )
        for found, difference, equivalence in zip(comparisons, differences, equivalences, strict=True)
    )


def fewest_units(level: float, design: Design, larger: int = 0) -> int:
    """Units with which an exact two-sided test can reach a level at all: of two samples, in each.

    In the smaller one, if the other has ``larger``.
    """
    if design == "paired":
        return max(FEWEST_UNITS, math.ceil(1 - math.log2(level)))
    counts = range(FEWEST_PROCESSES, 1000)
    return next(count for count in counts if _least_of_two_samples(count, max(count, larger)) <= level)


def too_few(count: int, units: str, fewest: int) -> str:
    """Why so many units show nothing."""
    return f"no test is valid at n = {count} {units}: it takes at least {fewest}"


def _least_of_two_samples(count: int, other: int) -> float:
    """The smallest p-value of a two-sided permutation test: of all divisions, two are the most extreme."""
    return 2 / math.comb(count + other, count)


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    given = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(given):
        largest = max(largest, min(1.0, (len(given) - rank) * p))
        adjusted[position] = largest
    return adjusted


def _planned(scatter: float, level: float, design: Design) -> int:
    """The smallest number of units at which both tests have POWER; ``scatter`` in margins."""
    from scipy.special import stdtrit

    samples = 1 if design == "paired" else 2

    def suffices(count: int) -> bool:
        degrees = samples * (count - 1)
        found = stdtrit(degrees, 1 - level / 2) + stdtrit(degrees, POWER)
        settled = stdtrit(degrees, 1 - level) + stdtrit(degrees, (1 + POWER) / 2)
        return bool(samples * (max(found, settled) * scatter) ** 2 <= count)

    return 2 + bisect_left(range(2, MOST_UNITS), True, key=suffices)
