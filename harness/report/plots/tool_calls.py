"""How tool calls hold up as the prompt offers more tools."""

from __future__ import annotations

from harness.figures.formats import BLANK, PERCENT
from harness.figures.table import Table, TaskScore
from harness.figures.tool_calls import ASPECTS, by_tools
from harness.report.choice import chosen, left_out
from harness.report.plots.drawing import Drawing
from harness.report.plots.lines import MOST_LINES, draw_line, lines_layout, look_of
from harness.report.plots.plot import Plot, families
from harness.report.plots.theme import GREY, ruler
from harness.stats.estimate import transformed

DRAWN = ("valid_json", "exact_match")
"""The aspects that are drawn: the least and the most that is asked for."""


def tool_calls(table: Table) -> tuple[Plot, ...]:
    """A plot for each drawn aspect; none without tasks of at least two numbers of tools."""
    return tuple(plot for aspect in DRAWN if (plot := _plot(table, aspect)) is not None)


def _plot(table: Table, aspect: str) -> Plot | None:
    asked = [row for row in table.rows if len(by_tools(row, aspect)) > 1]
    rows = chosen(asked, MOST_LINES)
    if not rows:
        return None
    numbers = sorted({tools for row in rows for tools in by_tools(row, aspect)})
    drawing = Drawing(lines_layout("tools in the prompt", ruler(f"{ASPECTS[aspect]}, %", (-3, 103)), len(rows)))
    methods = families(table.rows)
    for number, row in enumerate(rows):
        scores = by_tools(row, aspect)
        shares = [(str(tools), transformed(each.estimate, lambda share: 100 * share)) for tools, each in scores.items()]
        look = {"line": {"color": GREY, "width": 2}} if row.is_baseline else look_of(row, methods, number)
        draw_line(drawing, row.label, shares, look)
    head = ("Variant", *(f"{tools} tools, %" if tools > 1 else "1 tool, %" for tools in numbers))
    lines = tuple((row.label, *(_text(by_tools(row, aspect).get(tools)) for tools in numbers)) for row in rows)
    caption = (
        f"Share of answers with {_ARTICLES[aspect]}, by the number of tools in the prompt, with 95% intervals. The "
        f"questions are the same for each number; the grey line is the baseline.{left_out(len(rows), len(asked))}"
    )
    title = f"Tool calls: {ASPECTS[aspect]} by number of tools"
    return Plot(f"tool-calls-{aspect.replace('_', '-')}", title, caption, head, lines, drawing.json())


_ARTICLES = {"valid_json": "a call in valid JSON", "exact_match": "just the right call"}


def _text(score: TaskScore | None) -> str:
    if score is None:
        return BLANK
    found = score.estimate
    if found.low is None or found.high is None:
        return PERCENT.text(found.value)
    return f"{PERCENT.text(found.value)} [{PERCENT.text(found.low)}, {PERCENT.text(found.high)}]"
