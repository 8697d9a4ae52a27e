"""Quality against size and speed: every variant is a point with its intervals, the Pareto front a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.figures.divergence import KL
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.size import STORED_BYTES
from harness.figures.speed import DECODE
from harness.figures.table import Table, VariantRow
from harness.report import escape
from harness.report.choice import MOST_ROWS
from harness.report.column import values
from harness.report.plots.axes import CUT_OFF, ColumnAxis, axis_of, cut_off, estimate, intervals
from harness.report.plots.drawing import Drawing
from harness.report.plots.labels import place
from harness.report.plots.plot import Plot, families
from harness.report.plots.theme import (
    BOTTOM_PX,
    GREY,
    HEIGHT_PX,
    LEFT_PX,
    RIGHT_PX,
    TOP_PX,
    WIDTH_PX,
    family_colour,
    family_symbol,
    paper,
    ruler,
)
from harness.stats.estimate import Estimate
from harness.stats.pareto import Direction, front

MOST_NAMES = 30
"""With more points, only some on the front are named: more names than these could not be read."""
FEW_NAMES = 12
MOST_INTERVALS = 200
"""With more points, intervals are left out, because nobody could tell which point each belongs to."""
MOST_POINTS = 5_000
"""With more, the front and some of the others are drawn: each point is an element of the page."""
SMALLEST_PX, LARGEST_PX, PLAIN_PX = 6.0, 24.0, 10.0
CROWDED = 0.6
"""The size of markers, relative to that of few, and their opacity, where intervals are left out."""


@dataclass(frozen=True)
class _Point:
    """``best``: no other point dominates it in the respects of the plot."""

    row: VariantRow
    values: tuple[Estimate, ...]
    best: bool = False

    @property
    def x(self) -> Estimate:
        return self.values[0]

    @property
    def y(self) -> Estimate:
        return self.values[1]

    @property
    def costs(self) -> tuple[float, ...]:
        return tuple(each.value for each in self.values)


@dataclass(frozen=True)
class _Markers:
    """The sizes of a plot's markers. ``fastest`` is the largest third value, that of the largest marker."""

    fastest: float
    crowded: bool

    @property
    def scale(self) -> float:
        return CROWDED if self.crowded else 1.0

    def size_px(self, point: _Point) -> float:
        """The area is proportional to the third value, with a minimum so that the slowest remains visible."""
        if len(point.values) < 3 or self.fastest <= 0:
            return self.scale * PLAIN_PX
        share = max(point.values[2].value, 0.0) / self.fastest
        return self.scale * max(SMALLEST_PX, LARGEST_PX * math.sqrt(share))


@dataclass(frozen=True)
class _Respects:
    """The horizontal and vertical axes and, if there is a third, the figure that a marker's area shows."""

    name: str
    title: str
    axes: tuple[ColumnAxis, ...]

    @property
    def x(self) -> ColumnAxis:
        return self.axes[0]

    @property
    def y(self) -> ColumnAxis:
        return self.axes[1]

    @property
    def directions(self) -> tuple[Direction, ...]:
        return tuple(axis.better for axis in self.axes)


def scatters(table: Table) -> tuple[Plot, ...]:
    """Quality against size and speed together, then in pairs; only plots that have data."""
    size, divergence, change = (axis_of(table, each) for each in (STORED_BYTES, KL, PERPLEXITY_CHANGE))
    first = _Respects("divergence-size", "Divergence against size", (size, divergence))
    plots = [_Respects("perplexity-size", "Perplexity against size", (size, change))]
    if table.grid:
        speed = axis_of(table, DECODE, table.grid[0])
        all_three = _Respects("divergence-size-speed", "Divergence, size and speed", (size, divergence, speed))
        first = all_three if _points(table, all_three) else first
        plots.append(_Respects("divergence-speed", "Divergence against decoding speed", (speed, divergence)))
    return tuple(drawn for plot in (first, *plots) if (drawn := _plot(table, plot)))


def _points(table: Table, plot: _Respects) -> list[_Point]:
    """The variants that can be drawn in the plot; an infinite perplexity cannot."""
    columns = (values(table, axis.column) for axis in plot.axes)
    measured = (
        (row, tuple(map(estimate, found)))
        for row, *found in zip(table.rows, *columns, strict=True)
        if not row.is_baseline and None not in found
    )
    points = [_Point(row, found) for row, found in measured if all(math.isfinite(each.value) for each in found)]
    best = set(front([point.costs for point in points], plot.directions))
    return [replace(point, best=index in best) for index, point in enumerate(points)]


