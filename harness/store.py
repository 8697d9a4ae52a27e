"""The results folder: ``<recipe>/<run id>/<attempt>/`` with record.json, evidence.parquet and log.txt.

Attempts are only ever added. A record appears whole, by one rename, or not at all. What has more
than one value lies in the Parquet file; the JSON says what it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import NewerRecordError, ResultsError
from harness.json_codec import decode, encode
from harness.record import Measurement, RunRecord, upgrade

if TYPE_CHECKING:
    import pandas as pd

RECORD, EVIDENCE, LOG = "record.json", "evidence.parquet", "log.txt"


class Store:
    """One results folder. Nothing in it is ever written over."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def next_attempt(self, recipe: str, run_id: str) -> int:
        folder = self.root / recipe / run_id
        return 1 + max((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), default=0)

    def save(self, record: RunRecord, log: Path | None = None) -> Path:
        """Writes a record, its evidence and its log; returns the record's path."""
        final = self.root / record.spec.recipe / record.spec.run_id / str(record.attempt)
        part = final.with_name(f".{record.attempt}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        slim = [_without_arrays(m) if len(m.values) > 1 else m for m in record.outcome.measurements]
        _write_evidence(part / EVIDENCE, record.outcome.measurements)
        text = encode(replace(record, outcome=replace(record.outcome, measurements=tuple(slim))), indent=1)
        (part / RECORD).write_text(text + "\n", encoding="utf-8")
        if log is not None and log.exists():
            shutil.copyfile(log, part / LOG)
        part.rename(final)
        return final / RECORD

    def records(self, recipe: str | None = None) -> tuple[RunRecord, ...]:
        """Every attempt, oldest first. Raises ResultsError for a record that cannot be read."""
        root = self.root / recipe if recipe else self.root
        return _in_order(map(_read, _record_files(root)))

    @contextmanager
    def locked(self, recipe: str) -> Iterator[None]:
        """Held while a sweep writes. Raises ResultsError where another one does."""
        from filelock import FileLock, Timeout

        folder = self.root / recipe
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"{folder}: cannot be made a results folder: {error.strerror}") from None
        try:
            with FileLock(folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise ResultsError(
                f"{folder}: another 'qharness run' is writing here; wait for it, or use --results"
            ) from None


def read_records(path: Path) -> tuple[RunRecord, ...]:
    """All records below a results folder. Raises ResultsError where it is none."""
    if not path.exists():
        raise ResultsError(f"{path}: no such folder")
    if not path.is_dir():
        raise ResultsError(f"{path}: a file; name the results folder that 'qharness run' wrote")
    records = Store(path).records()
    if not records:
        raise ResultsError(f"{path}: holds no records; name a results folder that 'qharness run' wrote")
    return records


def read_whole(path: Path) -> tuple[tuple[RunRecord, ...], tuple[str, ...]]:
    """The records below a results folder that can be read, and why each other one cannot.

    For readers who can do with less: half a record is one that a copy or a full disk cut short.
    Raises ResultsError where the folder holds none that can be read, and for a record of a newer harness.
    """
    if not path.is_dir():
        raise ResultsError(f"{path}: no such results folder")
    found, faults = [], []
    for file in _record_files(path):
        try:
            found.append(_read(file))
        except NewerRecordError:
            raise
        except ResultsError as error:
            faults.append(str(error))
    if not found:
        raise ResultsError(faults[0] if faults else f"{path}: holds no records of 'qharness run'")
    return _in_order(found), tuple(faults)


def load_results(path: str | Path) -> pd.DataFrame:
    """One row per measurement of every attempt.

    ``value`` is the mean of the raw values (by weight where they have weights), ``values`` holds them all, and
    a run that measured nothing has one row with its status and no metric.
    Raises ResultsError where the folder holds no records.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in read_records(Path(path)):
        spec = record.spec
        run = {
            "recipe": spec.recipe,
            "run_id": spec.run_id,
            "case_id": spec.case_id,
            "variant": spec.variant.key,
            "kind": spec.kind,
            "model": spec.model.label,
            "method": spec.method.label,
            "engine": spec.engine,
            "decode_mode": spec.decode_mode,
            "kv_cache": spec.kv_cache,
            "repetition": spec.repetition,
            "attempt": record.attempt,
            "session": record.session,
            "started_at": record.started_at,
            "status": record.status,
            "failure": record.outcome.failure.message if record.outcome.failure else None,
        }
        measured = [
            {
                "metric": m.metric,
                "unit": m.unit,
                "direction": m.direction,
                "evidence": m.evidence,
                "value": _mean(m),
                "n": len(m.values),
                "values": m.values,
                "item_ids": m.item_ids,
                "protocol": dict(m.protocol),
            }
            for m in record.outcome.measurements
        ]
        rows += [{**run, **row} for row in measured or [{"metric": None}]]
    return pd.DataFrame(rows)


def _record_files(root: Path) -> Iterator[Path]:
    """Whole ones: what lies in a hidden folder was cut short, or belongs to something else."""
    for path in sorted(root.rglob(RECORD)):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path


def _in_order(records: Iterable[RunRecord]) -> tuple[RunRecord, ...]:
    return tuple(sorted(records, key=lambda record: (record.started_at, record.attempt)))


def _mean(measurement: Measurement) -> float:
    weights = measurement.weights or (1.0,) * len(measurement.values)
    return sum(v * w for v, w in zip(measurement.values, weights, strict=True)) / sum(weights)


def _without_arrays(measurement: Measurement) -> Measurement:
    return replace(measurement, values=(), weights=(), item_ids=(), cluster_ids=())


def _write_evidence(path: Path, measurements: Sequence[Measurement]) -> None:
    """One row per value: which measurement it belongs to, the value, its weight, item and cluster."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    many = [(index, m) for index, m in enumerate(measurements) if len(m.values) > 1]
    if not many:
        return
    columns: dict[str, list[Any]] = {"measurement": [], "value": [], "weight": [], "item_id": [], "cluster_id": []}
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
    pq.write_table(pa.table(columns, schema=schema), path)


def _read(path: Path) -> RunRecord:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: not a whole record ({error}); move its folder away to read the others") from None
    if not isinstance(raw, dict):
        raise ResultsError(f"{path}: not a record")
    record = decode(RunRecord, upgrade(raw, str(path)), str(path))
    measurements = record.outcome.measurements
    if all(m.values for m in measurements):
        return record
    filled = _with_arrays(path.with_name(EVIDENCE), measurements)
    return replace(record, outcome=replace(record.outcome, measurements=filled))


def _with_arrays(path: Path, measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"{path}: the record's evidence cannot be read: {error}") from None
    owners = table["measurement"].to_numpy()
    columns = {name: _shared(table[name]) for name in ("value", "weight", "item_id", "cluster_id")}
    filled = []
    for index, m in enumerate(measurements):
        if not m.values:
            rows = (owners == index).nonzero()[0]
            if not len(rows):
                raise ResultsError(f"{path}: holds no values of {m.metric}")
            values, weights, items, clusters = (_present(column[rows]) for column in columns.values())
            m = replace(m, values=values, weights=weights, item_ids=items, cluster_ids=clusters)
        filled.append(m)
    return tuple(filled)


def _shared(column: Any) -> Any:
    """A column as a numpy array; equal strings are one object, for a record may name each token several times."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column.to_numpy()
    whole = column.unify_dictionaries().combine_chunks()
    names = np.array([*whole.dictionary.to_pylist(), None], dtype=object)
    return names[whole.indices.fill_null(-1).to_numpy()]


def _present(values: Any) -> tuple[Any, ...]:
    """The values of one measurement; none where the column has nothing for it (None, or NaN for a number)."""
    absent = values[0] is None or values[0] != values[0]
    return () if absent else tuple(values.tolist())
