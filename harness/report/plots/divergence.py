"""Where variants diverge: KL by position in the window and by the baseline's confidence, as lines."""

from __future__ import annotations

from collections.abc import Sequence

from harness.figures.divergence import LEAST_NAT, Edges
from harness.figures.formats import BLANK
from harness.figures.table import Table, VariantRow
from harness.report.breakdown import breakdowns
from harness.report.choice import chosen, left_out
from harness.report.column import Column, cell
from harness.report.plots.drawing import Drawing
from harness.report.plots.lines import MOST_LINES, draw_line, lines_layout, look_of
from harness.report.plots.plot import Plot, families
from harness.report.plots.theme import GREY, ruler
from harness.stats.estimate import Estimate

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
    methods = families(table.rows)
    drawing = Drawing(lines_layout(by, ruler("KL, nat per token", None, log=True), len(rows)))
    for number, row in enumerate(rows):
        found = [(column.heading, value) for column in columns if isinstance(value := column.value(row), Estimate)]
        draw_line(drawing, row.label, found, look_of(row, methods, number), LEAST_NAT)
    caption = f"Mean KL from the baseline by {by}, with 95% intervals. Lower is closer.{left_out(len(rows), of)}"
    head = ("Variant", *(f"{column.heading}, nat" for column in columns))
    lines = tuple((row.label, *(cell(column, row).whole for column in columns)) for row in rows)
    title = "Divergence by position" if name == NAMES[0] else "Divergence by the baseline's confidence"
    floor = {each.low: each.mean for each in table.kl_floor_by_position} if name == NAMES[0] else {}
    if floor:
        at = [(column, floor.get(column.place.low)) for column in columns if isinstance(column.place, Edges)]
        found = [(column.heading, mean) for column, mean in at if mean is not None]
        draw_line(drawing, FLOOR, found, {"line": {"color": GREY, "width": 1.6, "dash": "dot"}}, LEAST_NAT)
        lines += ((FLOOR, *(BLANK if mean is None else _written(column, mean) for column, mean in at)),)
        caption += " The dotted line is the noise floor: what another dtype does to the baseline, on two windows."
    return Plot(name, title, caption, head, lines, drawing.json())


def _written(column: Column, mean: Estimate) -> str:
    if mean.low is None or mean.high is None:
        return column.text(mean.value)
    return f"{column.text(mean.value)} [{column.text(mean.low)}, {column.text(mean.high)}]"
