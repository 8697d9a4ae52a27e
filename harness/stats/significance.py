"""Tests of a mean difference: each makes a Bound for independent units, neighbouring windows, or two samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from harness.stats.bounds import Bootstrap, ScoreTest, StudentT, Typical
from harness.stats.estimate import Floats, ratio_and_error

LARGEST_CORRELATION = 0.5
"""Assumed correlation of neighbouring windows' differences, larger than any that was measured."""
REPLICATES = 4000
CACHED_UNITS = 2048
"""Resamples are cached up to this many units, 32 MB at most; they depend only on the number of units."""
SEED = 20241101


def sign_flip(sums: Floats, sizes: Floats) -> Typical:
    """Exact if each unit's difference is as likely as its opposite, which holds for exchangeable variants.

    Flipping the signs of a set of units gives at least the observed effect if the ratio Σ sums / Σ sizes over that set
    is at most the assumed one. So the ratios of all non-empty sets are the typical values (Hartigan, JASA 64, 1969;
    for ratios the same sum of residuals). There are 2ⁿ − 1 of them: n must be small.
    """
    totals, amounts = np.zeros(1), np.zeros(1)
    for total, amount in zip(sums, sizes, strict=True):
        totals, amounts = np.concatenate([totals, totals + total]), np.concatenate([amounts, amounts + amount])
    return Typical(np.sort(totals[1:] / amounts[1:]))


def permutation(ours: Floats, theirs: Floats) -> Typical:
    """Exact for two independent samples that differ by a shift: mean of ``ours`` − mean of ``theirs``.

    Swapping equally many values between the sides gives at least the observed difference if the means of the swapped
    values differ by at most the assumed shift.
    """
    mine, others = _means_by_size(ours), _means_by_size(theirs)
    gaps = [np.subtract.outer(one, other).ravel() for one, other in zip(mine, others, strict=False)]
    return Typical(np.sort(np.concatenate(gaps)))


def clustered_t(sums: Floats, sizes: Floats) -> StudentT:
    """Student's t with the clustered error of Miller, arXiv:2411.00640.

    Degrees of freedom are one less than the effective number of units of equal size, (Σ size²)² / Σ size⁴: a few large
    clusters dominate the error as they dominate the mean (Carter, Schnepel and Steigerwald, Review of Economics and
    Statistics 99, 2017). For n units of one size, n − 1.
    """
    mean, error = ratio_and_error(sums, sizes)
    squares = (sizes / sizes.max()) ** 2
    return StudentT(mean, error, max(1.0, float(squares.sum() ** 2 / (squares**2).sum()) - 1))


def continuous(normal: StudentT, sums: Floats, sizes: Floats) -> StudentT:
    """The mean moved half a step towards zero, for a test of no difference (Yates' correction for continuity).

    If the units' differences are multiples of one number, as differences of counts are, so is their sum. Flipping
    the sign of one moves it by twice that unit's difference: the smallest difference is half of a step. Otherwise it
    is close to zero.
    """
    step = float(np.abs(sums[sums != 0]).min()) / float(sizes.sum())
    return replace(normal, mean=math.copysign(max(0.0, abs(normal.mean) - step), normal.mean))


def cosine_t(sums: Floats, sizes: Floats) -> StudentT:
    """Student's t for consecutive units that may depend on their neighbours.

    The error is estimated from the slowest cosines of the sequence of residuals alone (Lazarus, Lewis, Stock and
    Watson, "HAR Inference", JBES 36, 2018), because dependence between neighbours makes slow oscillations. It is
    enlarged by what these cosines still miss if the differences follow an AR(1) process with correlation
    LARGEST_CORRELATION.
    """
    from scipy.fft import dct

    count, size = len(sums), float(sizes.sum())
    mean = float(sums.sum()) / size
    cosines, share, degrees = _cosines(count)
    swings = dct(sums - mean * sizes, type=2, norm="ortho")[1 : cosines + 1]
    return StudentT(mean, math.sqrt(count * float(np.mean(swings**2)) / share) / size, degrees)


def welch_t(ours: Floats, theirs: Floats) -> StudentT:
    """Two independent samples with different variances (Welch, Biometrika 34, 1947)."""
    parts = [float(side.var(ddof=1)) / len(side) for side in (ours, theirs)]
    total = sum(parts)
    scatter = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (ours, theirs), strict=True))
    degrees = total**2 / scatter if scatter > 0 else len(ours) + len(theirs) - 2
    return StudentT(float(ours.mean() - theirs.mean()), math.sqrt(total), degrees)


