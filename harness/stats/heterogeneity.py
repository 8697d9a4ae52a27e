"""Whether several sources measured the same quantity: a random-effects meta-analysis of their figures.

Cochran's Q and I² (Higgins and Thompson 2002), the variance between sources by DerSimonian and Laird (1986), and the
interval of the common mean by Hartung and Knapp (2001), which holds up with few sources. Where few values tell how much
noise a source has, the test is Welch's (Biometrika 38, 1951): Q against chi-squared then finds differences too often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.stats.estimate import Estimate, numbered, ratio_and_error, t_quantile

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heterogeneity:
    """``q`` is Cochran's, ``p`` the probability of one at least as large if all sources measure the same.

    ``i_squared`` is the share of the variance that is between sources, ``tau`` the standard deviation between them, in
    the unit of the effects, and ``mean`` the common mean.
    """

    q: float
    p: float
    i_squared: float
    tau: float
    mean: Estimate


def heterogeneity(
    effects: Sequence[float], variances: Sequence[float], degrees_of_freedom: Sequence[float] | None = None
) -> Heterogeneity:
    """From the figure of each of two or more sources and its squared standard error.

    ``degrees_of_freedom`` are those of each variance, if it was estimated from independent values of its source alone;
    None: the variances count as known.
    Raises ValueError for fewer sources, and for a variance that is not positive: nothing says how much noise there is.
    """
    y, v = np.asarray(effects, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if len(y) < 2 or len(y) != len(v):
        raise ValueError("two or more sources are needed, each with a variance")
    if not (v > 0).all():
        raise ValueError("a source without a variance: how much of the difference is noise is not known")
    degrees = len(y) - 1
    w = 1 / v
    fixed = float(w @ y / w.sum())
    q = float(w @ (y - fixed) ** 2)
    tau_squared = max(0.0, (q - degrees) / float(w.sum() - (w @ w) / w.sum()))
    star = 1 / (v + tau_squared)
    mean = float(star @ y / star.sum())
    error = math.sqrt(float(star @ (y - mean) ** 2) / degrees / float(star.sum()))
    half = t_quantile(degrees) * error
    return Heterogeneity(
        q=q,
        p=_welch(q, w, degrees_of_freedom) if degrees_of_freedom is not None else _survival(q, degrees),
        i_squared=max(0.0, 1 - degrees / q) if q > 0 else 0.0,
        tau=math.sqrt(tau_squared),
        mean=Estimate(mean, mean - half, mean + half, len(y), "95% t-interval over sources, Hartung and Knapp"),
    )


def effects_of_items(
    values: Sequence[Sequence[float]], weights: Sequence[float], clusters: Sequence[str]
) -> tuple[list[float], list[float]]:
    """The mean of each source and its squared standard error, if all measured the same items, in the same order.

    What varies between items varies for all sources alike, and is no noise of theirs: each item's mean over the sources
    is taken out first (a two-way layout), so that with two sources Q is the squared z of the paired difference.
    """
    x, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    sources = len(x)
    means = x.mean(axis=0)
    whole = float(w @ means / w.sum())
    count, members = numbered(clusters)
    sizes: Floats = np.bincount(members, weights=w, minlength=count).astype(np.float64)
    effects, variances = [], []
    for apart in x - means:
        sums: Floats = np.bincount(members, weights=apart * w, minlength=count).astype(np.float64)
        mean, error = ratio_and_error(sums, sizes) if count > 1 else (float(sums.sum() / sizes.sum()), 0.0)
        effects.append(whole + mean)
        variances.append(error**2 * sources / (sources - 1))
    return effects, variances


def _welch(q: float, weights: Floats, degrees_of_freedom: Sequence[float]) -> float:
    from scipy.special import fdtrc

    k = len(weights)
    spread = float(((1 - weights / weights.sum()) ** 2 / np.asarray(degrees_of_freedom)).sum())
    f = q / (k - 1) / (1 + 2 * (k - 2) / (k**2 - 1) * spread)
    return float(fdtrc(k - 1, (k**2 - 1) / (3 * spread), f))


def _survival(q: float, degrees: int) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(degrees, q))
