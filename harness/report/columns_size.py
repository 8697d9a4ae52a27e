"""The columns on what a variant weighs, and what quantizing it costs."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures.formats import BINARY, DECIMAL, duration, size_unit
from harness.figures.table import Table, VariantRow
from harness.report.column import Column, Value


def size_columns(table: Table) -> tuple[Column, ...]:
    unit = size_unit((row.stored_bytes or 0 for row in table.rows), DECIMAL)
    parts = dict.fromkeys((part.role, part.part) for row in table.rows for part in row.stored)
    return (
        Column(
            "stored_bytes",
            "Size",
            "Weights",
            unit.name,
            f"Bytes of all weights as stored, scales included. 1 {unit.name} is {unit.bytes:,} bytes.",
            lambda row: row.stored_bytes,
            factor=1 / unit.bytes,
        ),
        Column(
            "size_ratio_to_16_bit",
            "Size",
            "of 16‑bit",
            "%",
            "Stored weights over two bytes per parameter: the 16-bit equivalent of the checkpoint.",
            lambda row: row.size_ratio,
            factor=100,
        ),
        Column(
            "linear_ratio_to_16_bit",
            "Size",
            "linears of 16‑bit",
            "%",
            "The same for the linear layers alone.",
            lambda row: row.linear_ratio,
            factor=100,
            shown=False,
        ),
        Column(
            "linear_bits_per_weight",
            "Size",
            "Bits per weight",
            "",
            "Bits of a linear layer's weight as it lies in memory after loading, its scales included.",
            lambda row: row.bits_per_weight,
        ),
        Column(
            "checkpoint_bits_per_weight",
            "Size",
            "on disk",
            "",
            "Bits of a decoder weight in the checkpoint, scales included. More in memory: it is dequantized on load.",
            lambda row: row.checkpoint_bits_per_weight,
            shown=any(row.checkpoint_bits_per_weight is not None for row in table.rows),
        ),
        Column(
            "checkpoint_file_bytes",
            "Size",
            "files",
            unit.name,
            "Bytes of the weight files that it is loaded from, whole.",
            lambda row: row.checkpoint_file_bytes,
            factor=1 / unit.bytes,
            shown=False,
        ),
        *(
            Column(
                f"stored_{role}_{part}_bytes",
                "Size",
                f"{role} {part}",
                unit.name,
                "Bytes as stored.",
                _part(role, part),
                factor=1 / unit.bytes,
                shown=False,
            )
            for role, part in parts
        ),
    )


def cost_columns(table: Table) -> tuple[Column, ...]:
    unit = size_unit((row.quantize_peak_bytes or 0 for row in table.rows), BINARY)
    return (
        Column(
            "quantize_s",
            "Cost of quantizing",
            "time",
            "",
            "Wall time of quantizing once, or of quantizing at each load.",
            lambda row: row.quantize_s,
            duration,
        ),
        Column(
            "quantize_peak_bytes",
            "Cost of quantizing",
            "peak memory",
            unit.name,
            f"Peak while quantizing. 1 {unit.name} is {unit.bytes:,} bytes.",
            lambda row: row.quantize_peak_bytes,
            factor=1 / unit.bytes,
        ),
    )


def _part(role: str, part: str) -> Callable[[VariantRow], Value]:
    return lambda row: row.stored_part(role, part)