def bca(sums: Floats, sizes: Floats) -> Bootstrap:
    """The mean over resampled units, bias-corrected and accelerated; always the same seed."""
    from scipy.special import ndtri

    mean = float(sums.sum() / sizes.sum())
    residuals = sums - mean * sizes
    unit = float(np.abs(residuals).max()) or 1.0
    numerator, denominator = (residuals / unit).astype(np.float32), (sizes / sizes.mean()).astype(np.float32)
    ratios = [(drawn @ numerator) / (drawn @ denominator) for drawn in _resamples(len(sums))]
    moved = np.concatenate(ratios).astype(np.float64) / float(sizes.mean())
    replicates = np.sort(mean + unit * moved)
    middle = (np.sum(moved < 0) + np.sum(moved <= 0)) / 2 / len(moved)
    pulls = residuals / (sizes.sum() - sizes)  # how far the mean moves back if a unit is left out
    cubed, squared = float(np.sum((pulls / unit) ** 3)), float(np.sum((pulls / unit) ** 2))
    return Bootstrap(replicates, float(ndtri(middle)), cubed / (6 * squared**1.5) if squared else 0.0)


def score(sums: Floats, sizes: Floats) -> ScoreTest:
    """For units whose values lie between 0 and 1: a unit counts as one pair and changes by at most 1."""
    largest = float(sizes.max())
    up, down = np.clip(sums, 0, None).sum() / largest, np.clip(-sums, 0, None).sum() / largest
    return ScoreTest(float(up), float(down), len(sums), largest * len(sums) / float(sizes.sum()))


def mcnemar_p(sums: Floats) -> float:
    """Exact p of "as many answers became right as wrong" (McNemar 1947): for independent answers only."""
    from scipy.special import bdtr

    up, down = int(np.sum(sums > 0)), int(np.sum(sums < 0))
    return min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5))) if up + down else 1.0


def _means_by_size(values: Floats) -> list[Floats]:
    """The means of all sets of 1, 2, … of the values."""
    sums = [np.zeros(1), *(np.empty(0) for _ in values)]
    for value in values:
        sums = [sums[0], *(np.concatenate([more, fewer + value]) for fewer, more in pairwise(sums))]
    return [total / size for size, total in enumerate(sums) if size]


def _resamples(count: int) -> Iterable[npt.NDArray[np.float32]]:
    """How often each unit was drawn: REPLICATES rows (count,) in one or several arrays."""
    return [_kept(count)] if count <= CACHED_UNITS else _drawn(count)


@lru_cache(maxsize=2)
def _kept(count: int) -> npt.NDArray[np.float32]:
    return np.concatenate(list(_drawn(count)))


def _drawn(count: int) -> Iterator[npt.NDArray[np.float32]]:
    generator, equal = np.random.default_rng(SEED), np.full(count, 1 / count)
    rows = max(1, REPLICATES * CACHED_UNITS // count // 4)
    for start in range(0, REPLICATES, rows):
        size = min(rows, REPLICATES - start)
        yield generator.multinomial(count, equal, size=size).astype(np.float32)


@lru_cache(maxsize=256)
def _cosines(count: int) -> tuple[int, float, float]:
    """How many cosines to use, the share of the mean's variance that they capture, and their degrees of freedom.

    Under AR(1) with correlation ρ = LARGEST_CORRELATION. The number is the one that makes the 95% interval of
    independent units shortest; all n − 1 of them would give the ordinary standard error.
    """
    from scipy.special import stdtrit

    rho, n = LARGEST_CORRELATION, count
    angle = np.pi * np.arange(1, n) / n
    spread = 1 - 2 * rho * np.cos(angle) + rho**2
    edge = ((1 - rho) * np.cos(angle / 2) / spread) ** 2
    parity = np.where(np.arange(1, n) % 2, -1.0, 1.0)
    variances = (1 - rho**2) / spread - 4 * rho / n * edge * (1 - parity * rho**n)
    of_mean = (1 + rho) / (1 - rho) - 2 * rho * (1 - rho**n) / (n * (1 - rho) ** 2)
    shares = np.cumsum(variances) / np.arange(1, n) / of_mean
    degrees = np.cumsum(variances) ** 2 / np.cumsum(variances**2)
    best = int(np.argmin(stdtrit(degrees, 0.975) / np.sqrt(shares)))
    return best + 1, float(shares[best]), float(degrees[best])
