"""The report as flat data: one entry per variant, full precision, units in the names."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.label import Label, codes
from harness.figures.table import Table, VariantRow
from harness.report.column import Column, columns, raw
from harness.report.page import table_labels

Entry = dict[str, str | float | bool | None]


def entries(tables: Sequence[Table]) -> list[Entry]:
    """All tables one after another; each entry names its model, protocol and machine. None: not measured."""
    made: list[Entry] = []
    for table in tables:
        shared, measured = table_labels(table), columns(table)
        made += [_entry(table, shared, measured, row) for row in table.rows]
    return made


def names(lines: Sequence[Entry]) -> list[str]:
    """Every column that occurs, in order."""
    return list(dict.fromkeys(name for line in lines for name in line))


def _entry(table: Table, shared: Sequence[Label], measured: Sequence[Column], row: VariantRow) -> Entry:
    labels = (*shared, *row.labels)
    entry: Entry = {
        "model": table.model,
        "native_quantization": table.native_quantization or "",
        "perplexity_protocol": table.protocol,
        "hardware": table.hardware,
        "variant": row.label,
        "method": row.method,
        "engine": row.engine,
        "decode_mode": row.decode_mode,
        "kv_cache": row.kv_cache,
        "is_baseline": row.is_baseline,
        "status": row.status,
        "reason": row.reason or "",
        "labels": "; ".join(label.sentence for label in labels),
        "label_codes": " ".join(codes(labels)),
        "implausible_baseline": " ".join(doubt.code for doubt in table.implausible),
        "on_front": row.front,
        "kl_noise_floor_mean_nat": table.kl_noise_floor.value if table.kl_noise_floor else None,
        "kl_noise_floor_dtype_mean_nat": table.kl_noise_floor_dtype.value if table.kl_noise_floor_dtype else None,
    }
    for column in measured:
        entry |= raw(column, row)
    return entry
