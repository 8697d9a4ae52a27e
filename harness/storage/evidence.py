"""The evidence of a record: every measurement with more than one value, in one Parquet file beside the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.core.column import ArrayColumn, LazyColumn
from harness.core.foreign import shortened, shown
from harness.core.record import Measurement
from harness.errors import ResultsError
from harness.storage.json_codec import refuse_not_finite
from harness.storage.pack import read_attempt_file
from harness.storage.parquet_bounds import BYTE_ARRAY, DOUBLE, INT32, OutOfBoundsError, check_bounds
from harness.storage.seal import EVIDENCE, MAX_BYTES, FileSeal, file_seal

COLUMNS = ("measurement", "value", "weight", "item_id", "cluster_id")
_TYPES = (INT32, DOUBLE, DOUBLE, BYTE_ARRAY, BYTE_ARRAY)
MAX_ROWS = 8_000_000
"""Values of all measurements of a record: of divergence six per scored token, so that a million tokens fit."""
FEW_VALUES = 256
"""A measurement with more is read again when it is used."""
MAX_RECENT_VALUES = 2_000_000
"""Values of evidence that are kept in memory after they were used; each takes some 30 bytes with weight and ids."""
MAX_FOOTER_ITEMS = 1_000
MAX_TEXT_BYTES = 2**20
"""Of one text in the footer."""
MAX_MESSAGE = 300
"""Characters of what pyarrow reports."""


def find_excess(values: int) -> str | None:
    """Why a record cannot have so many values; None if it can."""
    if values <= MAX_ROWS:
        return None
    return f"{values:,} values are more than {MAX_ROWS:,}, the most that a record may have"


def write_evidence(measurements: Sequence[Measurement], above: int = 1) -> bytes | None:
    """The Parquet file of measurements with more than so many values; None if there is none.

    One row per value: which measurement it belongs to, the value, its weight, item and cluster. Raises ValueError for
    more than ``MAX_ROWS``, and for what ``read_evidence`` would refuse.
    """
    import pyarrow as pa

    many = {index: m for index, m in enumerate(measurements) if len(m.values) > above}
    if not many:
        return None
    excess = find_excess(sum(len(m.values) for m in many.values()))
    if excess is not None:
        most = max(many.values(), key=lambda m: len(m.values))
        raise ValueError(f"{excess}; {len(most.values):,} of them are of {shortened(most.metric)}")
    table = pa.table(_columns(many), schema=_schema())
    try:
        return _written(table)
    except OutOfBoundsError:  # many equal values without ids, which compress as well as a bomb
        try:
            return _written(table, compression="none", use_dictionary=False)
        except OutOfBoundsError as error:
            raise ValueError(f"its evidence would be too large to be read again: {error}") from None


def without_evidence(measurements: Sequence[Measurement], above: int = 1) -> tuple[Measurement, ...]:
    """The measurements without what ``write_evidence`` writes of them."""
    return tuple(
        replace(m, values=(), weights=(), item_ids=(), cluster_ids=()) if len(m.values) > above else m
        for m in measurements
    )


def _columns(measurements: Mapping[int, Measurement]) -> dict[str, Any]:
    """The rows of measurements, by their places, as Arrow arrays; no value becomes a Python object."""
    import numpy as np

    every = list(measurements.values())
    sizes = [len(m.values) for m in every]
    return {
        "measurement": _array(np.repeat(np.array(list(measurements), np.int32), sizes)),
        "value": _array(_joined([m.values for m in every], sizes)),
        "weight": _array(_joined([m.weights for m in every], sizes), _present_in([m.weights for m in every], sizes)),
        "item_id": _texts([m.item_ids for m in every], sizes),
        "cluster_id": _texts([m.cluster_ids for m in every], sizes),
    }


def _joined(columns: Sequence[Sequence[float]], sizes: Sequence[int]) -> Any:
    """Columns of numbers one after another; zeros where one is empty."""
    import numpy as np

    pairs = zip(columns, sizes, strict=True)
    return np.concatenate([np.asarray(column, np.float64) if column else np.zeros(size) for column, size in pairs])


def _present_in(columns: Sequence[Sequence[Any]], sizes: Sequence[int]) -> Any:
    """Whether each row has a value, because the column of its measurement is not empty."""
    import numpy as np

    return np.repeat(np.array([bool(column) for column in columns]), sizes)


def _texts(columns: Sequence[Sequence[str]], sizes: Sequence[int]) -> Any:
    """Columns of texts one after another, in which each text is once; columns that measurements share are read once."""
    import numpy as np
    import pyarrow as pa

    places: dict[str, int] = {}
    read: dict[int, Any] = {}
    for column, size in zip(columns, sizes, strict=True):
        if column and id(column) not in read:
            read[id(column)] = np.fromiter((places.setdefault(text, len(places)) for text in column), np.int32, size)
    indices = [
        read[id(column)] if column else np.zeros(size, np.int32) for column, size in zip(columns, sizes, strict=True)
    ]
    named = _array(np.concatenate(indices), _present_in(columns, sizes))
    return pa.DictionaryArray.from_arrays(named, pa.array(list(places), pa.string()))


def _array(values: Any, present: Any = None) -> Any:
    """A numpy array as an Arrow array that shares its memory, with values where ``present`` says so; None: everywhere.

    ``pyarrow.array`` is not used here, because it imports pandas for an array of numpy.
    """
    import numpy as np
    import pyarrow as pa

    whole = present is None or present.all()
    bitmap = None if whole else pa.py_buffer(np.packbits(present, bitorder="little"))
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)])


def _written(table: Any, **settings: Any) -> bytes:
    """The table as a Parquet file. Raises OutOfBoundsError if that could not be read again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pa.BufferOutputStream()
    pq.write_table(table, file, row_group_size=MAX_ROWS, **settings)  # each further group would repeat all texts
    content: bytes = file.getvalue().to_pybytes()
    check_bounds(content, _TYPES, MAX_ROWS)
    return content