def _plot(table: Table, plot: _Respects) -> Plot | None:
    points = _points(table, plot)
    if not points:
        return None
    x, y = plot.x, plot.y
    ranges = x.range([point.x for point in points], 0.26), y.range([point.y for point in points], 0.1)
    drawing = Drawing(paper() | {"xaxis": ruler(x.title, ranges[0], x.log), "yaxis": ruler(y.title, ranges[1], y.log)})
    _draw_front(drawing, points, plot)
    _draw_baseline(drawing, table, x, ranges[0])
    drawn, markers = _thinned(points), _Markers(_fastest(points), len(points) > MOST_INTERVALS)
    _draw_points(drawing, table, drawn, plot, markers)
    best = [point for point in points if point.best]
    _draw_names(drawing, points if len(points) <= MOST_NAMES else _spread(best), points, plot, ranges, markers)
    listed = sorted(points, key=lambda point: not point.best)[:MOST_ROWS]
    lines = tuple((point.row.label, *_value_texts(point, plot), "yes" if point.best else "no") for point in listed)
    head = ("Variant", *(axis.title for axis in plot.axes), "on the front")
    caption = _caption(plot, len(points), len(drawn), best)
    if len(points) <= MOST_INTERVALS and any(
        cut_off([point.values[number] for point in points], axis.coordinate, ranges[number])
        for number, axis in enumerate((x, y))
    ):
        caption += f" {CUT_OFF}"
    return Plot(plot.name, plot.title, caption, head, lines, drawing.json())


def _spread(best: Sequence[_Point]) -> list[_Point]:
    """A few of them, evenly along the horizontal axis's order."""
    ordered = sorted(best, key=lambda point: point.x.value)
    few = min(len(ordered), FEW_NAMES)
    return [ordered[round(number * (len(ordered) - 1) / max(few - 1, 1))] for number in range(few)]


