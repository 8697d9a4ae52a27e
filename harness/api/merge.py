"""``qharness merge``: puts the results of several machines, or of several folders, into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.core.foreign import shown
from harness.core.record import RunRecord
from harness.errors import NewerRecordError, ResultsError, StorageError, UsageError
from harness.storage.reading import Attempt, attempt_folders, read_attempt
from harness.storage.repair import files_of
from harness.storage.seal import LOG
from harness.storage.store import Store

Action = Literal["copied", "renumbered", "withdrawn", "already there", "conflict", "left out"]


@dataclass(frozen=True)
class MergeStep:
    """What became of one attempt of a source; ``path`` is its folder there."""

    path: Path
    action: Action
    detail: str


def merge(sources: Sequence[str | Path], into: str | Path) -> Iterator[MergeStep]:
    """Adds every attempt of the sources to the results folder ``into``, which is made if need be; yields each step.

    Sources are only read. An attempt is copied byte for byte, with its seal, if its number is free there, and is
    written again under the run's next number if another sweep has it. An attempt that is there already is not added
    twice, so that a merge can be repeated, or go on after an interruption. If one of the copies was withdrawn
    (``invalid``), the attempt becomes invalid. Copies that differ otherwise are a ``conflict``: one was edited, and
    the target's is kept. Damaged attempts, and those of a newer harness, are left out.

    Raises UsageError for a source that is the target, or contains it; ResultsError for a source without records, and
    while a sweep writes in the target; StorageError if the disk refuses. Nothing is written before all sources are
    known to hold records.
    """
    roots, target = [Path(each) for each in sources], Path(into)
    for root in roots:
        if not root.is_dir():
            raise ResultsError(f"{shown(root)}: no such folder; name results folders written by 'qharness run'")
        if target.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(target.resolve()):
            raise UsageError(f"{shown(root)}: is the target, or within it, or holds it; name another folder for --into")
        if next(attempt_folders(root), None) is None:
            raise ResultsError(f"{shown(root)}: contains no records of 'qharness run'")
    return _steps(roots, _Target(Store(target)))


def _steps(roots: Sequence[Path], target: _Target) -> Iterator[MergeStep]:
    try:
        with ExitStack() as locks:
            for root in roots:
                for folder in attempt_folders(root):
                    yield target.take(folder, root, locks)
    except OSError as error:
        where = shown(Path(str(error.filename or target.store.root)))
        raise StorageError(f"{where}: cannot merge: {error.strerror}; run the same command again") from None


class _Target:
    """The folder that is merged into, and what it holds of the recipes that were met so far."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._held: dict[str, dict[tuple[str, str, str], RunRecord]] = {}

    def take(self, folder: Path, root: Path, locks: ExitStack) -> MergeStep:
        """Adds one attempt of a source. Locks its recipe's folder in the target when it meets the recipe first."""
        try:
            found = read_attempt(folder, root)
        except NewerRecordError as error:
            return MergeStep(folder, "left out", str(error).removeprefix(f"{shown(folder)}: "))
        record = found.record
        if record is None:
            assert found.damage is not None
            return MergeStep(folder, "left out", f"damaged: {found.damage.reason}; 'qharness repair' may restore it")
        recipe = record.spec.recipe
        if recipe not in self._held:
            locks.enter_context(self.store.locked(recipe))
            self._held[recipe] = {each.key: each for each in self.store.read(recipe).records}
        held = self._held[recipe].get(record.key)
        if held is None:
            added, step = self._add(found, record)
        else:
            added, step = self._join(folder, record, held)
        self._held[recipe][record.key] = added
        return step

    def _add(self, found: Attempt, record: RunRecord) -> tuple[RunRecord, MergeStep]:
        """A new attempt: in the place that it had in the source, if that is free."""
        spec, note = record.spec, "; without its log, which is damaged" if found.damage is not None else ""
        home = self.store.folder(spec.recipe, found.folder.parent.name) / str(record.attempt)
        if not note and not home.exists():
            self.store.place.add(home.relative_to(self.store.root).as_posix(), files_of(found.folder))
            return record, MergeStep(found.folder, "copied", shown(home))
        numbered = replace(record, attempt=self.store.next_attempt(spec.recipe, spec.run_id))
        log = None if note else files_of(found.folder).get(LOG)
        path = self.store.save(numbered, log)
        return numbered, MergeStep(found.folder, "renumbered", f"{shown(path.parent)}{note}")

    def _join(self, folder: Path, record: RunRecord, held: RunRecord) -> tuple[RunRecord, MergeStep]:
        """An attempt that the target has: what was withdrawn anywhere counts nowhere."""
        failure = record.outcome.failure
        if record.status == "invalid" and held.status != "invalid" and failure is not None:
            invalid = self.store.withdraw(held, failure)
            return invalid, MergeStep(folder, "withdrawn", failure.message)
        if held.status == "invalid" or _content(record) == _content(held):
            return held, MergeStep(folder, "already there", f"attempt {held.attempt} of {held.spec.run_id}")
        return held, MergeStep(
            folder,
            "conflict",
            f"differs from the same attempt in {shown(self.store.root)}, whose copy is kept: one of them was edited",
        )


def _content(record: RunRecord) -> RunRecord:
    """What must be equal in two copies of an attempt: everything but its number."""
    return replace(record, attempt=0)
