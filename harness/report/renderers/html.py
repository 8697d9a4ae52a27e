"""One self-contained HTML page: opens anywhere, asks the network for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import get_args

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.core.label import Label
from harness.figures.table import GridPoint, Table, VariantRow
from harness.report.answer import Answer
from harness.report.breakdown import breakdowns
from harness.report.choice import chosen
from harness.report.column import Column, cell, column_groups, columns, shown_columns
from harness.report.highlights import Highlight, highlights
from harness.report.page import Page, native_warning, noise_floor, table_labels, terms
from harness.report.plots import Plot, plotly_javascript, plots_of
from harness.stats.comparison import Verdict

FIRST_GROUPS = ("Quality", "Tasks", "Size", "Speed")
"""The columns that are shown before a reader chooses; without a script all are."""
MOST_ROWS = 100
"""Of a table are drawn at first, those beyond when a reader asks for them: as in table.js."""
MOST_LINES = 200
"""Of the tables that are folded away; machines find all variants in the CSV file."""


@dataclass(frozen=True)
class _Section:
    """All that the page shows of one table."""

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
    terms: str | None

    @property
    def baselines(self) -> tuple[VariantRow, ...]:
        return tuple(row for row in self.table.rows if row.is_baseline)

    @property
    def variants(self) -> tuple[VariantRow, ...]:
        return tuple(row for row in self.table.rows if not row.is_baseline)

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
        """Every warning that stands beside a variant; a filter names them by their numbers, from 1."""
        return tuple(dict.fromkeys(label for row in self.variants for label in row.labels))

    def label_numbers(self, row: VariantRow) -> str:
        return " ".join(str(self.row_labels.index(label) + 1) for label in row.labels if label in self.row_labels)

    @property
    def group_starts(self) -> tuple[int, ...]:
        """Which columns, counted from 1, begin a group."""
        spans = [span for _, span in self.groups]
        return tuple(2 + sum(spans[:index]) for index in range(len(spans)))

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.engine for row in self.table.rows))


def html(whole: Page) -> str:
    """The page. All text of a record is escaped; a policy in its head forbids every request."""
    sections = [_section(*each) for each in zip(whole.tables, whole.answers, strict=True)]
    drawn = any(section.plots for section in sections)
    return _template().render(
        page=whole,
        sections=sections,
        cell=cell,
        script_json=_script_json,
        verdicts=get_args(Verdict),
        first_groups=FIRST_GROUPS,
        most_rows=MOST_ROWS,
        css=_source("page.css"),
        table_js=_source("table.js"),
        plots_js=_source("plots.js"),
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
        terms(table),
    )


def _grid_columns(table: Table, point: GridPoint) -> tuple[Column, ...]:
    """Those that the main table shows at the first point of the grid, at this one."""
    at_first = {each.figure.name for each in shown_columns(table) if each.place == table.grid[0]}
    return tuple(each for each in columns(table) if each.place == point and each.figure.name in at_first)


def _script_json(text: str) -> Markup:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(safe)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _source(name: str) -> Markup:
    """A file of the package that stands in the page as it is."""
    return Markup((files("harness.report") / "templates" / name).read_text(encoding="utf-8"))
