"""Where a finished run is kept if its results folder cannot be written: the spill.

A run may have taken hours, so it is not lost because a disk is full, read-only or gone. A spill folder has the layout
of a results folder: its records are sealed and read like any others. A root holds the spills of several results
folders, each under a digest of the folder's path. The next sweep into the same folder takes its spill in.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.core.identity import digest
from harness.core.record import Damaged, Failure, RunRecord
from harness.errors import ResultsError, StorageError, reason_of
from harness.storage.seal import LOG
from harness.storage.store import Store

PRIVATE = 0o700
"""The mode of a spill folder. One that others may write to is not read: they could plant records in it."""


@dataclass(frozen=True)
class Spilled:
    """A record in a spill folder. ``folder`` is that of its attempt there; a damaged log is left out."""

    record: RunRecord
    folder: Path
    has_log: bool

    @property
    def log(self) -> bytes | None:
        return (self.folder / LOG).read_bytes() if self.has_log else None


class Saver:
    """Saves the records of a sweep in its store, and in the first of some spill roots that works if the store fails.

    ``trouble`` is None until something could not be written to the store: then the sweep must end with this error.
    """

    def __init__(self, store: Store, roots: Sequence[Path]) -> None:
        self.trouble: StorageError | None = None
        self._store = store
        self._roots = roots
        self._spilled: dict[tuple[str, str, str], tuple[Store, RunRecord]] = {}

    def next_attempt(self, recipe: str, run_id: str) -> int:
        """The number of the run's next attempt; 1 if the store cannot be read: a spilled record gets another one."""
        try:
            return self._store.next_attempt(recipe, run_id)
        except OSError:
            return 1

    def save(self, record: RunRecord, log: bytes | None = None) -> None:
        """Saves a record, or spills it. Raises ValueError for a record that must not be stored."""
        try:
            self._store.save(record, log)
        except (OSError, ResultsError) as error:  # ResultsError: a link there leads elsewhere
            self._spill(record, log, error)

    def withdraw(self, record: RunRecord, failure: Failure) -> RunRecord:
        """Makes a saved or spilled record invalid; if that cannot be written, the invalid record is spilled."""
        store, saved = self._spilled.get(record.key, (self._store, record))
        outcome = replace(record.outcome, status="invalid", failure=failure)
        invalid = self._store.anonymizer.record(replace(record, outcome=outcome))  # callers see what is stored
        try:
            store.withdraw(saved, failure)
        except (OSError, ResultsError) as error:
            self._spill(invalid, None, error)
        return invalid

    def report(self, action: str, error: OSError) -> None:
        """Notes that something else failed that must not go on like this."""
        self.trouble = self.trouble or StorageError(f"{action}: {reason_of(error)}")

    def spilled(self, recipe: str) -> tuple[Spilled, ...]:
        """What earlier sweeps spilled, the oldest first."""
        return tuple(each for store in self._own_spills() for each in _contents(store, recipe))

    def damaged(self, recipe: str) -> tuple[Damaged, ...]:
        """What of the spilled records is damaged; it stays where it is."""
        return tuple(each for store in self._own_spills() for each in store.read(recipe).damaged)

    def take_in(self, recipe: str) -> tuple[RunRecord, ...]:
        """Moves what earlier sweeps spilled into the store, as further attempts; returns these records.

        Raises StorageError if the store still cannot be written: everything then stays where it is.
        """
        waiting: dict[tuple[str, str, str], list[Spilled]] = {}
        for each in self.spilled(recipe):
            waiting.setdefault(each.record.key, []).append(each)
        try:
            present = {record.key: record for record in self._store.read(recipe).records} if waiting else {}
            taken = [self._take(copies, present.get(key)) for key, copies in waiting.items()]
        except OSError as error:
            folders = ", ".join(sorted({str(each.folder) for copies in waiting.values() for each in copies}))
            raise StorageError(
                f"{self._store.place.title}: cannot be written ({reason_of(error)}). Runs that were finished earlier "
                f"are kept in {folders}; make room or name another disk's folder, then run the same command again"
            ) from None
        return tuple(taken)

    def _take(self, copies: Sequence[Spilled], present: RunRecord | None) -> RunRecord:
        """Takes in one attempt, of which there is a second copy if it was withdrawn. Survives a crash at any point.

        One that is present counts as another if it was saved again with other settings for reading it.
        """
        withdrawn = next((each.record for each in copies if each.record.status == "invalid"), None)
        record = withdrawn or copies[0].record
        restated = present is not None and withdrawn is None and present.spec.readers != record.spec.readers
        if present is None or (restated and present.status != "invalid"):
            number = self._store.next_attempt(record.spec.recipe, record.spec.run_id)
            record = replace(record, attempt=number)
            self._store.save(record, next((each.log for each in copies if each.log is not None), None))
        elif withdrawn is not None and withdrawn.outcome.failure is not None and present.status != "invalid":
            record = self._store.withdraw(present, withdrawn.outcome.failure)
        else:
            record = present
        for each in copies:
            self._store.disk.remove(each.folder)
        return record

    def _spill(self, record: RunRecord, log: bytes | None, error: OSError | ResultsError) -> None:
        """Saves the record in the first root that works, and sets ``trouble``."""
        cause = f"{self._store.place.title}: cannot write the results ({reason_of(error)})"
        failed = []
        for root in self._roots:
            spill = self._at(root)
            try:
                spill.disk.make_folder(spill.root.parent, PRIVATE)
                spill.disk.make_folder(spill.root, PRIVATE)
                _refuse_shared(spill.root)
                numbered = replace(record, attempt=spill.next_attempt(record.spec.recipe, record.spec.run_id))
                path = spill.save(numbered, log)
            except OSError as again:
                failed.append(f"{spill.root}: {reason_of(again)}")
                continue
            self._spilled[record.key] = (spill, numbered)
            self.trouble = StorageError(
                f"{cause}. The sweep stopped, and what it finished last is kept in {path.parent}: make room, or make "
                "the folder writable, then run the same command again. It takes that run in and does not repeat it"
            )
            return
        self.trouble = StorageError(
            f"{cause}, and the run that was finished last could not be kept anywhere else ({'; '.join(failed)}). "
            "It is lost; make room, then run the same command again"
        )

    def _at(self, root: Path) -> Store:
        """The store below a spill root that belongs to the results folder."""
        place = str(self._store.root.resolve()) if self._store.remote is None else self._store.remote.title
        return replace(self._store, root=root / digest(place), remote=None)

    def _own_spills(self) -> Iterator[Store]:
        for root in self._roots:
            spill = self._at(root)
            try:
                _refuse_shared(spill.root)
            except OSError:  # there is none, or it is someone else's
                continue
            yield spill


def _contents(store: Store, recipe: str) -> Iterator[Spilled]:
    found = store.read(recipe)
    without_log = {each.path for each in found.damaged}
    for record in found.records:
        folder = store.folder(recipe, record.spec.run_id) / str(record.attempt)
        yield Spilled(record, folder, (folder / LOG).exists() and folder not in without_log)


def _refuse_shared(folder: Path) -> None:
    """Raises OSError if a spill folder, or the root that holds it, is missing, a link, or others may write to it."""
    for each in (folder.parent, folder):
        status = each.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OSError(errno.EPERM, "others may write to this folder", str(each))
