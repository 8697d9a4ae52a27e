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


def next_level(levels: Sequence[float], met: Met, share: float, whole: bool) -> float | None:
    """The level to measure next: halfway between the largest that holds and the one above it, ``whole`` or not.

    None if all hold, or if no whole number lies between the two.
    """
    held = largest_level(levels, met, share)
    above = [level for level in levels if level > held]
    if not above:
        return None
    middle = (held + min(above)) / 2
    level = float(math.floor(middle)) if whole else middle
    return level if held < level else None


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
    random = np.random.default_rng(SEED)
    sides = [_bracket(levels, _attained(processes, random), share) for _ in range(RESAMPLES)]
    low, _ = percentiles(np.array([held for held, _ in sides]))
    ends = sorted(above for _, above in sides)
    high = ends[math.ceil(0.975 * (RESAMPLES - 1))]  # a quantile between a number and infinity is none
    method = f"95% bootstrap over {len(processes)} processes and their requests, to the level above that fails"
    return Estimate(value, min(low, value), max(high, value), len(processes), method, "processes")


def _attained(processes: Sequence[Met], random: np.random.Generator) -> list[float]:
    """The share of requests that met the SLO at each level, in one resample."""
    chosen = [processes[index] for index in random.integers(len(processes), size=len(processes))]
    return [
        float(np.mean(np.concatenate([_redrawn(np.asarray(own, dtype=np.float64), random) for own in at_level])))
        for at_level in zip(*chosen, strict=True)
    ]


def _redrawn(values: Floats, random: np.random.Generator) -> Floats:
    return values[random.integers(len(values), size=len(values))]


def _bracket(levels: Sequence[float], attained: Sequence[float], share: float) -> tuple[float, float]:
    held = largest_level(levels, [[each] for each in attained], share)
    return held, min((level for level in levels if level > held), default=math.inf)
