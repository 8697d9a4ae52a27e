"""One column of a trade-off table: what it is called, where its value comes from, how it is written.

``name`` and the raw value serve machines (the unit is in the name); ``heading``, ``unit`` and the
written value serve readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.analysis.stats import Estimate
from harness.analysis.table import VariantRow
from harness.report.formats import BLANK, significant

Value = Estimate | float | None


@dataclass(frozen=True)
class Column:
    """One figure of a variant.

    Readers see ``write(value × factor)``; ``shown`` is False for the CSV file alone. ``interval`` says
    that values are estimates, which take three columns there.
    """

    name: str
    group: str
    heading: str
    unit: str
    help: str
    value: Callable[[VariantRow], Value]
    write: Callable[[float], str] = significant
    factor: float = 1.0
    shown: bool = True
    interval: bool = False

    def text(self, value: float) -> str:
        return self.write(value * self.factor)


@dataclass(frozen=True)
class Cell:
    """A figure as readers see it, its interval apart, and the number that sorting goes by."""

    text: str
    interval: str = ""
    sort: float | None = None

    @property
    def sort_key(self) -> str:
        """``sort`` as JavaScript reads numbers."""
        return repr(self.sort).replace("inf", "Infinity")

    @property
    def whole(self) -> str:
        return f"{self.text} {self.interval}" if self.interval else self.text


def cell(column: Column, row: VariantRow) -> Cell:
    """The written figure: ``value [low, high]``, or a dash."""
    value = column.value(row)
    if value is None:
        return Cell(BLANK)
    if not isinstance(value, Estimate):
        return Cell(column.text(value), sort=value)
    if value.low is None or value.high is None:
        return Cell(column.text(value.value), sort=value.value)
    return Cell(column.text(value.value), f"[{column.text(value.low)}, {column.text(value.high)}]", value.value)


def raw(each: Column, row: VariantRow) -> dict[str, float | None]:
    """Full precision under the column's name, an interval beside it under ``…_low`` and ``…_high``."""
    value = each.value(row)
    if isinstance(value, Estimate):
        return {each.name: value.value, f"{each.name}_low": value.low, f"{each.name}_high": value.high}
    if each.interval:
        return {each.name: value, f"{each.name}_low": None, f"{each.name}_high": None}
    return {each.name: value}
