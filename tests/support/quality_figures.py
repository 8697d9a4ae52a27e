"""The figures of a record that do not depend on where its run had the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.record import RunRecord

MEMORY = ("peak_memory_bytes", "memory_before_bytes", "memory_after_bytes")


def quality_figures(record: RunRecord) -> Mapping[Any, tuple[float, ...]]:
    """Every value that was measured but for those of memory, by metric and protocol."""
    return {
        (each.metric, tuple(sorted(each.protocol.items(), key=str))): tuple(each.values)
        for each in record.outcome.measurements
        if each.metric not in MEMORY
    }
