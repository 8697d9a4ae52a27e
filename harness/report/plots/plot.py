"""What a figure is, and how its methods are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.figures.table import VariantRow


@dataclass(frozen=True)
class Plot:
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


def families(rows: Sequence[VariantRow]) -> dict[str, int]:
    """A number per method, thus a colour and a marker, the same in all figures of a table."""
    names = dict.fromkeys(row.method for row in rows if not row.is_baseline)
    return {name: number for number, name in enumerate(names)}
