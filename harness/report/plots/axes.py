"""The axes of plots: the position of each variant's figure, in plotly's coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from harness.figures.figure import WHOLE, Axis, Figure, Place, Value
from harness.figures.table import Table
from harness.report.column import Column, columns_of, values
from harness.stats.estimate import Estimate
from harness.stats.pareto import Direction

CUT_OFF = "An interval at the edge goes on beyond it."
USUAL = 3
"""An axis has room for an interval that is so many times as wide as the median one."""


@dataclass(frozen=True)
class ColumnAxis:
    """A column drawn along an axis, in the column's unit; a logarithmic axis begins at the raw ``least``."""

    column: Column
    title: str
    better: Direction
    log: bool = False
    least: float = -math.inf

    def place(self, value: float) -> float:
        """The position at which a raw value is drawn."""
        return max(value, self.least) * self.column.format.factor

    def coordinate(self, value: float) -> float:
        """The position as plotly expresses ranges and annotations: base-ten logarithms on a logarithmic axis."""
        return math.log10(self.place(value)) if self.log else self.place(value)

    def written(self, value: float) -> str:
        return f"{self.column.text(value)} {self.column.unit}"

    def range(self, estimates: Sequence[Estimate], room: float) -> tuple[float, float]:
        """As ``extent`` of them along this axis."""
        return extent(estimates, self.coordinate, room)


def axis_of(table: Table, figure: Figure[Any], place: Place = WHOLE) -> ColumnAxis:
    """A figure's axis, as its declaration says. Raises KeyError if the table has no column of it at that place."""
    column = {each.place: each for each in columns_of(table, figure)}[place]
    style = figure.axis or Axis("{place}, {unit}")
    log = style.log([estimate(value).value for value in values(table, column) if value is not None])
    title = (style.log_title if log and style.log_title else style.title).replace("{place}", place.label)
    return ColumnAxis(
        column,
        title.replace("{unit}", column.unit),
        "higher" if figure.direction == "higher" else "lower",
        log,
        style.least if log else -math.inf,
    )


def extent(estimates: Sequence[Estimate], coordinate: Callable[[float], float], room: float) -> tuple[float, float]:
    """From the lowest to the highest end of an interval, plus ``room``, a share of that span, on each side.

    An interval that hardly bounds anything does not make all others unreadable: beyond the figures, there is room for
    as much as they are apart, and for ``USUAL`` times the median distance from a figure to an end. The rest is cut off.
    """
    figures = [coordinate(each.value) for each in estimates] or [0.0]
    ends = [
        (figure, coordinate(end))
        for figure, each in zip(figures, estimates, strict=False)
        for end in (each.low, each.high)
        if end is not None and math.isfinite(end)
    ]
    low, high = min(figures), max(figures)
    distances = [abs(end - figure) for figure, end in ends] or [0.0]
    most = max(high - low, USUAL * median_low(distances))
    low = min([low, *(max(end, low - most) for _, end in ends)])
    high = max([high, *(min(end, high + most) for _, end in ends)])
    spare = (high - low) * room if high > low else abs(high) * 0.1 or 1.0
    return low - spare, high + spare


def cut_off(estimates: Sequence[Estimate], coordinate: Callable[[float], float], span: tuple[float, float]) -> bool:
    """Whether an interval reaches beyond the axis, whose ends are ``span``."""
    ends = (coordinate(end) for each in estimates for end in (each.low, each.high) if end is not None)
    return any(not span[0] <= end <= span[1] for end in ends)


def estimate(value: Value) -> Estimate:
    """The value as an estimate, without an interval if it has none. Raises ValueError if it is not a number."""
    if value is None or isinstance(value, str):
        raise ValueError("not measured")
    return value if isinstance(value, Estimate) else Estimate(float(value), None, None, 1, "exact")


def intervals(estimates: Sequence[Estimate], place: Callable[[float], float]) -> dict[str, object]:
    """Error bars in plotly's format; ``place`` maps a value to its position. A missing interval is null."""

    def reach(each: Estimate, end: float | None) -> float | None:
        if end is None:
            return None
        return abs(place(end) - place(each.value)) if math.isfinite(end) else 0.0

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(each, each.high) for each in estimates],
        "arrayminus": [reach(each, each.low) for each in estimates],
        "thickness": 1.2,
        "width": 3,
    }
