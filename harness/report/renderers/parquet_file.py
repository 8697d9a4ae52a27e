"""The report as Parquet: the columns of the CSV file with their types, text as it was recorded."""

from __future__ import annotations

import io
from collections.abc import Sequence

from harness.figures.table import Table
from harness.report.escape import encodable, unique
from harness.report.flat import Item, flat


def parquet_bytes(tables: Sequence[Table]) -> bytes:
    """One row per variant. A column without any measurement has the type null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = flat(tables)
    found = pa.table(list(map(_column, columns.values())), unique(map(encodable, columns)))
    out = io.BytesIO()
    pq.write_table(found, out)
    return out.getvalue()


def _column(values: Sequence[Item]) -> list[Item]:
    """Converts whole numbers to float if a column also has fractions, since a column has one type."""
    if any(isinstance(value, float) for value in values):
        return [float(value) if isinstance(value, int) else value for value in values]
    return [encodable(value) if isinstance(value, str) else value for value in values]
