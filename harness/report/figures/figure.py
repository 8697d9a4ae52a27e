"""What a figure is, and which variants it has room for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.analysis.table import VariantRow

MOST_ROWS = 40
"""So many bars, lines of a heat map, or lines of a table are read; the table above holds all variants."""


@dataclass(frozen=True)
class Figure:
    """One plot of a table.

    ``name`` is that of its file, without spaces. ``head`` and ``rows`` say as a table what is drawn, for readers who
    do not see it. ``json`` is plotly's own.
    """

    name: str
    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    json: str


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


def families(rows: Sequence[VariantRow]) -> dict[str, int]:
    """A number per method, thus a colour and a marker, the same in all figures of a table."""
    names = dict.fromkeys(row.method for row in rows if not row.is_baseline)
    return {name: number for number, name in enumerate(names)}
