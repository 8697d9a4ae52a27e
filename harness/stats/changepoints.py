"""Where a series of figures changes its level.

Figures with noise: PELT (Killick, Fearnhead and Eckley, "Optimal detection of changepoints with a linear computational
cost", JASA 107, 2012; arXiv:1101.1438) as ``ruptures`` has it, with the cost Σ|x − median|, which one session far out
does not move. A change must pay for itself: it must lower the cost by PENALTY · σ, where σ is that of one figure, taken
from the mean difference of neighbours, E|xᵢ₊₁ − xᵢ| = 2σ/√π under normal noise. Changes make that σ too large, never
too small, so that they can hide one another and feign none.

The usual penalty 2σ² log n of squared distances, with σ from the median difference, is wrong for series as short as
these: it finds a change in one of five series of 8 to 20 figures of pure noise. PENALTY · σ finds one in about
one of a hundred, under normal, heavy-tailed and skewed noise alike: benchmarks/regression_power.py.
Noise is taken to be independent from session to session. A machine that drifts over weeks has changes, rightly found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

PENALTY = 7.0
"""What a change must take off the cost, in σ."""
FEWEST = 8
"""Figures below which no change is looked for: σ is too poorly known, and only very large changes would be found."""
SHORTEST = 2
"""Figures that a level holds at least: what was seen once may be chance."""
MOST = 150
"""The newest figures in which changes are looked for; the time it takes grows with the square of their number."""


def noisy(values: Sequence[float]) -> list[int]:
    """Positions of the first figure of each new level; none where there are too few, or where all are equal."""
    if len(values) < FEWEST:
        return []
    from ruptures import Pelt

    skipped = max(0, len(values) - MOST)
    signal = np.asarray(values[skipped:], dtype=np.float64)
    spread = sigma(signal.tolist())
    if not spread or not math.isfinite(spread):
        return []
    found = Pelt(model="l1", min_size=SHORTEST, jump=1).fit_predict(signal / spread, PENALTY)
    return [skipped + int(position) for position in found[:-1]]


def noiseless(values: Sequence[float], rounding: float = 0.0) -> list[int]:
    """Positions of figures that are not the one before, by more than a part ``rounding`` of the larger."""
    pairs = pairwise(values)
    return [at for at, (old, new) in enumerate(pairs, 1) if abs(new - old) > rounding * max(abs(new), abs(old))]


def repeats(values: Sequence[float]) -> bool:
    """Whether figures that no chance makes equal, such as means of likelihoods, mostly are: they have no noise."""
    equal = sum(old == new for old, new in pairwise(values))
    return 2 * equal > len(values) - 1


def sigma(values: Sequence[float], changes: Sequence[int] = ()) -> float:
    """The standard deviation of one figure around its level, from neighbours of one level."""
    return float(np.delete(np.abs(np.diff(values)), np.asarray(changes, dtype=int) - 1).mean()) * math.sqrt(math.pi) / 2
