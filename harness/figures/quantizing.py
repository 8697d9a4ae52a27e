"""What quantizing a variant costs, once or at each load."""

from __future__ import annotations

from harness.figures.figure import Axis, Figure, Whole
from harness.figures.formats import BINARY, NumberStyle, SizeUnit, duration, in_unit, size_unit
from harness.figures.table import Table

GROUP = "Cost of quantizing"


def _unit(table: Table) -> SizeUnit:
    return size_unit((row.quantize_peak_bytes or 0 for row in table.rows), BINARY)


def _peak_help(table: Table, place: Whole) -> str:
    unit = _unit(table)
    return f"Peak while quantizing. 1 {unit.name} is {unit.bytes:,} bytes."


QUANTIZE_TIME: Figure[Whole] = Figure(
    "quantize_time",
    GROUP,
    "time",
    "Wall time of quantizing once, or of quantizing at each load.",
    lambda row, place: row.quantize_s,
    "lower",
    NumberStyle(write=duration),
    column="quantize_s",
    axis=Axis("time, s", from_zero=True),
)
QUANTIZE_PEAK: Figure[Whole] = Figure(
    "quantize_peak",
    GROUP,
    "peak memory",
    _peak_help,
    lambda row, place: row.quantize_peak_bytes,
    "lower",
    lambda table, place: in_unit(_unit(table)),
    column="quantize_peak_bytes",
    axis=Axis("peak memory, {unit}", from_zero=True),
)
FIGURES: tuple[Figure[Whole], ...] = (QUANTIZE_TIME, QUANTIZE_PEAK)
