"""The results folder: ``<recipe>/<run id>/<attempt>/`` with record.json, evidence.parquet and log.txt.

Attempts are only ever added. If the inputs of an attempt turn out to have changed, only its record is replaced; a
damaged attempt is moved to the recipe's ``.damaged``. A record appears complete, by one rename, or not at all.
Measurements with more than one value are in the Parquet file; the JSON describes them, and seals all three files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from harness.core.foreign import read_file, shown
from harness.core.identity import NAME, RUN_ID
from harness.core.json_values import not_finite
from harness.core.owner import current_owner
from harness.core.record import Damaged, Failure, Measurement, RunRecord
from harness.errors import ResultsError
from harness.storage.anonymizer import Anonymizer
from harness.storage.disk import Disk
from harness.storage.evidence import write_evidence
from harness.storage.json_codec import encode
from harness.storage.reading import A_NAME, A_RUN_ID, ATTEMPT, Contents, read_contents
from harness.storage.seal import EVIDENCE, LOG, MAX_BYTES, RECORD, FileSeal, file_seal, seal

DAMAGED = ".damaged"
"""The folder, in that of a recipe, to which damaged attempts are moved."""
MAX_NAME = 128
"""Characters in the name of what is set aside: a file system allows 255 bytes."""


@dataclass(frozen=True)
class Store:
    """One results folder."""

    root: Path
    anonymizer: Anonymizer = field(default_factory=Anonymizer.here, compare=False)
    disk: Disk = field(default_factory=Disk, compare=False)

    def folder(self, recipe: str, run_id: str | None = None) -> Path:
        """The folder of a recipe, or of one of its runs. Raises ResultsError for an invalid name."""
        if not NAME.fullmatch(recipe):
            raise ResultsError(f"{recipe!r} cannot name a recipe: {A_NAME}")
        if run_id is not None and not RUN_ID.fullmatch(run_id):
            raise ResultsError(f"{run_id!r} cannot be a run id: {A_RUN_ID}")
        return self.root / recipe if run_id is None else self.root / recipe / run_id

    def _own(self, path: Path) -> Path:
        """The path, if writing there stays in this results folder. Raises ResultsError if a link leads elsewhere.

        The folder itself may be a link, since the user named it; what is in it may have come from somebody else.
        """
        root = self.root.resolve()
        for each in (path, *path.parents)[: len(path.relative_to(self.root).parts)]:
            if each.is_symlink() and not each.resolve().is_relative_to(root):
                raise ResultsError(
                    f"{shown(each)}: is a link to outside of the results folder, and nothing is written through it; "
                    "put a folder in its place, or use --results"
                )
        return path

    def next_attempt(self, recipe: str, run_id: str) -> int:
        """The number after the highest one of the run's attempts, those set aside included."""
        kept = [path.name for path in self.folder(recipe, run_id).glob("[0-9]*")]
        aside = [path.name for path in (self.folder(recipe) / DAMAGED).glob(f"{run_id}.*")]
        numbers = [*kept, *(name.split(".")[1] for name in aside)]
        return 1 + max((int(number) for number in numbers if ATTEMPT.fullmatch(number)), default=0)

    def save(self, record: RunRecord, log: bytes | None = None) -> Path:
        """Writes a record, its evidence and the log of its process, if any; returns the record's path.

        What is written names no path, user, host or secret of this machine: see ``Anonymizer``.
        Raises ValueError, and writes nothing, for a record with NaN or infinity, or one too large to be read again.
        """
        final = self.folder(record.spec.recipe, record.spec.run_id) / str(record.attempt)
        content = _files(self.anonymizer.record(record), None if log is None else self.anonymizer.log(log))
        with self.filling(final, content) as part:
            self.disk.rename(part, final)
        return final / RECORD

    @contextmanager
    def filling(self, final: Path, content: Mapping[str, bytes]) -> Iterator[Path]:
        """A hidden folder with the files of an attempt, which the caller renames to ``final``; OSError removes it."""
        part = self._own(final.parent) / f".{final.name}.{current_owner()}.part"
        try:
            self.disk.remove(part)
            self.disk.make_folder(part)
            for name, each in content.items():
                self.disk.write(part / name, each)
            self.disk.sync(part)
            yield part
        except OSError:
            shutil.rmtree(part, ignore_errors=True)  # on a full disk its bytes are wanted
            raise

    def withdraw(self, record: RunRecord, failure: Failure) -> RunRecord:
        """Replaces the record, atomically, by an invalid one, so that no attempt of it counts.

        Adding another attempt would not be enough, since an earlier one that ended ok takes precedence.
        """
        folder = self._own(self.folder(record.spec.recipe, record.spec.run_id) / str(record.attempt))
        outcome = replace(record.outcome, status="invalid", failure=failure)
        invalid = self.anonymizer.record(replace(record, outcome=outcome))
        files = {path.name: path for path in (folder / EVIDENCE, folder / LOG) if path.exists()}
        sealed = {name: file_seal(read_file(path, MAX_BYTES[name], ResultsError)) for name, path in files.items()}
        self.disk.write_whole(folder / RECORD, record_file(invalid, sealed))
        return invalid

    def read(self, recipe: str | None = None) -> Contents:
        """Every attempt, oldest first, and what is damaged. Raises NewerRecordError for a newer harness's record."""
        return read_contents(self.folder(recipe) if recipe else self.root, self.root)

    def set_aside(self, recipe: str, damaged: Damaged) -> Path:
        """Moves a damaged attempt to the recipe's ``.damaged``, under a name that nothing has; returns where it is.

        Raises ResultsError if it cannot be moved.
        """
        own = self.folder(recipe)
        self._own(own / DAMAGED)
        self._own(damaged.path.parent)
        inside = damaged.path.relative_to(own).parts
        name = ".".join(inside)[-MAX_NAME:] or recipe
        taken = (own / DAMAGED / (name if number == 1 else f"{name}.{number}") for number in count(1))
        target = next(path for path in taken if not os.path.lexists(path))
        try:
            if len(inside) > 1 and RUN_ID.fullmatch(inside[-2]) and ATTEMPT.fullmatch(inside[-1]):
                self.disk.make_folder(target.parent)
                self.disk.rename(damaged.path, target)
            else:  # whatever else is in that folder is none of this record's
                self.disk.make_folder(target)
                self.disk.rename(damaged.path / RECORD, target / RECORD)
        except OSError as error:
            raise ResultsError(f"{damaged.sentence}; it cannot be moved to {shown(target)}: {error.strerror}") from None
        return target

    def put_back(self, recipe: str, folder: Path, record: RunRecord) -> Path | None:
        """Moves an attempt from a wrong folder of its recipe to its own; None, and nothing moves, if that is taken."""
        number = str(record.attempt)
        home = self._own(self.folder(recipe, record.spec.run_id) / number)
        if not ATTEMPT.fullmatch(number) or os.path.lexists(home):
            return None
        self._own(folder)
        self.disk.make_folder(home.parent)
        self.disk.rename(folder, home)
        return home

    @contextmanager
    def locked(self, recipe: str) -> Iterator[None]:
        """A lock held while a sweep writes. Raises ResultsError if another sweep holds it."""
        from filelock import FileLock, Timeout

        folder = self.folder(recipe)
        self._own(folder / ".lock")
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            self.disk.make_folder(folder)
            lock.acquire()
        except Timeout:
            raise ResultsError(
                f"{folder}: another 'qharness run' is writing here; wait for it, or use --results"
            ) from None
        except OSError as error:
            raise ResultsError(f"{folder}: cannot create the results folder: {error.strerror}") from None
        try:
            _refuse_unwritable(folder, self.disk)
            yield
        finally:
            lock.release()


