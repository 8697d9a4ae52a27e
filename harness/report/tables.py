"""The trade-off table as readers and machines get it; every exporter takes its columns from here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from harness.figures.table import Table
from harness.report.column import Column
from harness.report.columns_bound import all_bound_columns
from harness.report.columns_breakdown import breakdown_columns
from harness.report.columns_memory import memory_columns
from harness.report.columns_quality import quality_columns
from harness.report.columns_run import all_speed_columns, energy_columns, price_columns
from harness.report.columns_size import cost_columns, size_columns


def shown_columns(table: Table) -> tuple[Column, ...]:
    """The columns for readers, those without a single figure left out."""
    return tuple(
        column for column in columns(table) if column.shown and any(column.value(row) is not None for row in table.rows)
    )


def column_groups(columns: Sequence[Column]) -> tuple[tuple[str, int], ...]:
    """The headings above neighbouring columns, and how many each spans."""
    return tuple((name, len(list(members))) for name, members in groupby(columns, lambda each: each.group))


def columns(table: Table) -> tuple[Column, ...]:
    """All columns of a table, in order."""
    return (
        *quality_columns(table),
        *breakdown_columns(table),
        *size_columns(table),
        *all_speed_columns(table),
        *all_bound_columns(table),
        *energy_columns(table),
        *price_columns(table),
        *memory_columns(table),
        *cost_columns(table),
    )


def column(table: Table, name: str) -> Column:
    """The column of that name. Raises KeyError."""
    return {each.name: each for each in columns(table)}[name]
