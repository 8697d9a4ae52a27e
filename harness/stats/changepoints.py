"""Where the level of a series of figures changes.

Figures with noise: PELT (Killick, Fearnhead and Eckley, "Optimal detection of changepoints with a linear computational
cost", JASA 107, 2012; arXiv:1101.1438) as implemented in ``ruptures``, with the cost Σ|x − median|, which a single
outlying session does not move. A change must lower the cost by PENALTY · σ, where σ is the standard deviation of one
figure, estimated from the mean difference of neighbours, E|xᵢ₊₁ − xᵢ| = 2σ/√π under normal noise. Changes make this
estimate too large, never too small, so they can hide one another but cannot create false ones.

The usual penalty 2σ² log n of squared distances, with σ from the median difference, is wrong for series as short as
these: it finds a change in one of five series of 8 to 20 figures of pure noise. PENALTY · σ finds one in about
one of a hundred, under normal, heavy-tailed and skewed noise alike: benchmarks/regression_power.py.
Noise is assumed to be independent from session to session. A machine that drifts over weeks really changes, and that
is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

PENALTY = 7.0
"""How much a change must lower the cost, in σ."""
FEWEST = 8
"""Minimum number of figures for a search: with fewer, σ is too uncertain and only very large changes would be found."""
SHORTEST = 2
"""Minimum number of figures in a level: a single deviation may be chance."""
MOST = 150
"""Only this many of the newest figures are searched, because the run time grows with the square of their number."""


def noisy(values: Sequence[float]) -> list[int]:
    """Positions of the first figure of each new level; empty if there are too few figures or all are equal."""
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
    """Positions of figures that differ from the previous one by more than a fraction ``rounding`` of the larger."""
    pairs = pairwise(values)
    return [at for at, (old, new) in enumerate(pairs, 1) if abs(new - old) > rounding * max(abs(new), abs(old))]


def repeats(values: Sequence[float]) -> bool:
    """Whether most neighbouring figures are exactly equal, which never happens by chance: they have no noise."""
    equal = sum(old == new for old, new in pairwise(values))
    return 2 * equal > len(values) - 1


def sigma(values: Sequence[float], changes: Sequence[int] = ()) -> float:
    """The standard deviation of one figure around its level, from neighbours of the same level."""
    return float(np.delete(np.abs(np.diff(values)), np.asarray(changes, dtype=int) - 1).mean()) * math.sqrt(math.pi) / 2
