"""One self-contained HTML page that makes no network requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import get_args

from markupsafe import Markup

from harness.analysis.keyed import KeyedFigure
from harness.analysis.summaries import Summaries
from harness.figures.table import GridPoint, Table, VariantRow
from harness.report import escape
from harness.report.answer import Answer
from harness.report.answer_pairs import VariantPairs, answer_pairs
from harness.report.breakdown import breakdowns
from harness.report.choice import MOST_ROWS, chosen
from harness.report.column import Column, cell, column_groups, columns_of_readers, shown_columns
from harness.report.comparability import ColumnKey, column_keys, measurements
from harness.report.highlights import Highlight, highlights
from harness.report.page import Page, compared_with, native_warning, noise_floor, table_labels, terms
from harness.report.plots import Plot, plotly_javascript, plots_of
from harness.report.renderers.page_table import Line, PageTable, page_table
from harness.report.side_by_side import side_by_side
from harness.report.templating import source, template
from harness.stats.comparison import Verdict

MOST_STATIC = 200
"""With more variants the page has them as data, and its script draws those that come into view."""
FIRST_ROWS = 100
"""Rows of such a table that the page has without its script, which draws as many at first."""
MOST_LINES = 200
"""Rows of the collapsed tables; the CSV file has all variants."""
MOST_OPEN_NOTES = 24
"""More footnotes than these are collapsed."""


@dataclass(frozen=True)
class _Section:
    """Everything that the page shows for one table."""

    table: Table
    answer: Answer | None
    shown: PageTable
    groups: tuple[tuple[str, int], ...]
    highlights: tuple[Highlight, ...]
    grid: tuple[tuple[str, tuple[Column, ...]], ...]
    breakdowns: tuple[tuple[str, tuple[Column, ...]], ...]
    keys: tuple[ColumnKey, ...]
    pairs: tuple[VariantPairs, ...]
    plots: tuple[Plot, ...] = ()

    @property
    def measurements(self) -> tuple[tuple[ColumnKey, ...], ...]:
        return measurements(self.keys)

    def key(self, column: Column) -> str:
        """The keys of a column's figures, short; empty if nothing is compared by it."""
        return ", ".join(each.short for each in self.keys if each.column is column)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.shown.columns

    @cached_property
    def variants(self) -> tuple[VariantRow, ...]:
        return tuple(row for row in self.table.rows if not row.is_baseline)

    @property
    def is_lazy(self) -> bool:
        return len(self.variants) > MOST_STATIC

    @property
    def is_long(self) -> bool:
        """Whether the table scrolls in a box of its own."""
        return len(self.variants) > MOST_ROWS

    @cached_property
    def baseline_lines(self) -> tuple[Line, ...]:
        return tuple(self.shown.line(place) for place, row in enumerate(self.table.rows) if row.is_baseline)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The variants that the page has without its script."""
        return tuple(map(self.shown.line, islice(self._places, FIRST_ROWS if self.is_lazy else None)))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """The footnotes of those lines, by their number from 1."""
        _ = self.baseline_lines, self.lines
        return tuple(self.shown.footnotes.notes)

    @property
    def data(self) -> str:
        """All variants, for the script."""
        return self.shown.data(self._places)

    @cached_property
    def _places(self) -> list[int]:
        return [place for place, row in enumerate(self.table.rows) if not row.is_baseline]

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
    def labels(self) -> tuple[str, ...]:
        """Every warning on a variant, which are the first footnotes."""
        return tuple(dict.fromkeys(label.sentence for row in self.table.rows for label in row.labels))

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.engine for row in self.table.rows))

    @property
    def warning(self) -> str | None:
        return native_warning(self.table)

    @property
    def captions(self) -> tuple[str, ...]:
        """What the table's figures are of, and what its signs mean."""
        table = self.table
        found = (
            f"Perplexity protocol: {table.protocol}.",
            *(f"⚠ {label.sentence}." for label in table_labels(table)),
            noise_floor(table),
            compared_with(table),
            "Brackets and bars: 95% intervals; for energy, the range over processes. A bar is drawn from its column's "
            "lowest to its highest end, the dot is the figure.",
            f"Speed at {table.grid[0].label}." if table.grid else None,
            terms(table),
            "● no other variant is both smaller and closer to the baseline.",
        )
        return tuple(each for each in found if each)


@dataclass(frozen=True)
class SitePlace:
    """Where a page stands in a site: its title, its models by the names of their pages, and the bundle beside it."""

    title: str
    models: tuple[tuple[str, str], ...]
    bundle: str | None = None


def html(whole: Page, place: SitePlace | None = None, keyed: Mapping[int, Sequence[KeyedFigure]] | None = None) -> str:
    """The page. All text from records is escaped; a policy in its head forbids every request.

    A page of a site has no plots: the library that draws them is larger than many such pages. ``keyed`` are the figures
    of the rows by ``id``, if they are known. A redacted page shows no comparability keys: they would be those of the
    redacted names.
    """

    def plain() -> list[_Section]:
        keys = {} if whole.redacted else keyed
        answered = zip(whole.tables, whole.answers, strict=True)
        return [_section(table, answer, keys, whole.summaries) for table, answer in answered]

    def plots() -> list[tuple[Plot, ...]]:
        return [plots_of(table) for table in whole.tables]

    if place is not None:
        sections = plain()
    else:
        found, drawn = side_by_side(plain, plots) if whole.is_long else (plain(), plots())
        sections = [replace(section, plots=own) for section, own in zip(found, drawn, strict=True)]
    return template("page.html.j2").render(
        page=whole,
        place=place,
        sections=sections,
        cell=cell,
        script_json=_script_json,
        verdicts=get_args(Verdict),
        most_open_notes=MOST_OPEN_NOTES,
        css=source("page.css"),
        table_js=source("table.js"),
        plots_js=source("plots.js"),
        plotly=Markup(plotly_javascript()) if any(section.plots for section in sections) else None,
    )


def _section(
    table: Table,
    answer: Answer | None,
    keyed: Mapping[int, Sequence[KeyedFigure]] | None,
    summaries: Summaries | None,
) -> _Section:
    shown = page_table(table)
    grid = tuple((point.label, _grid_columns(table, point)) for point in table.grid)
    return _Section(
        table,
        answer,
        shown,
        column_groups(shown.columns),
        highlights(table, summaries),
        grid if len(grid) > 1 else (),
        breakdowns(table),
        column_keys(table, shown.columns, keyed, summaries),
        answer_pairs(table),
    )


def _grid_columns(table: Table, point: GridPoint) -> tuple[Column, ...]:
    """The columns that the main table shows for the first point of the grid, here for this point."""
    at_first = {each.figure.name for each in shown_columns(table) if each.place == table.grid[0]}
    return tuple(each for each in columns_of_readers(table) if each.place == point and each.figure.name in at_first)


def _script_json(text: str) -> Markup:
    return Markup(escape.script_json(text))
