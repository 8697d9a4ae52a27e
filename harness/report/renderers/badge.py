"""A badge: what quantizing did to one figure of quality, with its interval and its verdict, as a small SVG image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.figures.divergence import KL
from harness.figures.figure import Figure
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.table import Table, VariantRow
from harness.figures.tasks import ACCURACY_CHANGE
from harness.report.column import Column, cell, columns_of
from harness.report.page import table_labels
from harness.report.templating import template
from harness.stats.estimate import Estimate

FIGURES: tuple[Figure[Any], ...] = (PERPLEXITY_CHANGE, ACCURACY_CHANGE, KL)
"""A badge shows the first of these that the variant has."""
FILLS = {"better": "#00664b", "equivalent": "#00664b", "worse": "#9a3412"}
"""By the verdict, which the badge also has in words; white on each has a contrast of at least 4.5."""
NEUTRAL = "#5b6570"
LETTER_PX, PADDING_PX = 6.6, 12
"""The mean width of a letter of 11 px in the font of badges, and what stands around a text."""


@dataclass(frozen=True)
class Badge:
    """``name`` stands on the left and ``finding`` on the right; ``title`` says the whole to whoever asks."""

    name: str
    finding: str
    title: str
    fill: str = NEUTRAL


def badge(table: Table, row: VariantRow) -> Badge | None:
    """None if no quality of the variant was compared with the baseline.

    If the baseline cannot be trusted, nothing is said of the variant.
    """
    if table.implausible:
        return Badge("quality", "not known: implausible baseline", _title(table, row, ()))
    column = next(_measured(table, row), None)
    if column is None:
        return None
    shown = cell(column, row)
    verdict = next((note.word for note in shown.notes), "")
    finding = " ".join(each for each in (f"{shown.text}{_unit(column)}", shown.interval, verdict) if each)
    return Badge(column.heading, finding, _title(table, row, (column,)), FILLS.get(verdict, NEUTRAL))


def svg(shown: Badge) -> str:
    """The image. All text is escaped; it asks for nothing and runs nothing."""
    left, right = (round(len(text) * LETTER_PX) + PADDING_PX for text in (shown.name, shown.finding))
    return f"{template('badge.svg.j2').render(badge=shown, left=left, right=right, fill=shown.fill)}\n"


def _measured(table: Table, row: VariantRow) -> Iterator[Column]:
    for figure in FIGURES:
        for column in columns_of(table, figure):
            if column.shown and isinstance(column.value(row), Estimate):
                yield column


def _title(table: Table, row: VariantRow, told: tuple[Column, ...]) -> str:
    """The variant, its figure, what it depends on, and every warning of the table and of the row."""
    figures = [f"{column.heading}{_unit(column)}: {cell(column, row).whole}" for column in told]
    warnings = [label.sentence for label in (*table_labels(table), *row.labels)]
    protocol = f"perplexity protocol: {table.protocol}"
    return ". ".join([f"{table.model} {row.label}", *figures, protocol, *warnings, "Measured with qharness"])


def _unit(column: Column) -> str:
    return column.unit if column.unit in ("", "%") else f" {column.unit}"
