"""A plot, and the number that identifies each method in all plots of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.figures.table import VariantRow


@dataclass(frozen=True)
class Plot:
    """One plot of a table.

    ``name`` is that of its file, without spaces. ``head`` and ``rows`` give the plotted data as a table, for readers
    who cannot see the plot. ``json`` is plotly's own format.
    """

    name: str
    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    json: str


def families(rows: Sequence[VariantRow]) -> dict[str, int]:
    """A number per method, which determines its colour and marker in all plots of a table."""
    names = dict.fromkeys(row.method for row in rows if not row.is_baseline)
    return {name: number for number, name in enumerate(names)}
