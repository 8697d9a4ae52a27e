"""One column of a trade-off table: what it is called, where its value comes from, how it is written.

``name`` and the raw value serve machines (the unit is in the name); ``heading``, ``unit`` and the
written value serve readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.figures.formats import BLANK, significant
from harness.figures.table import VariantRow
from harness.stats.estimate import Estimate

Value = Estimate | float | str | None


@dataclass(frozen=True)
class Column:
    """One figure of a variant.

    Readers see ``write(value × factor)`` and below it the ``notes`` on a row; ``shown`` is False for the CSV file
    alone. ``interval`` says that values are estimates, which take three columns there. A value may be a word.
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
    notes: Callable[[VariantRow], tuple[str, ...]] = lambda row: ()

    def text(self, value: float) -> str:
        return self.write(value * self.factor)


@dataclass(frozen=True)
class Cell:
    """A figure as readers see it, its interval and notes apart, and the number that sorting goes by."""

    text: str
    interval: str = ""
    sort: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def sort_key(self) -> str:
        """``sort`` as JavaScript reads numbers."""
        return repr(self.sort).replace("inf", "Infinity")

    @property
    def whole(self) -> str:
        return " ".join(part for part in (self.text, self.interval, ", ".join(self.notes)) if part)


def interval_note(estimate: Estimate | None) -> tuple[str, ...]:
    """Of a figure that processes repeat: why it has no interval, or that the interval is of one process alone."""
    if estimate is None:
        return ()
    if estimate.low is None or estimate.high is None:
        return (estimate.method,)
    return ("one process",) if estimate.n == 1 else ()


def cell(column: Column, row: VariantRow) -> Cell:
    """The written figure: ``value [low, high]``, or a dash."""
    value = column.value(row)
    if value is None:
        return Cell(BLANK)
    if isinstance(value, str):
        return Cell(value)
    if not isinstance(value, Estimate):
        return Cell(column.text(value), sort=value, notes=column.notes(row))
    known = value.low is not None and value.high is not None
    interval = f"[{column.text(value.low or 0)}, {column.text(value.high or 0)}]" if known else ""
    return Cell(column.text(value.value), interval, value.value, column.notes(row))


def raw(each: Column, row: VariantRow) -> dict[str, float | str | None]:
    """Full precision under the column's name, an interval beside it under ``…_low`` and ``…_high``."""
    value = each.value(row)
    if isinstance(value, Estimate):
        return {each.name: value.value, f"{each.name}_low": value.low, f"{each.name}_high": value.high}
    if each.interval:
        return {each.name: value, f"{each.name}_low": None, f"{each.name}_high": None}
    return {each.name: value}


def figure(group: str, name: str, heading: str, value: Callable[[VariantRow], Value], text: str = "") -> Column:
    """A plain figure for the CSV file."""
    return Column(name, group, heading, "nat" if name.endswith("_nat") else "", text, value, shown=False)
