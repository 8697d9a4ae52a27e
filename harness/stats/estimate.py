"""Estimates with their uncertainty: means over windows, divergences per token. ``timing`` estimates speeds.

Tokens of one window are not independent, so every interval of a quality figure is based on windows as
clusters: Miller, "Adding Error Bars to Evals", arXiv:2411.00640. ``rule`` compares variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.core.record import Measurement

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
IntervalKind = Literal["units", "processes", "range"]
"""Kinds of intervals: 95% over units of a text, 95% over processes, or the range of too few processes."""


@dataclass(frozen=True)
class Estimate:
    """A value and the interval around it; ``low`` and ``high`` are None without an interval, as for ``n`` below two.

    ``n`` counts the independent units (windows, pairs of windows, processes). ``kind`` is the kind of interval,
    ``method`` describes it in words; without an interval it says why, if more processes would give one.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    method: str
    kind: IntervalKind = "units"

    def within(self, least: float, most: float) -> Estimate:
        """The same with its interval cut to the possible values (a share lies between 0 and 1)."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))


def ratio_of_sums(sums: Sequence[float], sizes: Sequence[float], method: str) -> Estimate:
    """The mean Σ sums / Σ sizes over clusters, with a cluster-robust t-interval (G − 1 degrees of freedom).

    Clusters of equal size give the ordinary t-interval.
    Raises ValueError if there is nothing to average.
    """
    total, size = np.asarray(sums, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    count = len(total)
    if count == 0 or size.sum() <= 0:
        raise ValueError("nothing to average: no clusters, or none with a weight")
    if count < 2:
        return Estimate(float(total.sum() / size.sum()), None, None, count, method)
    mean, error = ratio_and_error(total, size)
    half = _t_quantile(count - 1) * error
    return Estimate(mean, mean - half, mean + half, count, method)


def ratio_and_error(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """Σ sums / Σ sizes over two or more clusters, and its cluster-robust standard error.

    With residuals r = sum − mean · size for each of G clusters, the squared standard error is
    G/(G−1) · Σ r² / (Σ sizes)²: the ratio estimator of Cochran, Sampling Techniques, chapter 6, and
    the clustered error of Miller, arXiv:2411.00640, with a small-sample factor.
    """
    count, size = len(sums), float(sizes.sum())
    mean = float(sums.sum()) / size
    residuals = sums - mean * sizes
    return mean, math.sqrt(count / (count - 1) * float(residuals @ residuals)) / size


def clustered_mean(measurement: Measurement) -> Estimate:
    """The mean of a paired measurement in its own unit; its ``cluster_ids`` name the independent units.

    Without cluster_ids each value is a cluster of its own; without weights each value counts once.
    """
    values = np.asarray(measurement.values, dtype=np.float64)
    weights = _weights(measurement)
    ids = measurement.cluster_ids or tuple(map(str, range(len(values))))
    names, members = np.unique(np.asarray(ids), return_inverse=True)
    sums = np.bincount(members, weights=values * weights, minlength=len(names))
    sizes = np.bincount(members, weights=weights, minlength=len(names))
    unit = "clusters" if measurement.cluster_ids else "values"
    return ratio_of_sums(sums.tolist(), sizes.tolist(), f"95% t-interval over {unit}")


def with_range(value: float, figures: Sequence[float]) -> Estimate:
    """A value for processes that are too few for an interval, with the range of their ``figures``."""
    low, high = (min(figures), max(figures)) if len(figures) > 1 else (None, None)
    return Estimate(value, low, high, len(figures), "range of processes", "range")


def perplexity(nll: Measurement) -> Estimate:
    """exp of the token-weighted mean of the windows' nat/token, and of the ends of its interval."""
    mean = clustered_mean(nll)
    return transformed(replace(mean, method=f"95% t-interval over {_units(nll)}"), exponential)


def t_interval(values: Floats) -> tuple[float, float]:
    """The ends of the 95% t-interval of the mean of two or more values."""
    half = _t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie, linearly interpolated."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share))


def _units(nll: Measurement) -> str:
    return "documents" if nll.cluster_ids else "windows"


def _weights(measurement: Measurement) -> Floats:
    count = len(measurement.values)
    return np.asarray(measurement.weights or np.ones(count), dtype=np.float64)


def transformed(estimate: Estimate, increasing: Callable[[float], float]) -> Estimate:
    """The estimate of an increasing function of the estimated quantity."""
    low = None if estimate.low is None else increasing(estimate.low)
    high = None if estimate.high is None else increasing(estimate.high)
    return replace(estimate, value=increasing(estimate.value), low=low, high=high)


def exponential(nat: float) -> float:
    """exp, or infinity if a broken variant's figures overflow."""
    return math.exp(nat) if nat < 700 else math.inf


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))
