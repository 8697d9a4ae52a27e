"""The evidence of a record: every measurement with more than one value, in one Parquet file beside the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.core.record import Measurement
from harness.errors import ResultsError
from harness.storage.json_codec import refuse_not_finite

COLUMNS = ("measurement", "value", "weight", "item_id", "cluster_id")


def write_evidence(measurements: Sequence[Measurement]) -> bytes | None:
    """The Parquet file of a record, None if no measurement has more than one value.

    One row per value: which measurement it belongs to, the value, its weight, item and cluster.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    many = [(index, m) for index, m in enumerate(measurements) if len(m.values) > 1]
    if not many:
        return None
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for index, m in many:
        blanks = [None] * len(m.values)
        columns["measurement"] += [index] * len(m.values)
        columns["value"] += m.values
        columns["weight"] += m.weights or blanks
        columns["item_id"] += m.item_ids or blanks
        columns["cluster_id"] += m.cluster_ids or blanks
    schema = pa.schema(
        [("measurement", pa.int32()), ("value", pa.float64()), ("weight", pa.float64())]
        + [(name, pa.dictionary(pa.int32(), pa.string())) for name in ("item_id", "cluster_id")]
    )
    file = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), file)
    content: bytes = file.getvalue().to_pybytes()
    return content


def read_evidence(content: bytes, name: str, measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The measurements, each without values filled from the Parquet file with this content; ``name`` is for messages.

    Raises ResultsError if it cannot be read, lacks values, or holds NaN or infinity.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content), columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"{name}: cannot read the record's evidence: {error}") from None
    owners = table["measurement"].to_numpy()
    columns = {name: (_shared(table[name]), table[name].is_valid().to_numpy()) for name in COLUMNS[1:]}
    filled = []
    for index, m in enumerate(measurements):
        if not m.values:
            rows = (owners == index).nonzero()[0]
            if not len(rows):
                raise ResultsError(f"{name}: has no values of {m.metric}")
            values, weights, items, clusters = (
                _present(values[rows], there[rows], f"{name}: {m.metric}: {column}")
                for column, (values, there) in columns.items()
            )
            if not values:
                raise ResultsError(f"{name}: has no values of {m.metric}")
            m = replace(m, values=values, weights=weights, item_ids=items, cluster_ids=clusters)
        filled.append(m)
    return tuple(filled)


def _shared(column: Any) -> Any:
    """A column as a numpy array in which equal strings share one object, since tokens may be named several times."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column.to_numpy()
    whole = column.unify_dictionaries().combine_chunks()
    names = np.array([*whole.dictionary.to_pylist(), None], dtype=object)
    return names[whole.indices.fill_null(-1).to_numpy()]


def _present(values: Any, there: Any, name: str) -> tuple[Any, ...]:
    """The values of one measurement, all or none. Raises ResultsError if some are missing, and for NaN and infinity."""
    import numpy as np

    if not there.any():
        return ()
    if not there.all():
        raise ResultsError(f"{name}: {(~there).sum()} of {len(there)} are missing")
    found = tuple(values.tolist())
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        refuse_not_finite(found, name)
    return found
