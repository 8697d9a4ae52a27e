"""Baselines: named copies of records in a separate folder that outlives the results and can be committed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.analysis.regression.cases import cases
from harness.core.identity import NAME
from harness.core.owner import current_owner
from harness.core.record import Damaged, RunRecord
from harness.errors import ResultsError, UsageError, did_you_mean
from harness.storage.reading import read_results
from harness.storage.store import Store

FOLDER = Path("baselines")
"""The default folder of baselines, beside a project's recipes."""


@dataclass(frozen=True)
class Baseline:
    """``folder`` has the layout of a results folder, with only the runs that count and without logs."""

    name: str
    folder: Path
    records: tuple[RunRecord, ...]
    damaged: tuple[Damaged, ...]


class Baselines:
    """The baselines in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __contains__(self, name: str) -> bool:
        return NAME.fullmatch(name) is not None and (self.root / name).is_dir()

    def names(self) -> list[str]:
        folders = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(path.name for path in folders if path.name in self)

    def read(self, name: str) -> Baseline:
        """The baseline with this name. Raises UsageError if there is none."""
        self._refuse_unknown(name)
        folder = self.root / name
        found = read_results(folder)
        return Baseline(name, folder, found.records, found.damaged)

    def set(self, name: str, records: Sequence[RunRecord], replace: bool = False) -> Path:
        """Saves the runs that count; returns the folder, which appears complete or not at all.

        Raises UsageError for an invalid name, and for an existing one without ``replace``; ResultsError if no record
        measures a variant.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a baseline: expected letters, digits, dots, dashes and underscores")
        folder = self.root / name
        if folder.exists() and not replace:
            raise UsageError(f"baseline {name!r} exists in {folder}; --replace overwrites it")
        kept = [run for case in cases(records).values() for run in case.runs]
        if not kept:
            raise ResultsError(f"baseline {name!r}: none of these records measures a variant")
        part = self.root / f".{name}.{current_owner()}.part"
        shutil.rmtree(part, ignore_errors=True)
        for record in kept:
            Store(part).save(record)
        old = self.root / f".{name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return folder

    def remove(self, name: str) -> Path:
        """Deletes a baseline and returns its folder. Raises UsageError if there is none with this name."""
        self._refuse_unknown(name)
        shutil.rmtree(self.root / name)
        return self.root / name

    def _refuse_unknown(self, name: str) -> None:
        if name not in self:
            known = self.names()
            near = did_you_mean(name, known) if known else "; 'qharness baseline set' makes one"
            raise UsageError(f"no baseline {name!r} in {self.root}{near}")
