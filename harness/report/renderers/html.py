"""One self-contained HTML page that makes no network requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import get_args

from markupsafe import Markup

from harness.core.label import Label
from harness.figures.table import GridPoint, Table, VariantRow
from harness.report import escape
from harness.report.answer import Answer
from harness.report.breakdown import breakdowns
from harness.report.choice import chosen
from harness.report.column import Cell, Column, cell, cells, column_groups, columns, shown_columns
from harness.report.highlights import Highlight, highlights
from harness.report.page import Page, compared_with, native_warning, noise_floor, table_labels, terms
from harness.report.plots import Plot, plotly_javascript, plots_of
from harness.report.renderers.lazy_rows import lazy_rows
from harness.report.templating import source, template
from harness.stats.comparison import Verdict

FIRST_GROUPS = ("Quality", "Tasks", "Experts", "Size", "Speed")
"""The groups of columns shown at first; without JavaScript all are shown."""
MOST_STATIC = 200
"""With more variants the page has them as data, and its script draws those that come into view."""
FIRST_ROWS = 100
"""Rows of such a table that the page has without its script, which draws as many at first."""
MOST_LINES = 200
"""Rows of the collapsed tables; the CSV file has all variants."""


_Line = tuple[VariantRow, tuple[Cell, ...]]
"""A variant, and its cell in each shown column."""


@dataclass(frozen=True)
class _Section:
    """Everything that the page shows for one table."""

    table: Table
    answer: Answer | None
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    highlights: tuple[Highlight, ...]
    plots: tuple[Plot, ...]
    grid: tuple[tuple[str, tuple[Column, ...]], ...]
    breakdowns: tuple[tuple[str, tuple[Column, ...]], ...]
    labels: tuple[Label, ...]
    warning: str | None
    noise_floor: str | None
    compared_with: str | None
    terms: str | None

    @cached_property
    def variants(self) -> tuple[VariantRow, ...]:
        return tuple(row for row in self.table.rows if not row.is_baseline)

    @property
    def is_lazy(self) -> bool:
        return len(self.variants) > MOST_STATIC

    @cached_property
    def baseline_lines(self) -> tuple[_Line, ...]:
        return tuple(self._line(place) for place, row in enumerate(self.table.rows) if row.is_baseline)

    @cached_property
    def lines(self) -> tuple[_Line, ...]:
        """The variants that the page has without its script."""
        places = (place for place, row in enumerate(self.table.rows) if not row.is_baseline)
        return tuple(map(self._line, islice(places, FIRST_ROWS if self.is_lazy else None)))

    @property
    def data(self) -> str:
        """All variants, for the script."""
        return lazy_rows(self.table, self.columns, self.row_labels)

    def _line(self, place: int) -> _Line:
        return self.table.rows[place], tuple(cells(self.table, column)[place] for column in self.columns)

    @property
    def compared(self) -> tuple[VariantRow, ...]:
        return chosen([row for row in self.variants if row.kl_mean], MOST_LINES)

    @property
    def timed(self) -> tuple[VariantRow, ...]:
        return chosen([row for row in self.table.rows if row.speeds], MOST_LINES)

    @property
    def statuses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.status for row in self.variants))

    @cached_property
    def row_labels(self) -> tuple[Label, ...]:
        """Every warning on a variant; the filter refers to them by number, from 1."""
        return tuple(dict.fromkeys(label for row in self.variants for label in row.labels))

    def label_numbers(self, row: VariantRow) -> str:
        return " ".join(str(self._numbers[label]) for label in row.labels if label in self._numbers)

    @cached_property
    def _numbers(self) -> Mapping[Label, int]:
        return {label: number for number, label in enumerate(self.row_labels, 1)}

    @property
    def group_starts(self) -> tuple[int, ...]:
        """The columns, counted from 1, that begin a group."""
        spans = [span for _, span in self.groups]
        return tuple(2 + sum(spans[:index]) for index in range(len(spans)))

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.engine for row in self.table.rows))


def html(whole: Page) -> str:
    """The page. All text from records is escaped; a policy in its head forbids every request."""
    sections = [_section(*each) for each in zip(whole.tables, whole.answers, strict=True)]
    drawn = any(section.plots for section in sections)
    return template("page.html.j2").render(
        page=whole,
        sections=sections,
        cell=cell,
        script_json=_script_json,
        verdicts=get_args(Verdict),
        first_groups=FIRST_GROUPS,
        css=source("page.css"),
        table_js=source("table.js"),
        plots_js=source("plots.js"),
        plotly=Markup(plotly_javascript()) if drawn else None,
    )


def _section(table: Table, answer: Answer | None) -> _Section:
    shown = shown_columns(table)
    grid = tuple((point.label, _grid_columns(table, point)) for point in table.grid)
    return _Section(
        table,
        answer,
        shown,
        column_groups(shown),
        highlights(table),
        plots_of(table),
        grid if len(grid) > 1 else (),
        breakdowns(table),
        table_labels(table),
        native_warning(table),
        noise_floor(table),
        compared_with(table),
        terms(table),
    )


def _grid_columns(table: Table, point: GridPoint) -> tuple[Column, ...]:
    """The columns that the main table shows for the first point of the grid, here for this point."""
    at_first = {each.figure.name for each in shown_columns(table) if each.place == table.grid[0]}
    return tuple(each for each in columns(table) if each.place == point and each.figure.name in at_first)


def _script_json(text: str) -> Markup:
    return Markup(escape.script_json(text))
