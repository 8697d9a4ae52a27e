"""The results folder: ``<recipe>/<run id>/<attempt>/`` with record.json, evidence.parquet and log.txt.

Attempts are only ever added. If the inputs of an attempt turn out to have changed, only its record is replaced. A
record appears complete, by one rename, or not at all. Measurements with more than one value are in the Parquet file;
the JSON describes them.

A record's content never determines a path: a record is read only if its recipe, run id and attempt match the folders
that contain it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.identity import NAME, RUN_ID
from harness.core.json_values import not_finite
from harness.core.record import Failure, Measurement, RunRecord
from harness.core.upgrade import upgrade
from harness.core.upgrade.specs import is_whole
from harness.errors import NewerRecordError, NotFiniteError, ResultsError
from harness.storage.anonymizer import Anonymizer
from harness.storage.evidence import EVIDENCE, read_evidence, write_evidence
from harness.storage.json_codec import decode, encode

RECORD, LOG = "record.json", "log.txt"
A_NAME = "expected letters, digits, dots, dashes and underscores"
A_RUN_ID = "expected 16 hexadecimal digits"


class Store:
    """One results folder."""

    def __init__(self, root: Path, anonymizer: Anonymizer | None = None) -> None:
        self.root = root
        self.anonymizer = anonymizer or Anonymizer.here()

    def folder(self, recipe: str, run_id: str | None = None) -> Path:
        """The folder of a recipe, or of one of its runs. Raises ResultsError for an invalid name."""
        if not NAME.fullmatch(recipe):
            raise ResultsError(f"{recipe!r} cannot name a recipe: {A_NAME}")
        if run_id is not None and not RUN_ID.fullmatch(run_id):
            raise ResultsError(f"{run_id!r} cannot be a run id: {A_RUN_ID}")
        return self.root / recipe if run_id is None else self.root / recipe / run_id

    def next_attempt(self, recipe: str, run_id: str) -> int:
        folder = self.folder(recipe, run_id)
        return 1 + max((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), default=0)

    def save(self, record: RunRecord, log: bytes | None = None) -> Path:
        """Writes a record, its evidence and the log of its process, if any; returns the record's path.

        What is written names no path, user, host or secret of this machine: see ``Anonymizer``.
        Raises ValueError, and writes nothing, for a record with NaN or infinity.
        """
        record = self.anonymizer.record(record)
        final = self.folder(record.spec.recipe, record.spec.run_id) / str(record.attempt)
        text = _text(record)
        for measurement in record.outcome.measurements:
            if not_finite((measurement.values, measurement.weights)) is not None:
                raise ValueError(f"{measurement.metric} contains NaN or infinity, which a record must not")
        part = final.with_name(f".{record.attempt}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_evidence(part / EVIDENCE, record.outcome.measurements)
        (part / RECORD).write_text(text, encoding="utf-8")
        if log is not None:
            (part / LOG).write_bytes(self.anonymizer.log(log))
        part.rename(final)
        return final / RECORD

    def withdraw(self, record: RunRecord, failure: Failure) -> RunRecord:
        """Replaces the record, atomically, by an invalid one, so that no attempt of it counts.

        Adding another attempt would not be enough, since an earlier one that ended ok takes precedence.
        """
        path = self.folder(record.spec.recipe, record.spec.run_id) / str(record.attempt) / RECORD
        outcome = replace(record.outcome, status="invalid", failure=failure)
        invalid = self.anonymizer.record(replace(record, outcome=outcome))
        part = path.with_name(f".{RECORD}.part")
        part.write_text(_text(invalid), encoding="utf-8")
        part.replace(path)
        return invalid

    def records(self, recipe: str | None = None) -> tuple[RunRecord, ...]:
        """Every attempt, oldest first. Raises ResultsError for a record that cannot be read."""
        files = _record_files(self.folder(recipe) if recipe else self.root)
        return _in_order(_read(file, self.root) for file in files)

    @contextmanager
    def locked(self, recipe: str) -> Iterator[None]:
        """A lock held while a sweep writes. Raises ResultsError if another sweep holds it."""
        from filelock import FileLock, Timeout

        folder = self.folder(recipe)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"{folder}: cannot create the results folder: {error.strerror}") from None
        try:
            with FileLock(folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise ResultsError(
                f"{folder}: another 'qharness run' is writing here; wait for it, or use --results"
            ) from None


def read_records(path: Path) -> tuple[RunRecord, ...]:
    """All records in a results folder. Raises ResultsError if it is not one."""
    if not path.exists():
        raise ResultsError(f"{path}: no such folder")
    if not path.is_dir():
        raise ResultsError(f"{path}: is a file; name a results folder written by 'qharness run'")
    records = Store(path).records()
    if not records:
        raise ResultsError(f"{path}: contains no records; name a results folder written by 'qharness run'")
    return records


def read_whole(path: Path) -> tuple[tuple[RunRecord, ...], tuple[str, ...]]:
    """The readable records in a results folder, and why the others cannot be read.

    For callers that can use partial results: a record may be truncated by an interrupted copy or a full disk.
    Raises ResultsError if no record is readable, and for a record from a newer harness or one with NaN or infinity,
    because the remaining records could pass where that one could not.
    """
    if not path.is_dir():
        raise ResultsError(f"{path}: no such results folder")
    found, faults = [], []
    for file in _record_files(path):
        try:
            found.append(_read(file, path))
        except (NewerRecordError, NotFiniteError):
            raise
        except ResultsError as error:
            faults.append(str(error))
    if not found:
        raise ResultsError(faults[0] if faults else f"{path}: contains no records of 'qharness run'")
    return _in_order(found), tuple(faults)


def _record_files(root: Path) -> Iterator[Path]:
    """Complete records only: a hidden folder holds an interrupted write or something unrelated."""
    for path in sorted(root.rglob(RECORD)):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path


def _in_order(records: Iterable[RunRecord]) -> tuple[RunRecord, ...]:
    return tuple(sorted(records, key=lambda record: (record.started_at, record.attempt)))


def _text(record: RunRecord) -> str:
    """The JSON of a record, without the content of the Parquet file."""
    slim = [_without_arrays(m) if len(m.values) > 1 else m for m in record.outcome.measurements]
    return encode(replace(record, outcome=replace(record.outcome, measurements=tuple(slim))), indent=1) + "\n"


def _without_arrays(measurement: Measurement) -> Measurement:
    return replace(measurement, values=(), weights=(), item_ids=(), cluster_ids=())


def _read(path: Path, root: Path) -> RunRecord:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: incomplete record ({error}); move its folder away to read the others") from None
    if not isinstance(raw, dict):
        raise ResultsError(f"{path}: not a record")
    record = decode(RunRecord, upgrade(raw, str(path)), str(path))
    _refuse_misplaced(record, raw, path, root)
    measurements = record.outcome.measurements
    if all(m.values for m in measurements):
        return record
    filled = read_evidence(path.with_name(EVIDENCE), measurements)
    return replace(record, outcome=replace(record.outcome, measurements=filled))


def _refuse_misplaced(record: RunRecord, raw: dict[str, Any], path: Path, root: Path) -> None:
    """Raises ResultsError if a record does not match its folders: recipe, run id and attempt.

    If the recipe's folder is ``root`` itself, which the user named, any name is allowed. The run id must match the
    spec, except in early records of schema version 1, which were named before some of its fields existed.
    """
    spec = record.spec
    run_id, attempt = ("", "", *Path(os.path.abspath(path)).parts[:-1])[-2:]  # noqa: PTH100 - not resolved
    below = path.relative_to(root).parts[:-1]
    recipe = below[-3] if len(below) >= 3 else spec.recipe
    faults = []
    if not NAME.fullmatch(spec.recipe):
        faults.append(f"spec.recipe is {spec.recipe!r}, which cannot name a recipe: {A_NAME}")
    elif spec.recipe != recipe:
        faults.append(f"spec.recipe is {spec.recipe!r}, but its folder is {recipe!r}")
    named_by_all = raw["schema_version"] != 1 or is_whole(raw["spec"])
    if not RUN_ID.fullmatch(run_id):
        faults.append(f"its folder {run_id!r} is not a run id: {A_RUN_ID}")
    elif named_by_all and spec.run_id != run_id:
        faults.append(f"its run id is {spec.run_id}, but its folder is {run_id!r}")
    if record.attempt < 1 or str(record.attempt) != attempt:
        faults.append(f"attempt is {record.attempt}, but its folder is {attempt!r}")
    if faults:
        raise ResultsError(
            f"{path}: its folder does not match its content (expected RECIPE/RUN ID/ATTEMPT/{RECORD}): "
            f"{'; '.join(faults)}. Restore its original folder, or move it away to read the others"
        )
