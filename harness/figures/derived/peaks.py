"""The peak of memory that stands for using a variant: of one source, over all phases but those that make it."""

from __future__ import annotations

from collections.abc import Iterable

from harness.figures.table import Peak

SOURCES = ("cuda allocated", "VmHWM", "VmHWM since the start", "ru_maxrss since the start")
"""Of a peak: what a user pays for first."""
NOT_OF_USE = ("quantize", "quantize_on_load")
"""Phases whose peak is the price of making a variant, not of using it."""


def source_that_says_most(sources: Iterable[str]) -> str | None:
    """None where there is none of SOURCES."""
    known = set(sources)
    return next((name for name in SOURCES if name in known), None)


def peak_of_use(peaks: Iterable[Peak]) -> int | None:
    """Bytes: the highest of a variant's speed runs, which ``compare`` and ``history`` call peak_memory.

    The highest of all processes, not their median: it is what has to fit.
    """
    used = [peak for peak in peaks if peak.run == "performance" and peak.phase not in NOT_OF_USE]
    source = source_that_says_most(peak.source for peak in used)
    return max((peak.bytes for peak in used if peak.source == source), default=None)
