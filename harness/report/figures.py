"""The figures of a table, drawn by plotly; nothing else imports it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from harness.analysis.pareto import Direction, front
from harness.analysis.stats import Estimate
from harness.analysis.table import Table, VariantRow
from harness.report.axes import (
    Axis,
    change_axis,
    decode_axis,
    divergence_axis,
    estimate,
    measured,
    size_axis,
)
from harness.report.column import Column
from harness.report.labels import place
from harness.report.look import (
    BOTTOM_PX,
    GREY,
    HEIGHT_PX,
    LEFT_PX,
    PARTS,
    RIGHT_PX,
    TOP_PX,
    WIDTH_PX,
    family_colour,
    family_symbol,
    paper,
    ruler,
)
from harness.report.tables import column


@dataclass(frozen=True)
class Figure:
    """``json`` is plotly's own; ``alternative`` says in words what is seen."""

    title: str
    caption: str
    alternative: str
    json: str


@dataclass(frozen=True)
class _Point:
    row: VariantRow
    x: Estimate
    y: Estimate


def plotly_javascript() -> str:
    """The source of plotly.js, to be embedded once per page."""
    return str(get_plotlyjs())


def figures(table: Table) -> tuple[Figure, ...]:
    """Quality against size and against speed, and what the stored bytes are made of; those that have data."""
    size, divergence, change = size_axis(table), divergence_axis(table), change_axis(table)
    drawn = [
        _scatter(table, "Divergence against size", size, divergence),
        _scatter(table, "Perplexity against size", size, change),
        _scatter(table, "Divergence against decoding speed", decode_axis(table), divergence) if table.grid else None,
        _memory(table),
    ]
    return tuple(figure for figure in drawn if figure)


def _scatter(table: Table, title: str, x: Axis, y: Axis) -> Figure | None:
    variants = [row for row in measured(x, measured(y, table.rows)) if not row.is_baseline]
    points = [_Point(row, estimate(x.column.value(row)), estimate(y.column.value(row))) for row in variants]
    if not points:
        return None
    ranges = x.range([point.x for point in points], 0.26), y.range([point.y for point in points], 0.1)
    figure = go.Figure(
        layout=paper() | {"xaxis": ruler(x.title, ranges[0], x.log), "yaxis": ruler(y.title, ranges[1], y.log)}
    )
    best = front([(point.x.value, point.y.value) for point in points], (x.better, y.better))
    _draw_front(figure, [points[index] for index in best], x, y)
    _draw_baseline(figure, table, x, ranges[0])
    for family, members in _families(table, points):
        figure.add_trace(_markers(family, members, x, y))
    _draw_names(figure, points, x, y, ranges)
    names = ", ".join(points[index].row.label for index in best)
    said = "; ".join(f"{point.row.label}: {x.written(point.x.value)}, {y.written(point.y.value)}" for point in points)
    caption = f"{_corner(x.better)} is better. On the line, beaten by no other in both respects: {names}."
    return Figure(title, caption, f"{title}. {x.title} and {y.title}, by variant. {said}.", str(figure.to_json()))


def _corner(better: Direction) -> str:
    return "Lower left" if better == "lower" else "Lower right"


def _families(table: Table, points: Sequence[_Point]) -> list[tuple[int, list[_Point]]]:
    """The points by method, whose number (thus colour and marker) is the same in all figures of a table."""
    names = list(dict.fromkeys(row.method for row in table.rows if not row.is_baseline))
    groups = [(number, [point for point in points if point.row.method == name]) for number, name in enumerate(names)]
    return [(number, members) for number, members in groups if members]


def _markers(family: int, points: Sequence[_Point], x: Axis, y: Axis) -> go.Scatter:
    return go.Scatter(
        x=[x.place(point.x.value) for point in points],
        y=[y.place(point.y.value) for point in points],
        error_x=_error_bars([point.x for point in points], x),
        error_y=_error_bars([point.y for point in points], y),
        mode="markers",
        marker={"size": 10, "color": family_colour(family), "symbol": family_symbol(family)},
        text=[_hover(point, x, y) for point in points],
        hoverinfo="text",
    )


def _hover(point: _Point, x: Axis, y: Axis) -> str:
    return f"<b>{html.escape(point.row.label)}</b><br>{_written(point.x, x)}<br>{_written(point.y, y)}"


def _written(estimate: Estimate, axis: Axis) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{axis.title}: {axis.written(estimate.value)}"
    interval = f"[{axis.written(estimate.low)}, {axis.written(estimate.high)}]"
    return f"{axis.title}: {axis.written(estimate.value)} {interval}"


def _error_bars(estimates: Sequence[Estimate], axis: Axis) -> dict[str, object]:
    def reach(estimate: Estimate, end: float | None) -> float:
        return abs(axis.place(end) - axis.place(estimate.value)) if end is not None and math.isfinite(end) else 0.0

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(each, each.high) for each in estimates],
        "arrayminus": [reach(each, each.low) for each in estimates],
        "thickness": 1.2,
        "width": 3,
    }


