"""The columns on what a variant is worth and weighs: quality, size, and the cost of quantizing."""

from __future__ import annotations

from collections.abc import Callable

from harness.analysis.table import Table, VariantRow
from harness.report.column import Column, Value
from harness.report.formats import BINARY, DECIMAL, duration, signed, significant, size_unit


def quality_columns() -> tuple[Column, ...]:
    kl = "KL(baseline ‖ variant) per token: 0 is no damage"
    return (
        Column(
            "perplexity",
            "Quality",
            "Perplexity",
            "",
            "exp of the mean negative log-likelihood per token, with its 95% interval over windows.",
            lambda row: row.perplexity,
            lambda value: significant(value, 4),
            interval=True,
        ),
        Column(
            "perplexity_change_fraction",
            "Quality",
            "Δ perplexity",
            "%",
            "Change against the baseline, paired window by window, with its 95% interval.",
            lambda row: row.perplexity_change,
            signed,
            factor=100,
            interval=True,
        ),
        Column(
            "kl_mean_nat",
            "Quality",
            "KL mean",
            "nat",
            f"{kl}. Mean with its 95% interval, clustered by window.",
            lambda row: row.kl_mean,
            interval=True,
        ),
        Column(
            "kl_median_nat",
            "Quality",
            "KL median",
            "nat",
            f"{kl}. Median.",
            lambda row: row.kl_median,
            shown=False,
        ),
        Column(
            "kl_p90_nat",
            "Quality",
            "KL p90",
            "nat",
            f"{kl}. One token in ten is hit harder.",
            lambda row: row.kl_p90,
            shown=False,
        ),
        Column(
            "kl_p99_nat",
            "Quality",
            "KL p99",
            "nat",
            f"{kl}. One token in a hundred is hit harder.",
            lambda row: row.kl_p99,
        ),
        Column(
            "kl_p99_9_nat",
            "Quality",
            "KL p99.9",
            "nat",
            f"{kl}. One token in a thousand is hit harder.",
            lambda row: row.kl_p99_9,
            shown=False,
        ),
        Column(
            "kl_max_nat",
            "Quality",
            "KL max",
            "nat",
            f"{kl}. The worst token.",
            lambda row: row.kl_max,
            shown=False,
        ),
        Column(
            "top1_agreement_fraction",
            "Quality",
            "Top-1 agreement",
            "%",
            "Share of tokens for which both find the same next token most likely, with its 95% interval.",
            lambda row: row.top1_agreement,
            factor=100,
            interval=True,
        ),
        Column(
            "coverage_fraction",
            "Quality",
            "Coverage",
            "%",
            "Share of the parameters in scope that are really stored quantized.",
            lambda row: row.coverage,
            factor=100,
            shown=False,
        ),
    )


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
