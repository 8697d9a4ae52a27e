"""The report as CSV: one line per variant, raw numbers at full precision, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import cast

from harness.figures.table import Table
from harness.report.escape import csv_cell
from harness.report.flat import Item, flat


def csv_text(tables: Sequence[Table]) -> str:
    """All tables in one; each line names its model, protocol and machine. Blank: not measured."""
    columns = flat(tables)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    writer.writerows(zip(*map(_cells, columns.values()), strict=True))
    return out.getvalue()


def _cells(column: Sequence[Item]) -> Sequence[str | float | None]:
    """Most cells are numbers, or words that other rows have too: each word is escaped once."""
    if set(map(type, column)).isdisjoint((str, bool)):
        return cast(Sequence[float | None], column)
    escaped = {word: csv_cell(word) for word in {item for item in column if isinstance(item, str | bool)}}
    return [escaped[item] if isinstance(item, str | bool) else item for item in column]