def _draw_front(figure: go.Figure, best: Sequence[_Point], x: Axis, y: Axis) -> None:
    """A staircase: all above it is beaten by a variant at one of its corners."""
    ordered = sorted(best, key=lambda point: point.x.value)
    figure.add_trace(
        go.Scatter(
            x=[x.place(point.x.value) for point in ordered],
            y=[y.place(point.y.value) for point in ordered],
            mode="lines",
            line={"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv" if x.better == "lower" else "vh"},
            hoverinfo="skip",
        )
    )


def _draw_baseline(figure: go.Figure, table: Table, x: Axis, extent: tuple[float, float]) -> None:
    """A line where the baseline lies, or a word at the edge towards it: it must not squeeze the variants."""
    value = x.column.value(table.baseline) if table.baseline else None
    if value is None or table.baseline is None:
        return
    place, (low, high) = x.place(estimate(value).value), extent
    name = f"{html.escape(table.baseline.label)} {x.written(estimate(value).value)}"
    if low <= place <= high:
        figure.add_vline(x=place, line={"color": GREY, "width": 1, "dash": "dash"})
    else:
        name = f"{name} →" if place > high else f"← {name}"
    edge = min(max(place, low), high)
    side = "right" if edge > (low + high) / 2 else "left"
    figure.add_annotation(
        x=edge,
        y=0,
        yref="paper",
        text=name,
        showarrow=False,
        xanchor=side,
        yanchor="bottom",
        font={"size": 11, "color": GREY},
    )


def _draw_names(
    figure: go.Figure,
    points: Sequence[_Point],
    x: Axis,
    y: Axis,
    ranges: tuple[tuple[float, float], tuple[float, float]],
) -> None:
    width = WIDTH_PX - LEFT_PX - RIGHT_PX
    height = HEIGHT_PX - TOP_PX - BOTTOM_PX
    (left, right), (bottom, top) = ranges
    places = [(x.coordinate(point.x.value), y.coordinate(point.y.value)) for point in points]
    pixels = [((a - left) / (right - left) * width, (b - bottom) / (top - bottom) * height) for a, b in places]
    offsets = place(pixels, [point.row.label for point in points], width, height)
    for point, (a, b), (dx, dy) in zip(points, places, offsets, strict=True):
        figure.add_annotation(
            x=a,
            y=b,
            ax=dx,
            ay=-dy,
            text=html.escape(point.row.label),
            showarrow=True,
            arrowhead=0,
            arrowwidth=0.7,
            arrowcolor=GREY,
            standoff=6,
            font={"size": 12},
            borderpad=0,
        )


def _memory(table: Table) -> Figure | None:
    """Stored bytes stacked by role and part, one bar per variant, in the order of the table."""
    rows = [row for row in table.rows if row.stored_bytes]
    present = dict.fromkeys((part.role, part.part) for row in rows for part in row.stored if part.bytes)
    parts = [part for part in PARTS if part in present] + [part for part in present if part not in PARTS]
    if not parts:
        return None
    size = column(table, "stored_bytes")
    totals = [(row.stored_bytes or 0) * size.factor for row in rows]
    written = [f"{size.text(row.stored_bytes or 0)} {size.unit}" for row in rows]
    layout = paper(height_px=100 + 26 * len(rows), top_px=48) | {
        "barmode": "stack",
        "bargap": 0.35,
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "xaxis": ruler(f"Stored weights, {size.unit}", (0, max(totals) * 1.16)),
        "yaxis": {"autorange": "reversed", "automargin": True, "ticksuffix": "  "},
    }
    figure = go.Figure([_bars(rows, part, size) for part in parts], layout)
    for row, total, text in zip(rows, totals, written, strict=True):
        figure.add_annotation(x=total, y=html.escape(row.label), text=text, showarrow=False, xanchor="left", xshift=6)
    said = "; ".join(f"{row.label}: {text}" for row, text in zip(rows, written, strict=True))
    caption = "Real bytes as stored: packed values, their scales and zero points, and what was left alone."
    return Figure("What the weights weigh", caption, f"Stored weights by role. {said}.", str(figure.to_json()))


def _bars(rows: Sequence[VariantRow], part: tuple[str, str], size: Column) -> go.Bar:
    sizes = [row.stored_part(*part) or 0 for row in rows]
    name = html.escape(" ".join(part))
    return go.Bar(
        y=[html.escape(row.label) for row in rows],
        x=[count * size.factor for count in sizes],
        orientation="h",
        name=name,
        marker={"color": PARTS.get(part, GREY)},
        hovertext=[f"{name}: {size.text(count)} {size.unit}" for count in sizes],
        hoverinfo="y+text",
    )
