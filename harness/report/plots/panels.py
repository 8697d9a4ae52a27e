"""Small panels side by side with the same variants: task scores, written answers, bits, the cost of quantizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import cast

from harness.figures.answers import DRAWN
from harness.figures.figure import LOG_FROM_RATIO, Figure, Value, Whole
from harness.figures.quality import FRONT_PROBABILITY
from harness.figures.quantizing import QUANTIZE_PEAK, QUANTIZE_TIME
from harness.figures.size import BITS_PER_WEIGHT, CHECKPOINT_BITS
from harness.figures.table import AnswersKey, Table, VariantRow
from harness.figures.tasks import ACCURACY
from harness.figures.tool_calls import offered
from harness.report import escape
from harness.report.choice import chosen, left_out
from harness.report.column import Column, cell, columns_of, values
from harness.report.plots.axes import CUT_OFF, axis_of, cut_off, estimate, intervals, reach
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot, families
from harness.report.plots.theme import GREY, family_colour, family_symbol, paper, ruler, variant_axis
from harness.stats.estimate import Estimate

MOST_PANELS = 4
ROOM = 0.06
"""The room beyond the figures and their intervals, as a share of a panel's width."""
GAP = 0.05
"""The gap between two panels, as a share of the whole width."""
TITLE_CHARACTERS, FEWEST_CHARACTERS = 90, 10
"""The characters of a title that fit above the whole width; a line has the fewest however narrow its panel is."""
LINE_PX = 16
"""The height of a further line of a title."""


BESIDE_BASELINE = {ACCURACY.name, *(figure.name for figure in DRAWN)}
"""Figures whose panels have the baseline's value as a dashed line."""


@dataclass(frozen=True)
class _Topic:
    """One plot: a panel per column, and their names."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    titles: tuple[str, ...]


@dataclass(frozen=True)
class _Panel:
    """One figure of a plot, in this place from the left, with the lines of its title.

    ``domain`` is the part of the plot's width that it takes.
    """

    column: Column
    title: Sequence[str]
    number: int
    domain: tuple[float, float]

    @property
    def axis(self) -> str:
        """As plotly names it."""
        return f"x{self.number + 1}" if self.number else "x"


def panels_of(table: Table) -> tuple[Plot, ...]:
    """The plots that have data."""
    scores = [each for each in columns_of(table, ACCURACY) if each.shown]
    topics = [
        _Topic(
            f"tasks-{number}" if number else "tasks",
            "Scores on tasks",
            "With 95% intervals; the dashed line is the baseline's score. Whether a difference is real is shown "
            "in the table, where questions are paired.",
            tuple(part),
            tuple(column.heading for column in part),
        )
        for number, part in enumerate(_batches(scores))
    ]
    topics += _written_answers(table)
    (likely,) = columns_of(table, FRONT_PROBABILITY)
    topics.append(
        _Topic("front-probability", "Probability of being on the front", likely.help, (likely,), (likely.unit,))
    )
    topics += [
        _topic(
            table,
            "bits-per-weight",
            "Bits per weight",
            "Bits per weight of the linear layers, with scales and zero points, in memory and as stored on "
            "disk. More in memory than on disk: it is dequantized when it is loaded.",
            (BITS_PER_WEIGHT, CHECKPOINT_BITS),
        ),
        _topic(
            table,
            "cost-of-quantizing",
            "Cost of quantizing",
            "Wall time and peak memory of quantizing once, or of quantizing at each load.",
            (QUANTIZE_TIME, QUANTIZE_PEAK),
        ),
    ]
    return tuple(plot for topic in topics if (plot := _panels(table, topic)))


def _written_answers(table: Table) -> Iterator[_Topic]:
    """What happened in the answers to each task; those that are tool calls have plots of their own."""
    found: dict[AnswersKey, list[Column]] = {}
    for figure in DRAWN:
        for column in columns_of(table, figure):
            key = cast(AnswersKey, column.place)
            if offered(key) is None:
                found.setdefault(key, []).append(column)
    for number, (key, columns) in enumerate(found.items()):
        yield _Topic(
            f"answers-{number}" if number else "answers",
            f"What happened in answers: {key.label}",
            "Tokens of an answer, and shares of answers in percent, with 95% intervals; dashed lines are the baseline. "
            "Whether a difference is real is shown in the table, where answers are paired.",
            tuple(columns),
            tuple(column.heading for column in columns),
        )


def _topic(table: Table, name: str, title: str, caption: str, figures: Sequence[Figure[Whole]]) -> _Topic:
    """A panel per figure, titled like its axis."""
    axes = [axis_of(table, each) for each in figures]
    return _Topic(name, title, caption, tuple(axis.column for axis in axes), tuple(axis.title for axis in axes))


def _batches(scores: Sequence[Column]) -> list[Sequence[Column]]:
    return [scores[start : start + MOST_PANELS] for start in range(0, len(scores), MOST_PANELS)]


def _panels(table: Table, topic: _Topic) -> Plot | None:
    has_figure = zip(*(map(_finite, values(table, column)) for column in topic.columns), strict=True)
    measured = [row for row, each in zip(table.rows, has_figure, strict=True) if any(each) and not row.is_baseline]
    rows = chosen(measured)
    columns = zip(topic.columns, topic.titles, strict=True)
    named = [(column, title) for column, title in columns if any(_finite(column.value(row)) for row in rows)]
    if not rows:
        return None
    width = (1 - GAP * (len(named) - 1)) / len(named)
    wrapped = [wrap(title, max(int(width * TITLE_CHARACTERS), FEWEST_CHARACTERS)) or [""] for _, title in named]
    more_px = LINE_PX * (max(map(len, wrapped)) - 1)
    layout = paper(height_px=96 + more_px + 26 * len(rows), top_px=36 + more_px)
    drawing = Drawing(layout | {"yaxis": variant_axis([row.label for row in rows])})
    cut = False
    for number, ((column, _), lines_of_title) in enumerate(zip(named, wrapped, strict=True)):
        left = number * (width + GAP)
        cut |= _draw(drawing, table, rows, _Panel(column, lines_of_title, number, (left, left + width)))
    head = ("Variant", *(f"{title}, {column.unit}".removesuffix(", ") for column, title in named))
    lines = tuple((row.label, *(cell(column, row).whole for column, _ in named)) for row in rows)
    caption = topic.caption + left_out(len(rows), len(measured)) + (f" {CUT_OFF}" if cut else "")
    return Plot(topic.name, topic.title, caption, head, lines, drawing.json())


def _draw(drawing: Drawing, table: Table, rows: Sequence[VariantRow], panel: _Panel) -> bool:
    """Draws a panel; returns whether it cuts an interval off."""
    column = panel.column
    there = [(place, row) for place, row in enumerate(rows) if _finite(column.value(row))]
    found = [estimate(column.value(row)) for _, row in there]
    numbers = [each.value * column.format.factor for each in found]
    log = min(numbers) > 0 and max(numbers) > LOG_FROM_RATIO * min(numbers)
    methods = families(table.rows)
    drawing.trace(
        "scatter",
        x=numbers,
        y=[place for place, _ in there],
        xaxis=panel.axis,
        error_x=intervals(found, lambda value: value * column.format.factor) | {"color": GREY},
        mode="markers",
        marker={
            "size": 9,
            "color": [family_colour(methods[row.method]) for _, row in there],
            "symbol": [family_symbol(methods[row.method]) for _, row in there],
        },
        text=[f"{escape.plot(row.label)}: {escape.plot(cell(column, row).whole)}" for _, row in there],
        hoverinfo="text",
    )
    style = column.figure.axis
    from_zero = style is not None and style.from_zero and not log
    coordinate = _coordinate(column, found, log)
    base = _beside(table, column)
    span = _range([*found, *base], coordinate, log, from_zero)
    ruled = ruler("", span, log) | {"domain": panel.domain, "nticks": 6}
    drawing.layout[f"xaxis{panel.axis[1:]}"] = ruled
    drawing.note(
        "<br>".join(map(escape.plot, panel.title)),
        x=sum(panel.domain) / 2,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="center",
        yanchor="bottom",
        yshift=6,
    )
    for each in base:
        place = each.value * column.format.factor
        drawing.line(
            x0=place,
            x1=place,
            y0=0,
            y1=1,
            xref=panel.axis,
            yref="paper",
            line={"color": GREY, "width": 1.2, "dash": "dash"},
        )
    return cut_off(found, coordinate, span)


def _beside(table: Table, column: Column) -> list[Estimate]:
    """The baseline's value, without its interval, if a line is drawn there."""
    base = table.baseline
    if column.figure.name not in BESIDE_BASELINE or base is None or not _finite(column.value(base)):
        return []
    return [replace(estimate(column.value(base)), low=None, high=None)]


def _coordinate(column: Column, found: Sequence[Estimate], log: bool) -> Callable[[float], float]:
    """A value's place in plotly's coordinates: its base-ten logarithm on a logarithmic axis."""
    factor = column.format.factor
    least = min(each.value for each in found) / 10  # a logarithm has no place for an interval's end below zero
    return lambda value: math.log10(max(value, least) * factor) if log else value * factor


def _range(
    found: Sequence[Estimate], coordinate: Callable[[float], float], log: bool, from_zero: bool
) -> tuple[float, float]:
    low, high = reach(found, coordinate, ROOM)
    return (0.0, high) if from_zero or (not log and min(each.value for each in found) == 0) else (low, high)


def _finite(value: Value) -> bool:
    number = value.value if isinstance(value, Estimate) else value
    return number is not None and not isinstance(number, str) and math.isfinite(number)
