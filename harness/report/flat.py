"""The report as flat data: one entry per variant, full precision, units in the names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from harness.core.label import codes
from harness.figures.table import Table
from harness.report.column import columns, raw
from harness.report.page import table_labels

Item = str | float | bool | None


def flat(tables: Sequence[Table]) -> dict[str, list[Item]]:
    """Columns by name, for all tables one after another; model, protocol and machine of each entry are among them.

    None: not measured, or the table has no such column.
    """
    parts = [_columns(table) for table in tables]
    names = dict.fromkeys(chain.from_iterable(parts))
    return {
        name: list(
            chain.from_iterable(
                part.get(name, (None,) * len(table.rows)) for table, part in zip(tables, parts, strict=True)
            )
        )
        for name in names
    }


def entries(tables: Sequence[Table]) -> list[dict[str, Item]]:
    """The same, variant by variant."""
    columns = flat(tables)
    return [dict(zip(columns, entry, strict=True)) for entry in zip(*columns.values(), strict=True)]


def _columns(table: Table) -> dict[str, Sequence[Item]]:
    rows, shared = table.rows, table_labels(table)
    labels = [(*shared, *row.labels) for row in rows]
    of_table: Mapping[str, Item] = {
        "model": table.model,
        "native_quantization": table.native_quantization or "",
        "perplexity_protocol": table.protocol,
        "hardware": table.hardware,
    }
    of_rows: Mapping[str, Sequence[Item]] = {
        "variant": [row.label for row in rows],
        "method": [row.method for row in rows],
        "engine": [row.engine for row in rows],
        "decode_mode": [row.decode_mode for row in rows],
        "kv_cache": [row.kv_cache for row in rows],
        "is_baseline": [row.is_baseline for row in rows],
        "status": [row.status for row in rows],
        "reason": [row.reason or "" for row in rows],
        "labels": ["; ".join(label.sentence for label in each) for each in labels],
        "label_codes": [" ".join(codes(each)) for each in labels],
        "implausible_baseline": [" ".join(doubt.code for doubt in table.implausible)] * len(rows),
        "on_front": [row.front for row in rows],
    }
    floors: Mapping[str, Item] = {
        "kl_noise_floor_mean_nat": table.kl_noise_floor.value if table.kl_noise_floor else None,
        "kl_noise_floor_dtype_mean_nat": table.kl_noise_floor_dtype.value if table.kl_noise_floor_dtype else None,
    }
    found = _repeated(of_table, len(rows)) | dict(of_rows) | _repeated(floors, len(rows))
    for column in columns(table):
        found |= raw(table, column)
    return found


def _repeated(items: Mapping[str, Item], count: int) -> dict[str, Sequence[Item]]:
    return {name: [item] * count for name, item in items.items()}
