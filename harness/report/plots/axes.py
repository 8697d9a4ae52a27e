"""The axes of plots: which figure of a variant lies where, in plotly's coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.figures.figure import WHOLE, Axis, Figure, Place, Value
from harness.figures.table import Table, VariantRow
from harness.report.column import Column, columns_of
from harness.stats.estimate import Estimate
from harness.stats.pareto import Direction

WIDE = 20
"""From this ratio of largest to smallest on, an axis of positive values is logarithmic."""


@dataclass(frozen=True)
class ColumnAxis:
    """A column laid along an axis, in the column's unit; a logarithmic one begins at the raw ``least``."""

    column: Column
    title: str
    better: Direction
    log: bool = False
    least: float = -math.inf

    def place(self, value: float) -> float:
        """Where a raw value is drawn."""
        return max(value, self.least) * self.column.format.factor

    def coordinate(self, value: float) -> float:
        """The same as plotly counts ranges and annotations: logarithms to base ten on a logarithmic axis."""
        return math.log10(self.place(value)) if self.log else self.place(value)

    def written(self, value: float) -> str:
        return f"{self.column.text(value)} {self.column.unit}"

    def range(self, estimates: Sequence[Estimate], room: float) -> tuple[float, float]:
        """From the lowest to the highest end of an interval and ``room``, a share of that, on each side."""
        ends = [
            self.coordinate(end)
            for each in estimates
            for end in (each.value, each.low, each.high)
            if end is not None and math.isfinite(end)
        ] or [0.0]
        spare = (max(ends) - min(ends)) * room or abs(max(ends)) * 0.1 or 1.0
        return min(ends) - spare, max(ends) + spare


def axis_of(table: Table, figure: Figure[Any], place: Place = WHOLE) -> ColumnAxis:
    """A figure along an axis, as its declaration says. Raises KeyError where the table has no column of it there."""
    column = {each.place: each for each in columns_of(table, figure)}[place]
    style = figure.axis or Axis("{place}, {unit}")
    values = [estimate(value).value for row in table.rows if (value := column.value(row)) is not None]
    log = style.log(values)
    title = (style.log_title if log and style.log_title else style.title).replace("{place}", place.label)
    return ColumnAxis(
        column,
        title.replace("{unit}", column.unit),
        "higher" if figure.direction == "higher" else "lower",
        log,
        style.least if log else -math.inf,
    )


def estimate(value: Value) -> Estimate:
    """A value that has no interval, as one that has none. Raises ValueError for what is no number."""
    if value is None or isinstance(value, str):
        raise ValueError("not measured")
    return value if isinstance(value, Estimate) else Estimate(float(value), None, None, 1, "exact")


def intervals(estimates: Sequence[Estimate], place: Callable[[float], float]) -> dict[str, object]:
    """Error bars as plotly takes them; ``place`` is where a value is drawn. What has no interval has none: null."""

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


def measured(axis: ColumnAxis, rows: Sequence[VariantRow]) -> list[VariantRow]:
    """The rows that have a place on the axis; an infinite perplexity has none."""
    values = [(row, axis.column.value(row)) for row in rows]
    return [row for row, value in values if value is not None and math.isfinite(estimate(value).value)]
