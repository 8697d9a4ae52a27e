"""The error of rounded values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.numerics.rounding import Array


@dataclass(frozen=True)
class RoundingError:
    """``sqnr_db`` is infinite if rounding was exact; ``largest`` and ``mean`` are in the unit of the values."""

    sqnr_db: float
    largest: float
    mean: float


def rounding_error(values: Array, rounded: Array) -> RoundingError:
    """SQNR = 10 log10(Σ x² / Σ (x̂ − x)²) in dB, max |x̂ − x|, and the mean of x̂ − x, its bias.

    SQNR as in Jayant and Noll, "Digital Coding of Waveforms", 1984. Sums use float64. A value that became
    infinite makes the SQNR −∞. Raises ValueError if there are no values.
    """
    if not values.size:
        raise ValueError("no values")
    noise = rounded.astype(np.float64) - values
    with np.errstate(over="ignore", invalid="ignore"):
        return RoundingError(_decibels(values, noise), float(np.abs(noise).max()), float(noise.mean()))


def _decibels(values: Array, noise: npt.NDArray[np.float64]) -> float:
    lost = float(np.square(noise).sum())
    if lost == 0:
        return math.inf
    ratio = float(np.square(values, dtype=np.float64).sum()) / lost
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf
