"""The largest load at which a server holds an SLO, by the levels of load that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from harness.stats.estimate import Estimate, Floats
from harness.stats.repeats import over_processes
from harness.stats.timing import percentiles

RESAMPLES = 1000
SEED = 2024

Met = Sequence[Sequence[float]]
"""For each level of load, rising, whether each request of one process met the SLO: 1 or 0."""


def largest_level(levels: Sequence[float], met: Met, share: float) -> float:
    """The highest level at which this share of the requests, or more, met the SLO, as at all levels below; else 0."""
    held = list(takewhile(lambda pair: np.mean(pair[1]) >= share, zip(levels, met, strict=True)))
    return held[-1][0] if held else 0.0


def next_level(levels: Sequence[float], met: Met, share: float, whole: bool, least: float) -> float | None:
    """The level to measure next: halfway between the largest that holds and the one above it, ``whole`` or not.

    None if all hold, if no whole number lies between the two, or if it is below ``least``.
    """
    held = largest_level(levels, met, share)
    above = [level for level in levels if level > held]
    if not above:
        return None
    middle = (held + min(above)) / 2
    level = float(math.floor(middle)) if whole else middle
    return level if level > held and level >= least else None


def capacity(levels: Sequence[float], processes: Sequence[Met], share: float) -> Estimate:
    """The median over processes of ``largest_level``.

    The load at which a server ceases to hold an SLO lies between two levels that were measured. The interval begins at
    the lower of them in the 2.5th percentile of resamples, and ends at the higher of them in the 97.5th; infinity says
    that even the highest level may hold. Processes are resampled, and requests within each (two-stage bootstrap of
    Davison and Hinkley, 1997, section 3.8). Raises ValueError without a level or a process.
    """
    if not levels or not processes:
        raise ValueError("no load was measured")
    value = over_processes([largest_level(levels, each, share) for each in processes])
    holding = np.cumprod(_attained(processes) >= share, axis=1).sum(axis=1)  # levels from the lowest on, per resample
    ends = np.array([0.0, *levels, math.inf])
    low, _ = percentiles(ends[holding])
    above = np.sort(ends[holding + 1])
    high = float(above[math.ceil(0.975 * (RESAMPLES - 1))])  # a quantile between a number and infinity is none
    method = f"95% bootstrap over {len(processes)} processes and their requests, to the level above that fails"
    return Estimate(value, min(low, value), max(high, value), len(processes), method, "processes")


def _attained(processes: Sequence[Met]) -> Floats:
    """The share of requests that met the SLO, in each resample (rows) at each level.

    Of n requests that are drawn from n with replacement, as many met it as a binomial variable says.
    """
    random = np.random.default_rng(SEED)
    chosen = random.integers(len(processes), size=(RESAMPLES, len(processes)))
    requests = np.array([[len(own) for own in each] for each in processes])
    met = np.array([[sum(own) for own in each] for each in processes])
    drawn = random.binomial(requests[chosen], (met / requests)[chosen])
    attained: Floats = drawn.sum(axis=1) / requests[chosen].sum(axis=1)
    return attained
