"""What data say about every possible true effect: one-sided p-values, and intervals by inverting them.

Each class here answers the same two questions, so that a test of no difference, an interval and a test of
equivalence are one computation, evaluated at different effects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from harness.stats.estimate import Floats

Ends = tuple[float, float]
ROUNDING = 1e-12
"""Relative difference below which two sums of the same numbers in different orders count as equal."""
HALF_A_PAIR = 0.5
"""Half the distance between two sums of whole pairs (continuity correction)."""


class Bound(Protocol):
    @property
    def name(self) -> str:
        """The name of its interval."""
        ...

    def tails(self, effect: float) -> Ends:
        """p-values of "the true effect is at most this" and of "it is at least this"."""
        ...

    def ends(self, tail: float) -> Ends:
        """The interval of the effects that neither of its ``tails`` rejects at level ``tail``."""
        ...


def two_sided(bound: Bound, effect: float = 0.0) -> float:
    """p of "this is the true effect": twice the smaller tail."""
    return min(1.0, 2 * min(bound.tails(effect)))


@dataclass(frozen=True)
class StudentT:
    """A mean, its standard error and the degrees of freedom of that error."""

    mean: float
    error: float
    degrees: float
    name = "t-interval"

    def tails(self, effect: float) -> Ends:
        from scipy.special import stdtr

        gap = self.mean - effect
        if self.error == 0:
            return (0.0, 1.0) if gap > 0 else (1.0, 0.0) if gap < 0 else (1.0, 1.0)
        return float(stdtr(self.degrees, -gap / self.error)), float(stdtr(self.degrees, gap / self.error))

    def ends(self, tail: float) -> Ends:
        from scipy.special import stdtrit

        half = float(stdtrit(self.degrees, 1 - tail)) * self.error
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Typical:
    """The typical values of an exact test (Hartigan 1969), sorted: they cut the line into equally likely parts.

    If θ is the true effect, all N = len(values) + 1 rearrangements of the data are equally likely, and the share
    (1 + number of values ≤ θ) / N of them gives at least the observed effect. The same holds for ≥.
    """

    values: Floats
    name = "exact interval"

    def tails(self, effect: float) -> Ends:
        slack = ROUNDING * float(np.abs(self.values).max(initial=0.0))
        below = int(np.searchsorted(self.values, effect + slack, side="right"))
        above = len(self.values) - int(np.searchsorted(self.values, effect - slack, side="left"))
        return (1 + below) / (len(self.values) + 1), (1 + above) / (len(self.values) + 1)

    def ends(self, tail: float) -> Ends:
        """Infinite if there are too few rearrangements to reject anything at that level."""
        rank = math.floor(tail * (len(self.values) + 1) * (1 + ROUNDING))
        if rank == 0:
            return -math.inf, math.inf
        return float(self.values[rank - 1]), float(self.values[-rank])


@dataclass(frozen=True)
class ScoreTest:
    """The score test of a difference of two paired shares (Tango, Statistics in Medicine 17, 1998), times ``scale``.

    Of ``count`` pairs ``up`` rose and ``down`` fell, by 1 or by fractions that sum to these numbers: among all
    differences of at most 1 with these sums, whole ones have the largest variance. Unlike an interval from the
    observed variance, it does not shrink to a point if no pair differs. It is corrected for continuity, because
    otherwise it exceeds its level if few pairs are expected to differ.
    """

    up: float
    down: float
    count: int
    scale: float = 1.0
    name = "score interval"

    def tails(self, effect: float) -> Ends:
        from scipy.special import ndtr

        share = effect / self.scale
        return float(ndtr(-self.z(share, -HALF_A_PAIR))), float(ndtr(self.z(share, HALF_A_PAIR)))

    def ends(self, tail: float) -> Ends:
        from scipy.special import ndtri

        z = float(-ndtri(tail))
        low = self._root(-1.0, lambda share: self.z(share, -HALF_A_PAIR) - z)
        high = self._root(1.0, lambda share: self.z(share, HALF_A_PAIR) + z)
        return low * self.scale, high * self.scale

    def z(self, share: float, correction: float = 0.0) -> float:
        """The score statistic; the share that falls is its maximum-likelihood estimate under that difference."""
        gap = self.up - self.down - self.count * share + correction
        linear = (2 * self.count - self.up + self.down) * share - self.up - self.down
        constant = -self.down * share * (1 - share)
        falling = (math.sqrt(max(0.0, linear**2 - 8 * self.count * constant)) - linear) / (4 * self.count)
        variance = self.count * (2 * falling + share * (1 - share))
        if abs(share) >= 1 or variance <= 0:
            return math.copysign(math.inf, gap) if gap else 0.0
        return gap / math.sqrt(variance)

    def _root(self, end: float, beyond: Callable[[float], float]) -> float:
        """Where ``beyond`` changes sign between the observed share and ``end``, or ``end`` itself."""
        from scipy.optimize import brentq

        seen, far = (self.up - self.down) / self.count, end * (1 - ROUNDING)
        if (abs(seen) >= abs(far) and seen * end > 0) or beyond(seen) * beyond(far) > 0:
            return end
        return float(brentq(beyond, seen, far, xtol=ROUNDING))


@dataclass(frozen=True)
class Bootstrap:
    """Sorted replicates of a mean, read bias-corrected and accelerated (Efron, JASA 82, 1987)."""

    replicates: Floats
    bias: float
    acceleration: float
    name = "BCa bootstrap interval"

    def tails(self, effect: float) -> Ends:
        """0 if the effect lies beyond all replicates: they do not say how far."""
        from scipy.special import ndtr, ndtri

        count = len(self.replicates)
        below = np.searchsorted(self.replicates, effect, "left") + np.searchsorted(self.replicates, effect, "right")
        if below in (0, 2 * count):
            return (0.0, 1.0) if below == 0 else (1.0, 0.0)
        moved = float(ndtri(below / 2 / count)) - self.bias
        z = moved / max(1 + self.acceleration * moved, ROUNDING) - self.bias
        return float(ndtr(z)), float(ndtr(-z))

    def ends(self, tail: float) -> Ends:
        from scipy.special import ndtr, ndtri

        z = self.bias + np.asarray([1.0, -1.0]) * ndtri(tail)
        shares = ndtr(self.bias + z / np.maximum(1 - self.acceleration * z, ROUNDING))
        low, high = np.quantile(self.replicates, shares)
        return float(low), float(high)


@dataclass(frozen=True)
class Outer:
    """On each side, the more conservative of two bounds: the larger p-value, the farther end."""

    one: Bound
    other: Bound

    @property
    def name(self) -> str:
        return f"{self.one.name} as wide as the {self.other.name}"

    def tails(self, effect: float) -> Ends:
        (least, most), (lower, upper) = self.one.tails(effect), self.other.tails(effect)
        return max(least, lower), max(most, upper)

    def ends(self, tail: float) -> Ends:
        (low, high), (lower, upper) = self.one.ends(tail), self.other.ends(tail)
        return min(low, lower), max(high, upper)
