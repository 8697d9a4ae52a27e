"""What catches the eye first: the variants that lead a table in one plain respect each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.analysis.table import Table, VariantRow
from harness.report.column import cell
from harness.report.tables import column

TOLERANCE = 0.05
"""A variant is close up to this rise of perplexity, a fraction; the upper end of its interval counts."""


@dataclass(frozen=True)
class Highlight:
    title: str
    variant: str
    detail: str


def highlights(table: Table) -> tuple[Highlight, ...]:
    """Closest to the baseline; smallest and fastest of those close to it. What has no winner is left out."""
    variants = [row for row in table.rows if not row.is_baseline and row.status == "ok"]
    close = [row for row in variants if _is_close(row)]
    found = [
        _highlight(table, "Closest to the baseline", variants, _divergence),
        _highlight(table, f"Smallest within {TOLERANCE:.0%} of its perplexity", close, _size),
        _highlight(table, f"Fastest decoding within {TOLERANCE:.0%}", close, _slowness),
    ]
    return tuple(each for each in found if each)


def _highlight(
    table: Table, title: str, rows: Sequence[VariantRow], cost: Callable[[VariantRow], float | None]
) -> Highlight | None:
    costs = [(value, row) for row in rows if (value := cost(row)) is not None]
    if not costs:
        return None
    _, best = min(costs, key=lambda each: each[0])
    return Highlight(title, best.label, _detail(table, best))


def _is_close(row: VariantRow) -> bool:
    change = row.perplexity_change
    return change is not None and (change.value if change.high is None else change.high) <= TOLERANCE


def _divergence(row: VariantRow) -> float | None:
    return row.kl_mean.value if row.kl_mean else None


def _size(row: VariantRow) -> float | None:
    return row.stored_bytes


def _slowness(row: VariantRow) -> float | None:
    speed = row.headline_speed
    return -speed.decode_tok_per_s.value if speed and speed.decode_tok_per_s else None


def _detail(table: Table, row: VariantRow) -> str:
    """The three sides of the trade-off, those that were measured."""
    change, ratio = column(table, "perplexity_change_fraction"), column(table, "size_ratio_to_16_bit")
    parts = [f"perplexity {cell(change, row).text}%"] if row.perplexity_change else []
    parts += [f"{cell(ratio, row).text}% of the 16-bit size"] if row.size_ratio else []
    speed = row.headline_speed
    if speed and speed.decode_ratio:
        parts.append(f"decodes at {speed.decode_ratio.value:.2f}× the baseline")
    return " · ".join(parts)
