"""The results folder: ``<recipe>/<run id>/<attempt>/`` with record.json, evidence.parquet and log.txt.

Attempts are only ever added. If the inputs of an attempt turn out to have changed, only its record is replaced; a
damaged attempt is moved to the recipe's ``.damaged``. A record appears complete, by one rename, or not at all.
Measurements with more than one value are in the Parquet file; the JSON describes them, and seals all three files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path

from harness.core.foreign import shown
from harness.core.identity import NAME, RUN_ID
from harness.core.json_values import not_finite
from harness.core.record import Damaged, Failure, RunRecord
from harness.errors import ResultsError, reason_of
from harness.storage.anonymizer import Anonymizer
from harness.storage.disk import Disk
from harness.storage.evidence import without_evidence, write_evidence
from harness.storage.index import is_indexed, note
from harness.storage.json_codec import encode
from harness.storage.pack import pack_of
from harness.storage.place import LocalPlace, StorePlace
from harness.storage.reading import A_NAME, A_RUN_ID, ATTEMPT, Contents, read_attempt, read_contents
from harness.storage.seal import EVIDENCE, LOG, MAX_BYTES, RECORD, FileSeal, file_seal, seal

DAMAGED = ".damaged"
"""The folder, in that of a recipe, to which damaged attempts are moved."""
MAX_NAME = 128
"""Characters in the name of what is set aside: a file system allows 255 bytes."""


@dataclass(frozen=True)
class Store:
    """One results folder. If it is ``remote``, ``root`` is its copy on this machine, for readers."""

    root: Path
    anonymizer: Anonymizer = field(default_factory=Anonymizer.here, compare=False)
    disk: Disk = field(default_factory=Disk, compare=False)
    remote: StorePlace | None = field(default=None, compare=False)

    @property
    def place(self) -> StorePlace:
        """How the files are listed, read and written."""
        return self.remote or LocalPlace(self.root, self.disk)

    def folder(self, recipe: str, run_id: str | None = None) -> Path:
        """The folder of a recipe, or of one of its runs. Raises ResultsError for an invalid name."""
        return self.root / _name(recipe, run_id)

    def next_attempt(self, recipe: str, run_id: str) -> int:
        """The number after the highest one of the run's attempts, those set aside included."""
        kept = self.place.names(_name(recipe, run_id))
        aside = self.place.names(f"{_name(recipe)}/{DAMAGED}")
        numbers = [*kept, *(name.split(".")[1] for name in aside if name.startswith(f"{run_id}."))]
        return 1 + max((int(number) for number in numbers if ATTEMPT.fullmatch(number)), default=0)

    def save(self, record: RunRecord, log: bytes | None = None) -> Path:
        """Writes a record, its evidence and the log of its process, if any; returns the record's path.

        What is written names no path, user, host or secret of this machine: see ``Anonymizer``.
        Raises ValueError, and writes nothing, for a record with NaN or infinity, or one too large to be read again.
        """
        folder = f"{_name(record.spec.recipe, record.spec.run_id)}/{record.attempt}"
        content = _files(self.anonymizer.record(record), None if log is None else self.anonymizer.log(log))
        self.place.add(folder, content)
        if isinstance(self.place, LocalPlace):
            self._note(record.spec.recipe, self.root / folder)
        return self.root / folder / RECORD

    def _note(self, recipe: str, folder: Path) -> None:
        """Adds an attempt that was written to the index of its recipe, if there is one."""
        if not is_indexed(self.root / recipe):
            return
        saved = read_attempt(folder, self.root)
        if saved.record is not None and saved.seal is not None and saved.file is not None and saved.damage is None:
            files = {RECORD: saved.file, **saved.seal.files}
            note(self.root / recipe, f"{folder.parent.name}/{folder.name}", saved.record, saved.seal.sha256, files)

    def withdraw(self, record: RunRecord, failure: Failure) -> RunRecord:
        """Replaces the record, atomically, by an invalid one, so that no attempt of it counts.

        Adding another attempt would not be enough, since an earlier one that ended ok takes precedence.
        """
        folder = f"{_name(record.spec.recipe, record.spec.run_id)}/{record.attempt}"
        outcome = replace(record.outcome, status="invalid", failure=failure)
        invalid = self.anonymizer.record(replace(record, outcome=outcome))
        present = [name for name in (EVIDENCE, LOG) if name in self.place.names(folder)]
        sealed = {name: file_seal(self.place.read(f"{folder}/{name}", MAX_BYTES[name])) for name in present}
        self.place.replace(f"{folder}/{RECORD}", record_file(invalid, sealed))
        return invalid

    def read(self, recipe: str | None = None) -> Contents:
        """Every attempt, oldest first, and what is damaged. Raises NewerRecordError for a newer harness's record."""
        found = read_contents(self.place.local(_name(recipe) if recipe else ""), self.root)
        return found if self.remote is None else replace(found, damaged=tuple(map(self._located, found.damaged)))

    def read_others(self, recipe: str, most_runs: int) -> tuple[RunRecord, ...]:
        """The readable records of other recipes, as long as these have at most ``most_runs`` runs in all.

        None of a remote folder: they would be fetched first.
        """
        others = [] if self.remote else sorted({*self.place.names("")} - {recipe})
        found: list[RunRecord] = []
        for name in filter(NAME.fullmatch, others):
            most_runs -= len(self._run_ids(name))
            if most_runs >= 0:
                with suppress(ResultsError):  # of a newer harness
                    found += self.read(name).records
        return tuple(found)

    def _run_ids(self, recipe: str) -> set[str]:
        """Of a recipe's runs, packed ones too."""
        pack = pack_of(self.root / recipe)
        packed = [] if pack is None else [key.partition("/")[0] for key in pack.attempts]
        return {*filter(RUN_ID.fullmatch, self.place.names(recipe)), *packed}

    def _located(self, damaged: Damaged) -> Damaged:
        """With the URL of an attempt of which there is a copy here."""
        return replace(damaged, url=self.place.at(damaged.path.relative_to(self.root).as_posix()))

    def set_aside(self, recipe: str, damaged: Damaged) -> str:
        """Moves a damaged attempt to the recipe's ``.damaged``, under a name that nothing has; returns where it is.

        Raises ResultsError if it cannot be moved.
        """
        own = self.folder(recipe)
        inside = damaged.path.relative_to(own).parts
        source = damaged.path.relative_to(self.root).as_posix()
        name = ".".join(inside)[-MAX_NAME:] or recipe
        try:
            there = self.place.names(f"{recipe}/{DAMAGED}")
            free = next(each for each in chain((name,), (f"{name}.{n}" for n in count(2))) if each not in there)
            target = f"{recipe}/{DAMAGED}/{free}"
            if len(inside) > 1 and RUN_ID.fullmatch(inside[-2]) and ATTEMPT.fullmatch(inside[-1]):
                self.place.move(source, target)
            else:  # whatever else is in that folder is none of this record's
                self.place.move(f"{source}/{RECORD}", f"{target}/{RECORD}")
        except OSError as error:
            where = shown(self.place.at(f"{recipe}/{DAMAGED}"))
            raise ResultsError(f"{damaged.sentence}; it cannot be moved to {where}: {reason_of(error)}") from None
        return self.place.at(target)

    def put_back(self, recipe: str, folder: Path, record: RunRecord) -> Path | None:
        """Moves an attempt from a wrong folder of its recipe to its own; None, and nothing moves, if that is taken."""
        home = f"{_name(recipe, record.spec.run_id)}/{record.attempt}"
        if not ATTEMPT.fullmatch(str(record.attempt)):
            return None
        try:
            self.place.move(folder.relative_to(self.root).as_posix(), home)
        except FileExistsError:
            return None
        return self.root / home

    def locked(self, recipe: str) -> AbstractContextManager[None]:
        """Held while a sweep writes. Raises ResultsError if another sweep holds it, or nothing can be written."""
        return self.place.locked(_name(recipe))


def _name(recipe: str, run_id: str | None = None) -> str:
    """The folder of a recipe, or of one of its runs, in the results. Raises ResultsError for an invalid name."""
    if not NAME.fullmatch(recipe):
        raise ResultsError(f"{recipe!r} cannot name a recipe: {A_NAME}")
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise ResultsError(f"{run_id!r} cannot be a run id: {A_RUN_ID}")
    return recipe if run_id is None else f"{recipe}/{run_id}"


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
    outcome = replace(record.outcome, measurements=without_evidence(record.outcome.measurements))
    plain = encode(replace(record, outcome=outcome)).encode(errors="replace")  # a file name may hold half a character
    return (json.dumps(seal(json.loads(plain), files), indent=1, ensure_ascii=False) + "\n").encode()
