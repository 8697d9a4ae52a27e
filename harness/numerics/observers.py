"""Observers choose the range [low, high] of values that an integer grid covers.

Each takes values (..., n), the format and whether its codes are symmetric, and returns low and high (..., 1), one range
per row. Values outside are clipped: a narrower range clips more values but has smaller steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from harness.numerics import grid
from harness.numerics.kinds import IntFormat
from harness.numerics.rounding import Array

Range = tuple[Array, Array]
Observer = Callable[[Array, IntFormat, bool], Range]

PERCENTILE = 99.99
SHRINKS = 100
BINS = 2048


def min_max(values: Array, form: IntFormat, symmetric: bool) -> Range:
    """``low = min x, high = max x``: nothing is clipped. Jacob et al., arXiv:1712.05877, section 3.1."""
    return values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)


def percentile(values: Array, form: IntFormat, symmetric: bool, percent: float = PERCENTILE) -> Range:
    """The range that contains ``percent`` of the values; the rest are clipped. Wu et al., arXiv:2004.09602.

    Symmetric: ±t, where t is that percentile of |x|. Asymmetric: the percentiles 100 − percent and percent of x.
    """
    if symmetric:
        bound = np.percentile(np.abs(values), percent, axis=-1, keepdims=True).astype(np.float32)
        return -bound, bound
    low, high = np.percentile(values, [100 - percent, percent], axis=-1, keepdims=True).astype(np.float32)
    return low, high


def mse(values: Array, form: IntFormat, symmetric: bool) -> Range:
    """``argmin Σ (x − x̂(low, high))²``. Nagel et al., arXiv:2106.08295, section 3.1 (MSE).

    Candidates are [min x, max x] clipped to ±t, for t = 1/100, 2/100 … 1 of max |x|. The widest wins a tie.
    """
    full = min_max(values, form, symmetric)
    largest = np.maximum(-full[0], full[1])
    best, least = largest, np.full(largest.shape, np.inf)
    for step in range(SHRINKS, 0, -1):
        bound = largest * np.float32(step / SHRINKS)
        rounded = grid.over(*_cut(full, bound), form, symmetric).round(values)
        loss = np.square(values - rounded, dtype=np.float64).sum(axis=-1, keepdims=True)
        best, least = np.where(loss < least, bound, best), np.minimum(loss, least)
    return _cut(full, best)


def kl(values: Array, form: IntFormat, symmetric: bool) -> Range:
    """``argmin_t KL(P_t ‖ Q_t)`` over thresholds t of |x|. Migacz, "8-bit Inference with TensorRT", GTC 2017.

    The histogram of |x| has 2048 bins. For each t, P_t is the histogram up to t, with all counts beyond t added to its
    last bin. Q_t is the histogram up to t, merged into as many bins as the format has levels on one side and then
    spread evenly over the nonempty bins of P_t. The range is [min x, max x] clipped to ±t. As published, t is at least
    that many bins, and KL is infinite where Q_t is empty: at 8 bits an outlier 16 times beyond the rest is kept.
    """
    full = min_max(values, form, symmetric)
    rows = values.reshape(-1, values.shape[-1])
    one_sided = not symmetric and not form.signed
    bounds = [_kl_threshold(np.abs(row), 2 ** (form.bits - (not one_sided or bool(row.min() < 0)))) for row in rows]
    return _cut(full, np.asarray(bounds, np.float32).reshape(full[0].shape))


OBSERVERS: dict[str, Observer] = {"min-max": min_max, "percentile": percentile, "mse": mse, "kl": kl}


def _cut(full: Range, bound: Array) -> Range:
    return np.maximum(full[0], -bound), np.minimum(full[1], bound)


def _kl_threshold(magnitudes: Array, levels: int) -> float:
    """The threshold t: the right edge of the last bin kept."""
    counts, edges = np.histogram(magnitudes, bins=BINS, range=(0, float(magnitudes.max()) or 1.0))
    divergences = [_kl_of(counts, kept, levels) for kept in range(levels, BINS + 1)]
    return float(edges[levels + int(np.argmin(divergences))])


def _kl_of(counts: npt.NDArray[np.int64], kept: int, levels: int) -> float:
    """KL(P ‖ Q) in nats of the first ``kept`` bins; infinite where Q is empty and P is not."""
    clipped = counts[:kept].astype(np.float64)
    clipped[-1] += counts[kept:].sum()
    filled = clipped > 0
    level = np.arange(kept) * levels // kept
    total = np.bincount(level, counts[:kept], levels)
    share = np.bincount(level, filled, levels)
    spread = np.divide(total, share, out=np.zeros(levels), where=share > 0)[level]
    p, q = clipped[filled] / clipped.sum(), spread[filled] / max(total.sum(), 1)
    if not q.all():
        return np.inf
    return float((p * np.log(p / q)).sum())
