"""How far an axis reaches, of a plot or of the small bars in a table."""

from __future__ import annotations

import numpy as np

from harness.figures.figure import LOG_FROM_RATIO
from harness.stats.estimate import Floats

USUAL = 3
"""An axis has room for an interval that is so many times as wide as the median one."""


def extent(figures: Floats, lows: Floats, highs: Floats, room: float) -> tuple[float, float]:
    """From the lowest to the highest end of an interval, plus ``room``, a share of that span, on each side.

    All in the coordinates of the axis; a missing or infinite end is not finite. An interval that hardly bounds anything
    does not make all others unreadable: beyond the figures, there is room for as much as they are apart, and for
    ``USUAL`` times the median distance from a figure to an end. The rest is cut off.
    """
    if not len(figures):
        return -1.0, 1.0
    least, most = float(figures.min()), float(figures.max())
    distances = np.abs(np.concatenate([figures - lows, highs - figures]))
    distances = distances[np.isfinite(distances)]
    usual = float(np.quantile(distances, 0.5, method="lower")) if len(distances) else 0.0
    beyond = max(most - least, USUAL * usual)
    low = min(least, max(float(lows[np.isfinite(lows)].min(initial=least)), least - beyond))
    high = max(most, min(float(highs[np.isfinite(highs)].max(initial=most)), most + beyond))
    spare = (high - low) * room if high > low else abs(high) * 0.1 or 1.0
    return low - spare, high + spare


def is_wide(figures: Floats) -> bool:
    """Whether figures are so far apart that their axis is logarithmic."""
    return bool(len(figures) and figures.min() > 0 and figures.max() > LOG_FROM_RATIO * figures.min())


def logarithms(numbers: Floats, least: float) -> Floats:
    """Base-ten logarithms of numbers, those below ``least`` drawn there: a logarithmic axis has no zero."""
    found: Floats = np.log10(np.maximum(numbers, least))
    return found
