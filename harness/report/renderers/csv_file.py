"""The report as CSV: one line per variant, raw numbers at full precision, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from harness.figures.table import Table
from harness.report.flat import entries, names


def csv_text(tables: Sequence[Table]) -> str:
    """All tables in one; each line names its model, protocol and machine. Blank: not measured."""
    lines = entries(tables)
    out = io.StringIO()
    writer = csv.DictWriter(out, names(lines), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def cell(value: str | float | bool | None) -> str | float | None:
    """Prevents spreadsheets from reading text of a record as a formula (OWASP, "CSV Injection")."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
