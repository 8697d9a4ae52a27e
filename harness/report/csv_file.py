"""The report as CSV: one line per variant, raw numbers at full precision, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from harness.analysis.table import Table, VariantRow
from harness.report.column import raw
from harness.report.page import table_labels
from harness.report.tables import columns

Entry = dict[str, str | float | None]


def csv_text(tables: Sequence[Table]) -> str:
    """All tables below one another; each line names its model, protocol and machine. Blank: not measured."""
    lines = [_entry(table, row) for table in tables for row in table.rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _entry(table: Table, row: VariantRow) -> Entry:
    said: Entry = {
        "model": _text(table.model),
        "native_quantization": _text(table.native_quantization or ""),
        "perplexity_protocol": _text(table.protocol),
        "hardware": _text(table.hardware),
        "variant": _text(row.label),
        "method": _text(row.method),
        "engine": _text(row.engine),
        "is_baseline": str(row.is_baseline).lower(),
        "status": row.status,
        "reason": _text(row.reason or ""),
        "labels": _text("; ".join((*table_labels(table), *row.labels))),
        "on_front": str(row.front).lower(),
        "kl_noise_floor_mean_nat": table.kl_noise_floor.value if table.kl_noise_floor else None,
        "kl_noise_floor_dtype_mean_nat": table.kl_noise_floor_dtype.value if table.kl_noise_floor_dtype else None,
    }
    for column in columns(table):
        said |= raw(column, row)
    return said


def _text(words: str) -> str:
    """A cell that no spreadsheet takes for a formula (OWASP, "CSV Injection")."""
    return f"'{words}" if words.startswith(("=", "+", "-", "@", "\t", "\r")) else words
