"""The axes of the figures: which figure of a variant lies where, in plotly's coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.figures.table import Table, VariantRow
from harness.report.column import Column, Value
from harness.report.columns_run import speed_columns
from harness.report.tables import column
from harness.stats.estimate import Estimate
from harness.stats.pareto import Direction

LEAST_KL_NAT = 1e-6
LEAST_CHANGE = 1e-4
"""What lies below (lossless, or better than the baseline) is drawn there: a logarithm has no zero."""

WIDE = 20
"""From this ratio of largest to smallest on, an axis of positive values is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """A column laid along an axis, in the column's unit; a logarithmic one begins at the raw ``least``."""

    column: Column
    title: str
    better: Direction
    log: bool = False
    least: float = -math.inf

    def place(self, value: float) -> float:
        """Where a raw value is drawn."""
        return max(value, self.least) * self.column.factor

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


def size_axis(table: Table) -> Axis:
    return _linear(column(table, "stored_bytes"), "Stored weights", "lower")


def divergence_axis(table: Table) -> Axis:
    kl = column(table, "kl_mean_nat")
    return Axis(kl, "KL divergence from the baseline, nat per token", "lower", log=True, least=LEAST_KL_NAT)


def change_axis(table: Table) -> Axis:
    """Logarithmic where a ruined variant would else press all others flat."""
    change = column(table, "perplexity_change_fraction")
    rises = [row.perplexity_change.value for row in table.rows if row.perplexity_change]
    if max(rises, default=0) > WIDE * max(min(rises, default=0), LEAST_CHANGE):
        return Axis(change, "Rise of perplexity, %", "lower", log=True, least=LEAST_CHANGE)
    return _linear(change, "Change of perplexity", "lower")


def decode_axis(table: Table) -> Axis:
    """Decoding speed at the table's first grid point. Raises IndexError where nothing was timed."""
    point = table.grid[0]
    decode = next(each for each in speed_columns(point, headline=True) if each.name.startswith("decode_tok"))
    return _linear(decode, f"Decoding at {point.label}", "higher")


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


def measured(axis: Axis, rows: Sequence[VariantRow]) -> list[VariantRow]:
    """The rows that have a place on the axis; an infinite perplexity has none."""
    values = [(row, axis.column.value(row)) for row in rows]
    return [row for row, value in values if value is not None and math.isfinite(estimate(value).value)]


def _linear(each: Column, title: str, better: Direction) -> Axis:
    return Axis(each, f"{title}, {each.unit}", better)
