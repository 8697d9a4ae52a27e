"""One self-contained HTML page: opens anywhere, asks the network for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.analysis.table import Table
from harness.report.column import Column, cell
from harness.report.columns_breakdown import breakdowns
from harness.report.columns_run import speed_columns
from harness.report.figures import Figure, figures, plotly_javascript
from harness.report.highlights import Highlight, highlights
from harness.report.page import Page, native_warning, noise_floor, table_labels, terms
from harness.report.tables import column_groups, shown_columns


@dataclass(frozen=True)
class _Section:
    """All that the page shows of one table."""

    table: Table
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    highlights: tuple[Highlight, ...]
    figures: tuple[Figure, ...]
    grid: tuple[tuple[str, tuple[Column, ...]], ...]
    breakdowns: tuple[tuple[str, tuple[Column, ...]], ...]
    labels: tuple[str, ...]
    warning: str | None
    noise_floor: str | None
    terms: str | None

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.engine for row in self.table.rows))


def html(whole: Page) -> str:
    """The page. All text of a record is escaped; a policy in its head forbids every request."""
    sections = [_section(table) for table in whole.tables]
    drawn = any(section.figures for section in sections)
    return _template().render(
        page=whole,
        sections=sections,
        cell=cell,
        script_json=_script_json,
        plotly=Markup(plotly_javascript()) if drawn else None,
    )


def _section(table: Table) -> _Section:
    columns = shown_columns(table)
    grid = tuple((point.label, speed_columns(point, headline=True)) for point in table.grid)
    return _Section(
        table,
        columns,
        column_groups(columns),
        highlights(table),
        figures(table),
        grid if len(grid) > 1 else (),
        breakdowns(table),
        table_labels(table),
        native_warning(table),
        noise_floor(table),
        terms(table),
    )


def _script_json(text: str) -> Markup:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(safe)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("harness.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2")
