"""Which variants stand where there is not room for all."""

from __future__ import annotations

from collections.abc import Iterable

from harness.figures.table import VariantRow

MOST_ROWS = 40
"""So many bars, lines of a heat map, or lines of a short table are read; the page's table holds all variants."""


def chosen(rows: Iterable[VariantRow], most: int = MOST_ROWS) -> tuple[VariantRow, ...]:
    """Where there are more than ``most``: the baseline and the front first. They keep the order of the table."""
    all_rows = list(rows)
    if len(all_rows) <= most:
        return tuple(all_rows)
    first = sorted(range(len(all_rows)), key=lambda index: (not all_rows[index].is_baseline, not all_rows[index].front))
    return tuple(all_rows[index] for index in sorted(first[:most]))


def left_out(shown: int, of: int) -> str:
    """A sentence for a caption; empty where all are shown."""
    return f" {shown} of {of:,} variants are shown, those on the front first." if shown < of else ""