def _thinned(points: Sequence[_Point]) -> Sequence[_Point]:
    """All on the front, and evenly many of the others, which are in order of their size."""
    if len(points) <= MOST_POINTS:
        return points
    step = -(-len(points) // MOST_POINTS)
    return [point for number, point in enumerate(points) if point.best or number % step == 0]


def _caption(plot: _Respects, count: int, drawn: int, best: Sequence[_Point]) -> str:
    names = [point.row.label for point in best]
    few = names if len(names) <= MOST_NAMES else names[:FEW_NAMES]
    listed = ", ".join(few) + (f" and {len(names) - len(few):,} more" if len(names) > len(few) else "")
    caption = f"{'Lower left' if plot.x.better == 'lower' else 'Lower right'} is better."
    if len(plot.axes) > 2:
        title = plot.axes[2].title
        caption += f" A marker's area: {title[0].lower()}{title[1:]}. Dotted: the front of the two axes."
    respects = "all three respects" if len(plot.axes) > 2 else "both respects"
    caption += f" No other variant beats the filled markers in {respects}: {listed}."
    if count > MOST_INTERVALS:
        caption += f" {count:,} variants; their intervals are in the table."
    if drawn < count:
        caption += f" {drawn:,} of them are drawn: those on the front, and evenly many of the others."
    return caption


def _value_texts(point: _Point, plot: _Respects) -> list[str]:
    """Each figure with its interval, or why an axis of speeds has none."""
    written = []
    for value, axis in zip(point.values, plot.axes, strict=True):
        alone = value.kind == "processes" and (value.low is None or value.high is None)
        written.append(" ".join([_written(value, axis), *([f"({value.method})"] if alone else [])]))
    return written


def _fastest(points: Sequence[_Point]) -> float:
    """The largest third value; 0 if there is none."""
    return max((point.values[2].value for point in points if len(point.values) > 2), default=0.0)


def _draw_points(drawing: Drawing, table: Table, points: Sequence[_Point], plot: _Respects, markers: _Markers) -> None:
    """A trace per method, so that each has its colour and marker in all plots of a table."""
    groups: dict[str, list[_Point]] = {}
    for point in points:
        groups.setdefault(point.row.method, []).append(point)
    for method, family in families(table.rows).items():
        if method in groups:
            _draw_markers(drawing, family, groups[method], plot, markers)


def _draw_markers(drawing: Drawing, family: int, points: Sequence[_Point], plot: _Respects, markers: _Markers) -> None:
    symbol, colour = family_symbol(family), family_colour(family)
    drawing.trace(
        "scatter",
        x=[plot.x.place(point.x.value) for point in points],
        y=[plot.y.place(point.y.value) for point in points],
        mode="markers",
        marker={
            "size": [markers.size_px(point) for point in points],
            "color": colour,
            "symbol": [symbol if point.best else f"{symbol}-open" for point in points],
            "line": {"width": 1.5 * markers.scale, "color": colour},
            **({"opacity": CROWDED} if markers.crowded else {}),
        },
        **(_without(points, plot) if markers.crowded else _with_intervals(points, plot)),
    )


def _with_intervals(points: Sequence[_Point], plot: _Respects) -> dict[str, Any]:
    return {
        "text": ["<br>".join([f"<b>{escape.plot(point.row.label)}</b>", *_hover(point, plot)]) for point in points],
        "hoverinfo": "text",
        "error_x": intervals([point.x for point in points], plot.x.place),
        "error_y": intervals([point.y for point in points], plot.y.place),
    }


def _without(points: Sequence[_Point], plot: _Respects) -> dict[str, Any]:
    """plotly itself writes the figures of the point below the pointer, to four digits."""
    places = ("%{x:.4~r}", "%{y:.4~r}", "%{customdata:.4~r}")
    figures = [f"{escape.plot(axis.title)}: {place}" for axis, place in zip(plot.axes, places, strict=False)]
    third = [axis.place(point.values[2].value) for axis in plot.axes[2:] for point in points]
    return {
        "text": [escape.plot(point.row.label) for point in points],
        "hovertemplate": "<br>".join(["<b>%{text}</b>", *figures]) + "<extra></extra>",
        **({"customdata": third} if third else {}),
    }


def _hover(point: _Point, plot: _Respects) -> list[str]:
    return [
        escape.plot(f"{axis.title}: {text}") for axis, text in zip(plot.axes, _value_texts(point, plot), strict=True)
    ]


def _written(estimate: Estimate, axis: ColumnAxis) -> str:
    if estimate.low is None or estimate.high is None:
        return axis.written(estimate.value)
    return f"{axis.written(estimate.value)} [{axis.written(estimate.low)}, {axis.written(estimate.high)}]"


def _draw_front(drawing: Drawing, points: Sequence[_Point], plot: _Respects) -> None:
    """A staircase: a variant at one of its corners beats every point above it along both axes."""
    x, y = plot.x, plot.y
    best = [points[index] for index in front([point.costs[:2] for point in points], plot.directions[:2])]
    ordered = sorted(best, key=lambda point: point.x.value)
    drawing.trace(
        "scatter",
        x=[x.place(point.x.value) for point in ordered],
        y=[y.place(point.y.value) for point in ordered],
        mode="lines",
        line={"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv" if x.better == "lower" else "vh"},
        hoverinfo="skip",
    )


def _draw_baseline(drawing: Drawing, table: Table, x: ColumnAxis, extent: tuple[float, float]) -> None:
    """A line at the baseline, or a note at the edge nearest to it, so that it does not squeeze the variants."""
    value = x.column.value(table.baseline) if table.baseline else None
    if value is None or table.baseline is None:
        return
    place, (low, high) = x.place(estimate(value).value), extent
    name = f"{escape.plot(table.baseline.label)} {x.written(estimate(value).value)}"
    if low <= place <= high:
        drawing.line(x0=place, x1=place, y0=0, y1=1, yref="paper", line={"color": GREY, "width": 1, "dash": "dash"})
    else:
        name = f"{name} →" if place > high else f"← {name}"
    edge = min(max(place, low), high)
    side = "right" if edge > (low + high) / 2 else "left"
    drawing.note(
        name,
        x=edge,
        y=0,
        yref="paper",
        xanchor=side,
        yanchor="bottom",
        font={"size": 11, "color": GREY},
    )


def _draw_names(
    drawing: Drawing,
    named: Sequence[_Point],
    points: Sequence[_Point],
    plot: _Respects,
    ranges: tuple[tuple[float, float], tuple[float, float]],
    markers: _Markers,
) -> None:
    x, y = plot.x, plot.y
    width = WIDTH_PX - LEFT_PX - RIGHT_PX
    height = HEIGHT_PX - TOP_PX - BOTTOM_PX
    (left, right), (bottom, top) = ranges
    others = [] if len(named) == len(points) else points[:MOST_INTERVALS]
    places = [(x.coordinate(point.x.value), y.coordinate(point.y.value)) for point in (*named, *others)]
    pixels = [((a - left) / (right - left) * width, (b - bottom) / (top - bottom) * height) for a, b in places]
    radii = [markers.size_px(point) / 2 for point in named]
    names = [point.row.label for point in named]
    offsets = place(pixels[: len(named)], names, width, height, radii, pixels[len(named) :])
    for point, (a, b), radius, (dx, dy) in zip(named, places, radii, offsets, strict=False):
        drawing.note(
            escape.plot(point.row.label),
            x=a,
            y=b,
            ax=dx,
            ay=-dy,
            showarrow=True,
            arrowhead=0,
            arrowwidth=0.7,
            arrowcolor=GREY,
            standoff=radius,
            font={"size": 12},
            borderpad=0,
        )
