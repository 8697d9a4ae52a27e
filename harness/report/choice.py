"""Which variants to show if there is not room for all."""

from __future__ import annotations

from collections.abc import Iterable

from harness.figures.table import VariantRow

MOST_ROWS = 40
"""The most bars, heat map rows or short table rows that remain readable; the page's table holds all variants."""


def chosen(rows: Iterable[VariantRow], most: int = MOST_ROWS) -> tuple[VariantRow, ...]:
    """At most ``most`` rows, preferring the baseline and the front, in the order of the table."""
    all_rows = list(rows)
    if len(all_rows) <= most:
        return tuple(all_rows)
    first = sorted(range(len(all_rows)), key=lambda index: (not all_rows[index].is_baseline, not all_rows[index].front))
    return tuple(all_rows[index] for index in sorted(first[:most]))


def left_out(shown: int, of: int) -> str:
    """A sentence for a caption; empty if all are shown."""
    return f" {shown} of {of:,} variants are shown, those on the front first." if shown < of else ""
