"""Figures as they might have come out in another measurement: a parametric bootstrap.

Assumption: the error of an estimate is Student's t with n − 1 degrees of freedom, scaled on each side of its value to
the interval in the table. Figures with the influence of the windows they rest on share the random draws of these
windows (a Gaussian multiplier of each window's influence), between variants and between figures; all others are
independent, which overstates how often two variants of similar speed change places. A figure without an interval does
not vary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from harness.stats.estimate import Estimate, Floats, t_quantile, transformed
from harness.stats.influence import Influence

MOST = 2000
"""Draws: a share of them is accurate to 0.022 (two standard errors)."""
FEWEST = 200
WORK = 200_000_000
"""Approximate limit on pairwise comparisons of variants over all draws."""
Scale = Literal["linear", "log", "log1p"]
"""``log`` is for speeds, ``log1p`` for a ratio minus one."""
LEAST = {"log": 0.0, "log1p": -1.0}
MEDIAN_OVER_MEAN = 1.2533
"""The standard error of the median of normal values over that of their mean: √(π/2)."""


@dataclass
class Sampler:
    """``count`` random draws; reproducible for the same sequence of calls."""

    count: int = MOST
    seed: int = 0
    _windows: dict[str, Floats] = field(default_factory=dict)
    _texts: dict[tuple[str, ...], Floats] = field(default_factory=dict)
    _spreads: dict[int, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def column(self, estimate: Estimate, influence: Influence | None = None, scale: Scale = "linear") -> Floats:
        """The estimate as it might have come out, (count,), drawn on the scale on which its error is symmetric."""
        return self.columns([(estimate, influence, scale)])[:, 0]

    def columns(self, drawn: Sequence[tuple[Estimate, Influence | None, Scale]]) -> Floats:
        """Several estimates, (count, estimates): the same draws as of one after another."""
        wide = np.zeros((len(drawn), self.count))  # in units of the standard error
        numbers = np.empty((3, len(drawn)))  # the value, and the errors below and above it
        scaled: dict[str, list[int]] = {"log": [], "log1p": []}
        for place, (estimate, influence, scale) in enumerate(drawn):
            least = estimate.value if estimate.low is None else min(estimate.low, estimate.value)
            if scale != "linear" and least > LEAST[scale]:
                estimate = transformed(estimate, math.log if scale == "log" else math.log1p)
                scaled[scale].append(place)
            low, high = estimate.low, estimate.high
            if low is None or high is None or not math.isfinite(low + high) or estimate.n < 2 or low == high:
                numbers[:, place] = estimate.value, 0.0, 0.0
                continue
            degrees = estimate.n - 1
            numbers[:, place] = estimate.value, *_errors(estimate, low, high, degrees)
            wide[place] = self._wide(influence, degrees)
        value, below, above = numbers[:, :, None]
        found = value + wide * np.where(wide < 0, below, above)
        with np.errstate(over="ignore"):
            for scale, back in (("log", np.exp), ("log1p", np.expm1)):
                found[scaled[scale]] = back(found[scaled[scale]])
        return np.ascontiguousarray(found.T)

    def _wide(self, influence: Influence | None, degrees: int) -> Floats:
        """Student's t: shared by all that rest on the same windows, or independent."""
        if influence is None or not any(influence.parts):
            return np.asarray(self._random.standard_normal(self.count) * self._spread(degrees), dtype=np.float64)
        if degrees not in self._spreads:
            self._spreads[degrees] = self._spread(degrees)
        return self._shared(influence) * self._spreads[degrees]

    def _shared(self, influence: Influence) -> Floats:
        """A standard normal value that increases with the draws of the windows."""
        if influence.units not in self._texts:
            self._texts[influence.units] = np.stack([self._window(unit) for unit in influence.units])
        parts = np.asarray(influence.parts)
        return np.asarray(parts @ self._texts[influence.units] / np.linalg.norm(parts), dtype=np.float64)

    def _window(self, unit: str) -> Floats:
        if unit not in self._windows:
            self._windows[unit] = self._random.standard_normal(self.count)
        return self._windows[unit]

    def _spread(self, degrees: int) -> Floats:
        return np.sqrt(degrees / self._random.chisquare(degrees, self.count))


def draws_for(variants: int) -> int:
    """The number of draws that is affordable for that many variants."""
    return max(FEWEST, min(MOST, WORK // max(variants, 1) ** 2))


def _errors(estimate: Estimate, low: float, high: float, degrees: int) -> tuple[float, float]:
    """Standard errors downwards and upwards.

    The range of n processes is not a confidence interval: it is about 2 Φ⁻¹((n − 3/8) / (n + 1/4)) standard deviations
    wide (Blom, 1958), and the estimate is their median.
    """
    if estimate.kind == "range":
        from scipy.special import ndtri

        n = estimate.n
        deviation = (high - low) / (2 * float(ndtri((n - 0.375) / (n + 0.25))))
        return (MEDIAN_OVER_MEAN * deviation / math.sqrt(n),) * 2
    quantile = t_quantile(degrees)
    return max(estimate.value - low, 0.0) / quantile, max(high - estimate.value, 0.0) / quantile
