"""Where variants diverge: tables of the mean KL by position in the window and by the baseline's confidence."""

from __future__ import annotations

from harness.figures.divergence import KL_BY_CONFIDENCE, KL_BY_POSITION
from harness.figures.table import Table
from harness.report.column import Column, columns_of


def breakdowns(table: Table) -> tuple[tuple[str, tuple[Column, ...]], ...]:
    """Groups of columns, each with its title; empty if no variant was compared token by token."""
    groups = (
        ("preceding tokens in the window", columns_of(table, KL_BY_POSITION)),
        ("the baseline's confidence, %", columns_of(table, KL_BY_CONFIDENCE)),
    )
    return tuple((title, columns) for title, columns in groups if columns)
