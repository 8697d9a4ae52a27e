"""Servers under load: latency against throughput with the SLO, and goodput by load, a line per variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.figures.figure import Figure
from harness.figures.formats import significant
from harness.figures.notes import with_interval
from harness.figures.serving import E2E, GOODPUT, ITL, TELLING, THROUGHPUT, TPOT, TTFT, ladders
from harness.figures.table import Load, Table, VariantRow
from harness.report import escape
from harness.report.choice import chosen, left_out
from harness.report.plots.axes import intervals
from harness.report.plots.drawing import Drawing
from harness.report.plots.plot import Plot, families
from harness.report.plots.theme import DASHES, GREY, family_colour, family_symbol, paper, ruler
from harness.stats.estimate import Estimate

MOST_LINES = 10
LATENCIES = {"ttft": TTFT, "tpot": TPOT, "itl": ITL, "e2e": E2E}
"""By the names of an SLO's limits, their figures."""


@dataclass(frozen=True)
class _LevelPoint:
    load: Load
    x: Estimate
    y: Estimate


Points = Callable[[VariantRow], list[_LevelPoint]]


def loads_of(table: Table) -> tuple[Plot, ...]:
    """The plots of each ladder of loads that have data."""
    return tuple(
        plot
        for number, ladder in enumerate(ladders(table))
        for plot in (_latency(table, ladder, number), _goodput(table, ladder, number))
        if plot is not None
    )


def _latency(table: Table, ladder: Load, number: int) -> Plot | None:
    slo = next((found.slo for row in table.rows if (found := row.ladder_of(ladder)) and found.slo), None)
    limits = slo.limits if slo else {}
    name = next(iter(limits), "e2e")
    figure = LATENCIES[name][TELLING]
    return _plot(
        table,
        f"latency-throughput{_numbered(number)}",
        "Latency against throughput",
        f"Each point is a level of load, {ladder.label}; lines go to higher levels. Lower right is better.",
        (f"{THROUGHPUT.heading}, tok/s", f"{figure.heading}, s"),
        lambda row: _points(table, row, ladder, THROUGHPUT, figure),
        (limits[name], f"SLO: {name} ≤ {limits[name]:g} s") if name in limits else None,
    )


def _goodput(table: Table, ladder: Load, number: int) -> Plot | None:
    def points(row: VariantRow) -> list[_LevelPoint]:
        found = _points(table, row, ladder, GOODPUT, GOODPUT)
        levels = [Estimate(each.load.level or 0.0, None, None, 1, "exact") for each in found]
        return [_LevelPoint(each.load, level, each.y) for each, level in zip(found, levels, strict=True)]

    return _plot(
        table,
        f"goodput{_numbered(number)}",
        "Goodput by load",
        f"Requests per second that meet the SLO, {ladder.label}. Higher is better.",
        (ladder.unit, "Goodput, requests/s"),
        points,
        None,
    )


def _points(table: Table, row: VariantRow, ladder: Load, x: Figure[Load], y: Figure[Load]) -> list[_LevelPoint]:
    """The levels of the ladder at which both figures were measured, the lowest first."""
    own = (each for each in table.loads if (each.arrival, each.prompts, each.answers) == _kind(ladder))
    pairs = ((load, x.of(row, load), y.of(row, load)) for load in own)
    return [_LevelPoint(load, a, b) for load, a, b in pairs if isinstance(a, Estimate) and isinstance(b, Estimate)]


def _kind(load: Load) -> tuple[str, str, str]:
    return load.arrival, load.prompts, load.answers


def _numbered(number: int) -> str:
    return f"-{number}" if number else ""


def _plot(
    table: Table,
    name: str,
    title: str,
    caption: str,
    axes: tuple[str, str],
    points: Points,
    limit: tuple[float, str] | None,
) -> Plot | None:
    measured = [row for row in table.rows if points(row)]
    rows = chosen(measured, MOST_LINES)
    if not rows:
        return None
    layout = paper(top_px=24) | {
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        "xaxis": ruler(axes[0], None) | {"rangemode": "tozero"},
        "yaxis": ruler(axes[1], None) | {"rangemode": "tozero"},
        "height": 460 + 18 * ((len(rows) + 2) // 3),
    }
    drawing = Drawing(layout)
    for index, row in enumerate(rows):
        _draw(drawing, table, row, index, points(row))
    if limit is not None:
        drawing.line(
            x0=0, x1=1, xref="paper", y0=limit[0], y1=limit[0], line={"color": GREY, "dash": "dash", "width": 1}
        )
        drawing.note(escape.plot(limit[1]), x=1, xref="paper", y=limit[0], xanchor="right", yanchor="bottom")
    lines = tuple(
        (row.label, significant(each.load.level or 0.0), with_interval(each.x), with_interval(each.y))
        for row in rows
        for each in points(row)
    )
    return Plot(
        name, title, caption + left_out(len(rows), len(measured)), ("Variant", "level", *axes), lines, drawing.json()
    )


def _draw(drawing: Drawing, table: Table, row: VariantRow, number: int, points: Sequence[_LevelPoint]) -> None:
    """Variants of one method share its colour and marker; dashes distinguish them. The baseline is grey."""
    family = families(table.rows).get(row.method)
    colour = GREY if row.is_baseline or family is None else family_colour(family)
    drawing.trace(
        "scatter",
        x=[each.x.value for each in points],
        y=[each.y.value for each in points],
        error_y=intervals([each.y for each in points], lambda value: value),
        text=[f"{escape.plot(row.label)}: {escape.plot(each.load.short)}" for each in points],
        hoverinfo="text+x+y",
        mode="lines+markers",
        name=escape.plot(row.label),
        line={"color": colour, "width": 1.6, "dash": DASHES[number % len(DASHES)]},
        marker={"symbol": "circle" if family is None else family_symbol(family), "size": 7},
    )