@dataclass(frozen=True)
class Values:
    """The columns of one measurement, as arrays of one axis, of float64 or of texts; empty if there are none."""

    values: Any
    weights: Any
    item_ids: Any
    cluster_ids: Any


def read_evidence(
    content: bytes, name: str, measurements: Sequence[Measurement], file: EvidenceFile | None = None
) -> tuple[Measurement, ...]:
    """The measurements, each without values filled from the Parquet file with this content; ``name`` is for messages.

    Long columns stay arrays. With ``file``, where the content is from, they are read from there when they are used, and
    not kept. Raises ResultsError if it cannot be read, has too much, lacks values or has others, or holds NaN or
    infinity.
    """
    found = _values(_table(content, name), name, {index: m for index, m in enumerate(measurements) if not m.values})
    if file is not None and any(len(each.values) > FEW_VALUES for each in found.values()):
        _RECENT.add(file, found)
    known: dict[int, ArrayColumn[Any]] = {}

    def columns(index: int, held: Mapping[str, Any]) -> Mapping[str, LazyColumn[Any]]:
        if file is not None:
            return file.columns(index, {each: len(column) for each, column in held.items()})
        return {each: known.setdefault(id(column), ArrayColumn(column)) for each, column in held.items()}

    return tuple(
        _filled(m, found[index], partial(columns, index), name) if index in found else m
        for index, m in enumerate(measurements)
    )


@dataclass(frozen=True)
class EvidenceFile:
    """The evidence of a record that was read before, without a fault: where it is, and what it must still be."""

    path: Path
    sealed: FileSeal

    def columns(self, index: int, present: Mapping[str, int]) -> dict[str, LazyColumn[Any]]:
        """The columns of a measurement, by the names of its fields, with so many values; they are read when used."""
        return {
            name: LazyColumn(count, partial(self._column, index, name), f"{self.sealed.sha256} {index} {name}")
            for name, count in present.items()
        }

    def _column(self, index: int, name: str) -> Any:
        return getattr(self._values()[index], name)

    def _values(self) -> Mapping[int, Values]:
        """Raises ResultsError if the file is not what it was."""
        found = _RECENT.get(self)
        if found is None:
            content = read_attempt_file(self.path, MAX_BYTES[EVIDENCE], ResultsError)
            if file_seal(content) != self.sealed:
                raise ResultsError(f"{shown(self.path)}: was changed while it was used")
            found = _values(_table(content, EVIDENCE), EVIDENCE, None)
            _RECENT.add(self, found)
        return found


class _Recent:
    """The evidence that was used last: a measurement's columns, and those of its neighbours, are used together."""

    def __init__(self) -> None:
        self._held: dict[EvidenceFile, Mapping[int, Values]] = {}
        self._values = 0

    def get(self, file: EvidenceFile) -> Mapping[int, Values] | None:
        found = self._held.pop(file, None)
        if found is not None:
            self._held[file] = found
        return found

    def add(self, file: EvidenceFile, found: Mapping[int, Values]) -> None:
        """Forgets what was not used for longest, but never what was added last, however large."""
        self._values += _count(found) - _count(self._held.pop(file, {}))
        self._held[file] = found
        while self._values > MAX_RECENT_VALUES and len(self._held) > 1:
            self._values -= _count(self._held.pop(next(iter(self._held))))


def _count(found: Mapping[int, Values]) -> int:
    return sum(len(each.values) for each in found.values())


_RECENT = _Recent()


