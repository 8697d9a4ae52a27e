"""The size of a variant: bytes as stored, bits per weight, the files it is loaded from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.figures.ask import Ask, LimitOption, Objective, Ties, size
from harness.figures.figure import Axis, Figure, Value, Whole
from harness.figures.formats import DECIMAL, PERCENT, NumberStyle, SizeUnit, in_unit, size_unit
from harness.figures.gate import Gate
from harness.figures.statistic import Count, Measured, first_value
from harness.figures.table import Table, VariantRow

GROUP = "Size"
TOLERANCE = 0.01
"""Two sizes are equal within 1%. They are counted without noise, but nobody decides by such a difference: formats with
the same number of bits differ by that much in how they store scales, and memory for generation is only known to 5%
(``footprint.SPARE``)."""


@dataclass(frozen=True)
class Part:
    """What is stored for one role of tensors: their values, or their scales."""

    role: str
    part: str

    @property
    def name(self) -> str:
        return f"{self.role}_{self.part}"

    @property
    def label(self) -> str:
        return f"{self.role} {self.part}"


def _parts(table: Table) -> tuple[Part, ...]:
    return tuple(dict.fromkeys(Part(part.role, part.part) for row in table.rows for part in row.stored))


def _unit(table: Table) -> SizeUnit:
    """One unit for all sizes of a table: the largest in which the largest entry is at least one."""
    return table.remember("unit of sizes", lambda: size_unit((row.stored_bytes or 0 for row in table.rows), DECIMAL))


def _format(table: Table, place: object) -> NumberStyle:
    return in_unit(_unit(table))


def _stored_help(table: Table, place: Whole) -> str:
    unit = _unit(table)
    return f"Bytes of all weights as stored, scales included. 1 {unit.name} is {unit.bytes:,} bytes."


def _bits_per_weight(found: Measured) -> float | None:
    """Bits per weight of the linear layers, scales included."""
    linear = [each for each in found["stored_bytes"] if each.protocol.get("role") == "linear"]
    parameters = sum(sum(m.values) for m in found["parameters"] if m.protocol.get("role") == "linear")
    if not linear or not parameters:
        return None
    return 8 * sum(sum(each.values) for each in linear) / parameters


def _figure(
    name: str,
    heading: str,
    text: str,
    pick: Callable[[VariantRow], Value],
    format: NumberStyle | Callable[[Table, Whole], NumberStyle],
    column: str = "",
    shown: bool | Callable[[Table, Whole], bool] = True,
    statistic: Count | None = None,
    gate: Gate | None = None,
    axis: Axis | None = None,
    key: bool = False,
) -> Figure[Whole]:
    return Figure(
        name,
        GROUP,
        heading,
        text,
        lambda row, place: pick(row),
        "lower",
        format,
        column=column,
        shown=shown,
        statistic=statistic,
        gate=gate,
        axis=axis,
        key=key,
    )


def _on_disk(table: Table, place: Whole) -> bool:
    return any(row.checkpoint_bits_per_weight is not None for row in table.rows)


STORED_BYTES = Figure(
    "stored_bytes",
    GROUP,
    "Weights",
    _stored_help,
    lambda row, place: row.stored_bytes,
    "lower",
    _format,
    statistic=Count("stored_bytes"),
    gate=Gate("relative", 0.0, "bytes of all weights as loaded", rank=100),
    ask=Ask(
        "stored weights",
        LimitOption("max-size", size, "SIZE", "Stored weights, scales included.", "≤ {} weights", rank=20),
        Objective("bytes", "the smallest", "within 1% of the size of", rank=10),
        Ties(tolerance=TOLERANCE, rank=60, words="stored weights"),
        sizes=DECIMAL,
    ),
    axis=Axis("Stored weights, {unit}"),
    key=True,
)
BITS_PER_WEIGHT = _figure(
    "bits_per_weight",
    "Bits per weight",
    "Bits of a linear layer's weight as it lies in memory after loading, its scales included.",
    lambda row: row.bits_per_weight,
    NumberStyle(),
    "linear_bits_per_weight",
    statistic=Count("stored_bytes", _bits_per_weight, ("parameters",), "bit"),
    gate=Gate("relative", 0.0, "bits of a decoder weight with its scales", rank=110),
    axis=Axis("in memory", from_zero=True),
    key=True,
)
CHECKPOINT_BITS = _figure(
    "checkpoint_bits_per_weight",
    "on disk",
    "Bits of a decoder weight in the checkpoint, scales included. More in memory: it is dequantized on load.",
    lambda row: row.checkpoint_bits_per_weight,
    NumberStyle(),
    shown=_on_disk,
    axis=Axis("on disk", from_zero=True),
)
FIGURES = (
    STORED_BYTES,
    _figure(
        "size_ratio",
        "of 16‑bit",
        "Stored weights over two bytes per parameter: the 16-bit equivalent of the checkpoint.",
        lambda row: row.size_ratio,
        PERCENT,
        "size_ratio_to_16_bit",
    ),
    _figure(
        "linear_ratio",
        "linears of 16‑bit",
        "The same for the linear layers alone.",
        lambda row: row.linear_ratio,
        PERCENT,
        "linear_ratio_to_16_bit",
        False,
    ),
    BITS_PER_WEIGHT,
    CHECKPOINT_BITS,
    _figure(
        "checkpoint_bytes",
        "files",
        "Bytes of the weight files that it is loaded from, whole.",
        lambda row: row.checkpoint_file_bytes,
        _format,
        "checkpoint_file_bytes",
        False,
        Count("checkpoint_file_bytes", first_value("checkpoint_file_bytes")),
        Gate("relative", 0.001, "bytes of the weight files", rank=120),
    ),
    Figure(
        "stored_part",
        GROUP,
        "{place}",
        "Bytes as stored.",
        lambda row, place: row.stored_part(place.role, place.part),
        "lower",
        _format,
        _parts,
        "stored_{place}_bytes",
        shown=False,
    ),
)
