"""Where a variant diverges: its mean KL by position in the window and by how sure the baseline was."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures.derived.breakdown import Bin
from harness.figures.formats import significant
from harness.figures.table import Table, VariantRow
from harness.report.column import Column, Value

Bins = Callable[[VariantRow], tuple[Bin, ...]]


def breakdowns(table: Table) -> tuple[tuple[str, tuple[Column, ...]], ...]:
    """Groups of columns, each with its title; none where no variant was compared token by token."""
    found = (
        ("tokens before it in the window", _columns(table, "position", 1, lambda row: row.kl_by_position)),
        ("the baseline's confidence, %", _columns(table, "confidence", 100, lambda row: row.kl_by_confidence)),
    )
    return tuple((title, columns) for title, columns in found if columns)


def breakdown_columns(table: Table) -> tuple[Column, ...]:
    return tuple(column for _, columns in breakdowns(table) for column in columns)


def _columns(table: Table, by: str, factor: int, bins: Bins) -> tuple[Column, ...]:
    """One column per bin that any variant has; the baseline does not diverge from itself."""
    edges = dict.fromkeys((each.low, each.high) for row in table.rows if not row.is_baseline for each in bins(row))
    return tuple(
        Column(
            f"kl_mean_nat_{by}_{_edge(low, factor)}_{_edge(high, factor)}",
            "Divergence",
            f"{_edge(low, factor)} to {_edge(high, factor)}",
            "nat",
            "KL(baseline ‖ variant), mean over the tokens of this group, with its 95% interval.",
            _mean(bins, low),
            shown=False,
            interval=True,
        )
        for low, high in edges
    )


def _mean(bins: Bins, low: float) -> Callable[[VariantRow], Value]:
    return lambda row: next((each.mean for each in bins(row) if each.low == low), None)


def _edge(value: float, factor: int) -> str:
    return significant(value * factor, 4).rstrip("0").rstrip(".") if value % 1 else str(int(value * factor))