def _table(content: bytes, name: str) -> Any:
    """All rows of the file. What reading takes is bounded before it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_bounds(content, _TYPES, MAX_ROWS)
        file = pq.ParquetFile(
            pa.BufferReader(content),
            thrift_string_size_limit=MAX_TEXT_BYTES,
            thrift_container_size_limit=MAX_FOOTER_ITEMS,
        )
        if not file.schema_arrow.equals(_schema()):
            raise ResultsError(f"{name}: its columns are not those of a record's evidence")
        table = file.read(columns=list(COLUMNS), use_threads=False)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException, OutOfBoundsError) as error:  # ValueError: a name is not UTF-8
        raise ResultsError(
            f"{name}: cannot read the record's evidence: {shortened(' '.join(str(error).split()), MAX_MESSAGE)}"
        ) from None
    if table["measurement"].null_count:
        raise ResultsError(f"{name}: {table['measurement'].null_count} values belong to no measurement")
    return table


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [("measurement", pa.int32()), ("value", pa.float64()), ("weight", pa.float64())]
        + [(name, pa.dictionary(pa.int32(), pa.string())) for name in ("item_id", "cluster_id")]
    )


def _groups(owners: Any, order: Any) -> tuple[list[int], list[Any]]:
    """Each measurement that has rows, and its rows, in order; both sorted by measurement."""
    import numpy as np

    found, starts = np.unique(owners, return_index=True)
    return found.tolist(), np.split(order, starts[1:]) if len(found) else []


def _values(table: Any, name: str, lacking: Mapping[int, Measurement] | None) -> dict[int, Values]:
    """The values of each measurement that has some; ids that are those of the measurement before are the same object.

    Raises ResultsError if they are not those that measurements lack, or for NaN, infinity and what is missing; with
    None for ``lacking``, what was checked before is not checked again.
    """
    owners = _numbers(table["measurement"].combine_chunks())
    columns = [(_shared(table[column]), _valid(table[column].combine_chunks())) for column in COLUMNS[1:]]
    order = owners.argsort(kind="stable")
    rows = dict(zip(*_groups(owners[order], order), strict=True))
    if lacking is None:
        return _sharing({index: _checked_before(columns, own) for index, own in rows.items()})
    if strange := sorted(rows.keys() - lacking.keys())[:1]:
        raise ResultsError(f"{name}: has values of measurement {strange[0]}, which the record does not lack")
    found = {}
    for index, m in lacking.items():
        own = rows.get(index)
        if own is None:
            raise ResultsError(f"{name}: has no values of {shortened(m.metric)}")
        found[index] = Values(
            *(
                _present(values[own], there[own], f"{name}: {shortened(m.metric)}: {column}")
                for column, (values, there) in zip(COLUMNS[1:], columns, strict=True)
            )
        )
    return _sharing(found)


def _sharing(found: Mapping[int, Values]) -> dict[int, Values]:
    """The same, with one array where a measurement has the ids of the one before."""
    shared: dict[int, Values] = {}
    last: Values | None = None
    for index, own in found.items():
        last = last or own
        items, clusters = _same(last.item_ids, own.item_ids), _same(last.cluster_ids, own.cluster_ids)
        shared[index] = last = replace(own, item_ids=items, cluster_ids=clusters)
    return shared


def _same(known: Any, column: Any) -> Any:
    """The known column instead of one that is equal to it."""
    return known if len(known) == len(column) and (known == column).all() else column


def _filled(
    m: Measurement, found: Values, columns: Callable[[Mapping[str, Any]], Mapping[str, Any]], name: str
) -> Measurement:
    """The measurement with its values, in ``columns`` if they are many.

    Raises ResultsError if there are none, or for a weight that cannot be.
    """
    if not len(found.values):
        raise ResultsError(f"{name}: has no values of {shortened(m.metric)}")
    if len(found.weights) and found.weights.min() < 0:
        raise ResultsError(f"{name}: {shortened(m.metric)} has a negative weight")
    held: dict[str, Any] = {each.name: column for each in fields(found) if len(column := getattr(found, each.name))}
    if len(found.values) > FEW_VALUES:
        return replace(m, **columns(held))
    few: dict[str, Any] = {each: tuple(column.tolist()) for each, column in held.items()}
    return replace(m, **few)


def _shared(column: Any) -> Any:
    """A column as a numpy array in which equal strings share one object, since tokens may be named several times."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return _numbers(column.combine_chunks())
    whole = column.unify_dictionaries().combine_chunks()
    names = np.array([*whole.dictionary.to_pylist(), None], dtype=object)
    return names[np.where(_valid(whole.indices), _numbers(whole.indices), -1)]


def _numbers(array: Any) -> Any:
    """A numeric Arrow array as a numpy array that shares its memory; where a value is missing, it holds anything.

    Neither ``to_numpy`` nor ``fill_null`` is used here, because both import pandas, which takes longer than reading a
    hundred records.
    """
    import numpy as np

    dtype = array.type.to_pandas_dtype()
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * np.dtype(dtype).itemsize)


def _valid(array: Any) -> Any:
    """Where an Arrow array has a value. It has no bitmap if it has them all."""
    import numpy as np

    bitmap = array.buffers()[0]
    if not array.null_count or bitmap is None:
        return np.full(len(array), not array.null_count)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(bool)


def _checked_before(columns: Sequence[tuple[Any, Any]], own: Any) -> Values:
    """The rows of a measurement of which each column has all values, or none."""
    return Values(*(values[own] if there[own].any() else values[:0] for values, there in columns))


def _present(values: Any, there: Any, name: str) -> Any:
    """The values of one measurement, all or none. Raises ResultsError if some are missing, and for NaN and infinity."""
    import numpy as np

    if not there.any():
        return values[:0]
    if not there.all():
        raise ResultsError(f"{name}: {(~there).sum()} of {len(there)} are missing")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        refuse_not_finite(tuple(values.tolist()), name)
    return values
