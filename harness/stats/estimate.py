"""Estimates with their uncertainty: means over windows, divergences per token. ``timing`` estimates speeds.

Tokens of one window are not independent, so every interval of a quality figure is based on windows as
clusters: Miller, "Adding Error Bars to Evals", arXiv:2411.00640. ``rule`` compares variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.core.record import Measurement

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

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
        low, high = max(self.low, least), min(self.high, most)
        return Estimate(self.value, low, high, self.n, self.method, self.kind)


def ratio_of_sums(sums: npt.ArrayLike, sizes: npt.ArrayLike, method: str) -> Estimate:
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
    half = t_quantile(count - 1) * error
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


def ratio_of_means(
    upper: tuple[npt.ArrayLike, npt.ArrayLike], lower: tuple[npt.ArrayLike, npt.ArrayLike], method: str
) -> Estimate | None:
    """The ratio of two means over the same clusters, each given by its sums and sizes in them.

    The interval is the t-interval of the ratio's logarithm, whose error is clustered as in ``ratio_and_error``: by the
    delta method a cluster contributes the relative residual of the one mean less that of the other. None if a mean is
    not positive, or if there is no cluster.
    """
    (up, up_sizes), (low, low_sizes) = (
        (np.asarray(sums, dtype=np.float64), np.asarray(sizes, dtype=np.float64)) for sums, sizes in (upper, lower)
    )
    if not (up.sum() > 0 and low.sum() > 0 and up_sizes.sum() > 0 and low_sizes.sum() > 0):
        return None
    count = len(up)
    logarithm = math.log(up.sum() / up_sizes.sum()) - math.log(low.sum() / low_sizes.sum())
    if count < 2:
        return Estimate(math.exp(logarithm), None, None, count, method)
    parts = up / up.sum() - up_sizes / up_sizes.sum() - low / low.sum() + low_sizes / low_sizes.sum()
    half = t_quantile(count - 1) * math.sqrt(count / (count - 1) * float(parts @ parts))
    return transformed(Estimate(logarithm, logarithm - half, logarithm + half, count, method), exponential)


def clustered_mean(measurement: Measurement) -> Estimate:
    """The mean of a paired measurement in its own unit; its ``cluster_ids`` name the independent units.

    Without cluster_ids each value is a cluster of its own; without weights each value counts once.
    """
    values = np.asarray(measurement.values, dtype=np.float64)
    weights = _weights(measurement)
    count, members = numbered(measurement.cluster_ids or _places(len(values)))
    sums = np.bincount(members, weights=values * weights, minlength=count)
    sizes = np.bincount(members, weights=weights, minlength=count)
    return ratio_of_sums(sums, sizes, over_clusters(measurement))


def over_clusters(measurement: Measurement) -> str:
    """The method of ``clustered_mean``'s interval, in words."""
    return f"95% t-interval over {'clusters' if measurement.cluster_ids else 'values'}"


def numbered(names: Sequence[str]) -> tuple[int, Places]:
    """How many different names there are, and each one's number among them, sorted: (n,).

    The measurements of a sweep mostly have the same items and clusters, so the latest ones are kept.
    """
    return _numbered(tuple(names))


@lru_cache(maxsize=64)
def _numbered(names: tuple[str, ...]) -> tuple[int, Places]:
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return len(numbers), np.array([numbers[name] for name in names], dtype=np.intp)


@lru_cache(maxsize=64)
def _places(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


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
    mean = float(values.sum()) / len(values)
    apart = values - mean
    spread = math.sqrt(float((apart * apart).sum()) / (len(values) - 1))
    half = t_quantile(len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half


def quantile(values: Sequence[float] | Floats, share: float) -> float:
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
    return Estimate(increasing(estimate.value), low, high, estimate.n, estimate.method, estimate.kind)


def exponential(nat: float) -> float:
    """exp, or infinity if a broken variant's figures overflow."""
    return math.exp(nat) if nat < 700 else math.inf


@lru_cache(maxsize=256)
def t_quantile(degrees: int) -> float:
    """The quantile of Student's t that ends the 95% interval on either side."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))
