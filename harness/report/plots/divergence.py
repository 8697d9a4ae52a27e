"""Where variants diverge: KL by position in the window and by the baseline's confidence, as lines."""

from __future__ import annotations

from collections.abc import Sequence

from harness.figures.divergence import LEAST_NAT
from harness.figures.table import Table, VariantRow
from harness.report import escape
from harness.report.breakdown import breakdowns
from harness.report.choice import chosen, left_out
from harness.report.column import Column, cell
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot, families
from harness.report.plots.theme import DASHES, GRID, family_colour, family_symbol, paper, ruler
from harness.stats.estimate import Estimate

MOST_LINES = 10
NAMES = ("divergence-by-position", "divergence-by-confidence")


def divergences(table: Table) -> tuple[Plot, ...]:
    """One plot by position, one by confidence; none if no variant was compared token by token."""
    compared = [row for row in table.rows if row.kl_by_position and not row.is_baseline]
    rows = chosen(compared, MOST_LINES)
    groups = breakdowns(table)
    if not rows:
        return ()
    return tuple(
        _lines(name, title, table, rows, columns, len(compared))
        for name, (title, columns) in zip(NAMES, groups, strict=False)
    )


def _lines(name: str, by: str, table: Table, rows: Sequence[VariantRow], columns: Sequence[Column], of: int) -> Plot:
    layout = paper(top_px=16) | {
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
        "xaxis": {
            "type": "category",
            "title": {"text": escape.plot(by), "standoff": 10},
            "gridcolor": GRID,
        },
        "yaxis": ruler("KL, nat per token", None, log=True),
        "height": 460 + 18 * ((len(rows) + 2) // 3),
    }
    methods = families(table.rows)
    drawing = Drawing(layout)
    for number, row in enumerate(rows):
        _draw_line(drawing, row, methods[row.method], number, columns)
    caption = f"Mean KL from the baseline by {by}, with 95% intervals. Lower is closer.{left_out(len(rows), of)}"
    head = ("Variant", *(f"{column.heading}, nat" for column in columns))
    lines = tuple((row.label, *(cell(column, row).whole for column in columns)) for row in rows)
    title = "Divergence by position" if name == NAMES[0] else "Divergence by the baseline's confidence"
    return Plot(name, title, caption, head, lines, drawing.json())


def _draw_line(drawing: Drawing, row: VariantRow, family: int, number: int, columns: Sequence[Column]) -> None:
    """Variants of one method share its colour and marker; dashes distinguish them."""
    found = [(column.heading, value) for column in columns if isinstance(value := column.value(row), Estimate)]
    values = [max(value.value, LEAST_NAT) for _, value in found]
    drawing.trace(
        "scatter",
        x=[escape.plot(heading) for heading, _ in found],
        y=values,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [max((each.high or 0) - at, 0) for (_, each), at in zip(found, values, strict=True)],
            "arrayminus": [
                max(at - max(each.low or at, LEAST_NAT), 0) for (_, each), at in zip(found, values, strict=True)
            ],
            "thickness": 0.8,
            "width": 2,
        },
        mode="lines+markers",
        name=escape.plot(row.label),
        line={"color": family_colour(family), "width": 1.6, "dash": DASHES[number % len(DASHES)]},
        marker={"symbol": family_symbol(family), "size": 7},
    )
