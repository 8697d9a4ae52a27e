"""The axes of plots: the position of each variant's figure, in plotly's coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.figures.figure import WHOLE, Axis, Figure, Place, Value
from harness.figures.table import Table
from harness.report.column import Column, columns_of, values
from harness.report.extent import extent
from harness.stats.estimate import Estimate
from harness.stats.pareto import Direction

CUT_OFF = "An interval at the edge goes on beyond it."


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
        """As ``reach`` of them along this axis."""
        return reach(estimates, self.coordinate, room)


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


def reach(estimates: Sequence[Estimate], coordinate: Callable[[float], float], room: float) -> tuple[float, float]:
    """The ends of an axis that shows the estimates: see ``extent``."""
    triples = ((each.value, each.low, each.high) for each in estimates)
    places = [[math.nan if end is None or math.isinf(end) else coordinate(end) for end in each] for each in triples]
    figures, lows, highs = np.array(places, dtype=np.float64).reshape(-1, 3).T
    return extent(figures, lows, highs, room)


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

    def length(each: Estimate, end: float | None) -> float | None:
        if end is None:
            return None
        return abs(place(end) - place(each.value)) if math.isfinite(end) else 0.0

    return {
        "type": "data",
        "symmetric": False,
        "array": [length(each, each.high) for each in estimates],
        "arrayminus": [length(each, each.low) for each in estimates],
        "thickness": 1.2,
        "width": 3,
    }
