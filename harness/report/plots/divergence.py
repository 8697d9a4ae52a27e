"""Where variants diverge: KL by position in the window and by the baseline's confidence, as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.figures.divergence import LEAST_NAT, Edges
from harness.figures.formats import BLANK
from harness.figures.table import Table, VariantRow
from harness.report import escape
from harness.report.breakdown import breakdowns
from harness.report.choice import chosen, left_out
from harness.report.column import Column, cell
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot, families
from harness.report.plots.theme import DASHES, GREY, GRID, family_colour, family_symbol, paper, ruler
from harness.stats.estimate import Estimate

MOST_LINES = 10
FLOOR = "noise floor (another dtype)"
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
        found = [(column.heading, value) for column in columns if isinstance(value := column.value(row), Estimate)]
        look = {
            "line": {"color": family_colour(methods[row.method]), "width": 1.6, "dash": DASHES[number % len(DASHES)]},
            "marker": {"symbol": family_symbol(methods[row.method]), "size": 7},
        }
        _draw_line(drawing, row.label, found, look)
    caption = f"Mean KL from the baseline by {by}, with 95% intervals. Lower is closer.{left_out(len(rows), of)}"
    head = ("Variant", *(f"{column.heading}, nat" for column in columns))
    lines = tuple((row.label, *(cell(column, row).whole for column in columns)) for row in rows)
    title = "Divergence by position" if name == NAMES[0] else "Divergence by the baseline's confidence"
    floor = {each.low: each.mean for each in table.kl_floor_by_position} if name == NAMES[0] else {}
    if floor:
        at = [(column, floor.get(column.place.low)) for column in columns if isinstance(column.place, Edges)]
        found = [(column.heading, mean) for column, mean in at if mean is not None]
        _draw_line(drawing, FLOOR, found, {"line": {"color": GREY, "width": 1.6, "dash": "dot"}})
        lines += ((FLOOR, *(BLANK if mean is None else _written(column, mean) for column, mean in at)),)
        caption += " The dotted line is the noise floor: what another dtype does to the baseline, on two windows."
    return Plot(name, title, caption, head, lines, drawing.json())


def _written(column: Column, mean: Estimate) -> str:
    if mean.low is None or mean.high is None:
        return column.text(mean.value)
    return f"{column.text(mean.value)} [{column.text(mean.low)}, {column.text(mean.high)}]"


def _draw_line(drawing: Drawing, name: str, found: Sequence[tuple[str, Estimate]], look: Mapping[str, Any]) -> None:
    """Means with their intervals over the headings of their columns.

    Variants of one method share its colour and marker; dashes distinguish them.
    """
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
        name=escape.plot(name),
        **look,
    )
