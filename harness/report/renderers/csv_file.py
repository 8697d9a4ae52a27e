"""The report as CSV: one line per variant, raw numbers at full precision, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from harness.figures.table import Table
from harness.report.escape import csv_cell
from harness.report.flat import entries, names


def csv_text(tables: Sequence[Table]) -> str:
    """All tables in one; each line names its model, protocol and machine. Blank: not measured."""
    lines = entries(tables)
    headings = names(lines)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, headings))
    writer.writerows([csv_cell(line.get(name)) for name in headings] for line in lines)
    return out.getvalue()
