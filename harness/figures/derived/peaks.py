"""The peak memory that represents using a variant: one source, all phases except those that create the variant."""

from __future__ import annotations

from collections.abc import Iterable

from harness.core.protocols import DEVICE_PEAKS
from harness.figures.table import Peak

SOURCES = (*DEVICE_PEAKS, "VmHWM", "VmHWM since the start", "ru_maxrss since the start")
"""Sources of a peak, by priority: the memory that is usually scarcest comes first."""
NOT_OF_USE = ("quantize", "quantize_on_load")
"""Phases whose peak is a cost of creating a variant, not of using it."""


def source_that_says_most(sources: Iterable[str]) -> str | None:
    """The source with the highest priority; None if none of SOURCES is present."""
    known = set(sources)
    return next((name for name in SOURCES if name in known), None)


def peak_of_use(peaks: Iterable[Peak]) -> int | None:
    """Bytes: the highest peak of a variant's speed runs, which ``compare`` and ``history`` call peak_memory.

    The maximum over processes, not the median, because it must fit.
    """
    used = [peak for peak in peaks if peak.run == "performance" and peak.phase not in NOT_OF_USE]
    source = source_that_says_most(peak.source for peak in used)
    return max((peak.bytes for peak in used if peak.source == source), default=None)
