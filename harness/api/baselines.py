"""Baselines: named copies of records in a separate folder that outlives the results and can be committed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.identity import NAME
from harness.core.owner import current_owner, owner_in
from harness.core.record import Damaged, RunRecord
from harness.errors import ResultsError, StorageError, UsageError, did_you_mean, reason_of
from harness.storage.disk import Disk, is_left_over
from harness.storage.reading import read_results
from harness.storage.store import Store

FOLDER = Path("baselines")
"""The default folder of baselines, beside a project's recipes."""
OLD = ".old"
"""The suffix of a baseline that is being replaced."""


@dataclass(frozen=True)
class Baseline:
    """``folder`` has the layout of a results folder, with only the runs that count and without logs.

    ``seals`` are the hashes of its records, if their index knows them.
    """

    name: str
    folder: Path
    records: Sequence[RunRecord]
    damaged: tuple[Damaged, ...]
    seals: tuple[str | None, ...] = ()


class Baselines:
    """The baselines in one folder.

    Replacing one takes two renames, because none replaces a folder. If the machine stops between them, the former
    baseline is in ``.NAME.old``, and still the one that is read.
    """

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root
        self._disk = disk or Disk()

    def __contains__(self, name: str) -> bool:
        return NAME.fullmatch(name) is not None and self._place(name).is_dir()

    def names(self) -> list[str]:
        folders = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        replaced = {name[1:].removesuffix(OLD) for name in folders if name.startswith(".") and name.endswith(OLD)}
        return sorted(name for name in {*folders, *replaced} if name in self)

    def read(self, name: str) -> Baseline:
        """The baseline with this name. Raises UsageError if there is none."""
        self._refuse_unknown(name)
        folder = self._place(name)
        found = read_results(folder)
        return Baseline(name, folder, found.records, found.damaged, found.seals)

    def set(self, name: str, records: Sequence[RunRecord], replace: bool = False) -> Path:
        """Saves the runs that count; returns the folder, which appears complete or not at all.

        Raises UsageError for an invalid name, and for an existing one without ``replace``; ResultsError if no record
        measures a variant; StorageError if it cannot be written: then the former baseline stays.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a baseline: expected letters, digits, dots, dashes and underscores")
        if name in self and not replace:
            raise UsageError(f"baseline {name!r} exists in {self._place(name)}; --replace overwrites it")
        from harness.analysis.regression.cases import cases  # half a second that a reader of results need not wait

        kept = [run for case in cases(records).values() for run in case.runs]
        if not kept:
            raise ResultsError(f"baseline {name!r}: none of these records measures a variant")
        folder, old = self.root / name, self.root / f".{name}{OLD}"
        part = self.root / f".{name}.{current_owner()}.part"
        self._remove_debris()
        try:
            self._disk.remove(part)
            for record in kept:
                Store(part, disk=self._disk).save(record)
            if folder.exists():
                self._disk.remove(old)
                self._disk.rename(folder, old)
            self._disk.rename(part, folder)
            self._disk.remove(old)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)  # on a full disk its bytes are wanted
            raise StorageError(f"{folder}: cannot write the baseline: {reason_of(error)}") from None
        return folder

    def remove(self, name: str) -> Path:
        """Deletes a baseline and returns its folder.

        Raises UsageError if there is none with this name, and StorageError if it cannot be deleted.
        """
        self._refuse_unknown(name)
        folder = self.root / name
        try:
            self._disk.remove(self.root / f".{name}{OLD}")
            self._disk.remove(folder)
        except OSError as error:
            raise StorageError(f"{folder}: cannot delete the baseline: {reason_of(error)}") from None
        return folder

    def _remove_debris(self) -> None:
        """Deletes what processes left that are gone: unfinished baselines, and former ones under deletion."""
        for path in self.root.glob(".*"):
            if owner_in(path.name) is not None and is_left_over(path.name):
                with suppress(OSError):  # another user's
                    self._disk.remove(path)

    def _place(self, name: str) -> Path:
        folder, old = self.root / name, self.root / f".{name}{OLD}"
        return old if old.is_dir() and not folder.is_dir() else folder

    def _refuse_unknown(self, name: str) -> None:
        if name not in self:
            known = self.names()
            near = did_you_mean(name, known) if known else "; 'qharness baseline set' makes one"
            raise UsageError(f"no baseline {name!r} in {self.root}{near}")
