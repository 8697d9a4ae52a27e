"""Where one of two servers ceases to be the faster one as the load grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.stats.estimate import Estimate


@dataclass(frozen=True)
class Crossover:
    """The level of load beyond which a variant is ``slower`` than the baseline, or else faster, and up to which not.

    ``low`` and ``high`` are the ends of its 95% interval: 0 says that it may be so from the lowest level on, infinity
    that it may not be so up to the highest.
    """

    level: float
    low: float
    high: float
    slower: bool

    @property
    def certain(self) -> bool:
        """Whether the interval lies within the levels that were measured."""
        return self.low > 0 and math.isfinite(self.high)


KNOWN_SLOWER = Estimate(0.0, 0.0, math.nextafter(1.0, 0.0), 0, "it answered fewer requests")
KNOWN_FASTER = Estimate(math.inf, math.nextafter(1.0, 2.0), math.inf, 0, "it answered more requests")
"""Ratios of levels at which only the direction is known: anywhere below 1, or above it."""


def crossover(levels: Sequence[float], ratios: Sequence[Estimate]) -> Crossover | None:
    """Where ``ratios``, how many times as fast the variant is at each level of load, pass 1 for the last time.

    Between two levels the logarithm of the ratio is taken to be linear in the logarithm of the load, and so are the
    ends of its interval: the crossover's interval holds the loads at which the ratio's holds 1, the inversion of a test
    (Fieller, Journal of the Royal Statistical Society B 16, 1954). Its coverage: benchmarks/crossover.py. Beside a
    level of which only the direction is known, it crosses at the other one, and the interval holds all between them.
    None if the ratios are on one side throughout. Raises ValueError if a level is not positive.
    """
    if not levels or not all(level > 0 for level in levels):
        raise ValueError("a crossover needs levels above zero")
    slower = ratios[-1].value < 1
    level = _crossing(levels, [each.value for each in ratios], slower)
    if not 0 < level < math.inf:
        return None
    ends = [(each.low, each.high) for each in ratios if each.low is not None and each.high is not None]
    if len(ends) < len(ratios):
        return Crossover(level, 0.0, math.inf, slower)
    low, high = sorted(_crossing(levels, side, slower) for side in zip(*ends, strict=True))
    return Crossover(level, low, high, slower)


def _crossing(levels: Sequence[float], ratios: Sequence[float], slower: bool) -> float:
    """From where on the ratios are below 1 if ``slower``, or else above; 0 if everywhere, infinity if nowhere."""
    beyond = [-_log(each) if slower else _log(each) for each in ratios]
    if beyond[-1] <= 0:
        return math.inf
    before = [place for place, each in enumerate(beyond) if each <= 0]
    if not before:
        return 0.0
    place = before[-1]
    if math.isinf(beyond[place + 1]):
        return levels[place]
    if math.isinf(beyond[place]):
        return levels[place + 1]
    part = beyond[place] / (beyond[place] - beyond[place + 1])
    low, high = math.log(levels[place]), math.log(levels[place + 1])
    return math.exp(low + part * (high - low))


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio else -math.inf