def _refuse_unwritable(folder: Path, disk: Disk) -> None:
    """Raises ResultsError if nothing can be written to a folder, which is better known before a run than after it."""
    probe = folder / ".writable"
    try:
        disk.write_whole(probe, b"written when a sweep starts, to see whether the disk takes it\n")
        disk.remove(probe)
    except OSError as error:
        raise ResultsError(f"{folder}: cannot write the results: {error.strerror}") from None


def _files(record: RunRecord, log: bytes | None) -> Mapping[str, bytes]:
    """The content of each file of a record. Raises ValueError for NaN, infinity, and what is too large."""
    for measurement in record.outcome.measurements:
        if not_finite((measurement.values, measurement.weights)) is not None:
            raise ValueError(f"{measurement.metric} contains NaN or infinity, which a record must not")
    beside = {EVIDENCE: write_evidence(record.outcome.measurements), LOG: log}
    present = {name: content for name, content in beside.items() if content is not None}
    text = record_file(record, {name: file_seal(content) for name, content in present.items()})
    found = {**present, RECORD: text}
    for name, content in found.items():
        if len(content) > MAX_BYTES[name]:
            raise ValueError(f"{name} of {len(content)} bytes is larger than {MAX_BYTES[name]}, the most it may have")
    return found


def record_file(record: RunRecord, files: Mapping[str, FileSeal]) -> bytes:
    """The JSON of a record, without the content of the Parquet file, sealed."""
    slim = [_without_arrays(m) if len(m.values) > 1 else m for m in record.outcome.measurements]
    outcome = replace(record.outcome, measurements=tuple(slim))
    plain = encode(replace(record, outcome=outcome)).encode(errors="replace")  # a file name may hold half a character
    return (json.dumps(seal(json.loads(plain), files), indent=1, ensure_ascii=False) + "\n").encode()


def _without_arrays(measurement: Measurement) -> Measurement:
    return replace(measurement, values=(), weights=(), item_ids=(), cluster_ids=())
