"""Where one of two servers ceases to be the faster one as the load grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats.estimate import CONFIDENCE, Floats
from harness.stats.repeats import over_processes

RESAMPLES = 1000
SEED = 2015

Effects = Sequence[Sequence[float]]
"""For each level of load, rising: the logarithms of a variant's time over the baseline's, one per pair of requests."""


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


def crossover(levels: Sequence[float], processes: Sequence[Effects]) -> Crossover | None:
    """The last change of sign of the effect, the median over processes of their medians; None if there is none.

    Between two levels the effect is taken to be linear in the logarithm of the load. The interval is the bootstrap's:
    processes are resampled, and the pairs of requests within each (Davison and Hinkley, 1997, section 3.8).
    Raises ValueError without a process, or if a level is not positive.
    """
    if not processes or not all(level > 0 for level in levels):
        raise ValueError("a crossover needs processes, and levels above zero")
    paired = [[np.asarray(own, dtype=np.float64) for own in each] for each in processes]
    effects = _effects(paired)
    slower = effects[-1] > 0
    level = _crossing(levels, effects, slower)
    if not 0 < level < math.inf:
        return None
    found = sorted(_crossing(levels, each, slower) for each in _redrawn(paired).tolist())
    tail = (1 - CONFIDENCE) / 2
    low, high = found[math.floor(tail * (RESAMPLES - 1))], found[math.ceil((1 - tail) * (RESAMPLES - 1))]
    return Crossover(level, min(low, level), max(high, level), slower)


def _effects(processes: Sequence[Sequence[Floats]]) -> list[float]:
    """The effect at each level."""
    return [over_processes([float(np.median(own)) for own in at_level]) for at_level in zip(*processes, strict=True)]


def _crossing(levels: Sequence[float], effects: Sequence[float], slower: bool) -> float:
    """From where on the effect keeps its sign at the highest level; 0 if it has it everywhere, infinity if nowhere."""
    signed = [each if slower else -each for each in effects]
    if signed[-1] <= 0:
        return math.inf
    below = [place for place, each in enumerate(signed) if each <= 0]
    if not below:
        return 0.0
    place = below[-1]
    part = signed[place] / (signed[place] - signed[place + 1])
    low, high = math.log(levels[place]), math.log(levels[place + 1])
    return math.exp(low + part * (high - low))


def _redrawn(processes: Sequence[Sequence[Floats]]) -> Floats:
    """The effect in each resample (rows) at each level."""
    random = np.random.default_rng(SEED)
    chosen = random.integers(len(processes), size=(RESAMPLES, len(processes)))
    medians = np.empty((*chosen.shape, len(processes[0])))
    for process, at_level in enumerate(processes):
        resamples, places = np.nonzero(chosen == process)
        for level, own in enumerate(at_level):
            drawn = own[random.integers(len(own), size=(len(resamples), len(own)))]
            medians[resamples, places, level] = np.median(drawn, axis=1)
    effects: Floats = np.median(medians, axis=1)
    return effects
