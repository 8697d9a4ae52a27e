"""``qharness merge``: puts the results of several machines, or of several folders, into one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePath
from typing import Literal

from harness.analysis.selection import AttemptKey
from harness.api.locations import open_results, open_source
from harness.api.results_step import ResultsStep
from harness.core.foreign import shown
from harness.core.record import RunRecord
from harness.core.run import ReaderSettings
from harness.errors import NewerRecordError, ResultsError, StorageError, UsageError, reason_of
from harness.storage.objects import is_url
from harness.storage.reading import ATTEMPT, Attempt, attempt_folders, read_attempt
from harness.storage.repair import files_of
from harness.storage.seal import LOG
from harness.storage.store import Store

Action = Literal["copied", "renumbered", "withdrawn", "already there", "conflict", "left out"]
MergeStep = ResultsStep[Action]
"""What became of one attempt of a source; ``path`` is that of its folder there."""


def merge(sources: Sequence[str | Path], into: str | Path) -> Iterator[MergeStep]:
    """Adds every attempt of the sources to the results folder ``into``, which is made if need be; yields each step.

    Sources are only read. An attempt is copied byte for byte, with its seal, if its number is free there, and is
    written again under the run's next number if another sweep has it. An attempt that is there already is not added
    twice, so that a merge can be repeated, or go on after an interruption. An attempt that was saved again with another
    price, budget or gates is added again: those that were added last count. If one of the copies was withdrawn
    (``invalid``), the attempt becomes invalid. Copies that differ otherwise are a ``conflict``: one was edited, and the
    target's is kept. Damaged attempts, and those of a newer harness, are left out.

    Raises UsageError for a source that is the target, or contains it; ResultsError for a source without records, and
    while a sweep writes in the target; StorageError if the disk refuses. Nothing is written before all sources are
    known to hold records.
    """
    target, opened = open_results(into), [open_source(each) for each in sources]
    stores = list({store.root.resolve(): store for store in opened}.values())  # each once, however often it is named
    for store in stores:
        name = shown(store.place.title)
        if not is_url(name) and not store.root.is_dir():
            raise ResultsError(f"{name}: no such folder; name results folders written by 'qharness run'")
        if _overlap(store, target):
            raise UsageError(f"{name}: is the target, or within it, or holds it; name another folder for --into")
        if next(attempt_folders(store.place.local()), None) is None:
            raise ResultsError(f"{name}: contains no records of 'qharness run'")
    return _steps(stores, _Target(target))


def _overlap(one: Store, other: Store) -> bool:
    """Whether two results folders are the same, or one is in the other."""
    first, second = (
        PurePath(each.root.resolve() if each.remote is None else each.remote.title) for each in (one, other)
    )
    return first.is_relative_to(second) or second.is_relative_to(first)


def _steps(sources: Sequence[Store], target: _Target) -> Iterator[MergeStep]:
    try:
        with ExitStack() as locks:
            for source in sources:
                for folder in _in_order(attempt_folders(source.root)):
                    yield target.take(folder, source, locks)
    except OSError as error:
        where = shown(str(error.filename or target.store.place.title))
        raise StorageError(f"{where}: cannot merge: {reason_of(error)}; run the same command again") from None


def _in_order(folders: Iterator[Path]) -> Iterator[Path]:
    """The attempts of each run by their numbers: the settings that count are those of its last."""
    for _, attempts in groupby(folders, lambda folder: folder.parent):
        yield from sorted(attempts, key=lambda folder: int(folder.name) if ATTEMPT.fullmatch(folder.name) else 0)


class _Target:
    """The folder that is merged into, and what it holds of the recipes that were met so far.

    A sweep whose recipe names another price, budget or gates saves a finished attempt again with these, so that
    several records may be of one attempt. All of them are kept, in the order of the source.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._held: dict[str, dict[AttemptKey, list[RunRecord]]] = {}
        self._met: dict[tuple[Path, AttemptKey], int] = {}  # how many of the held records a source's go up to

    def take(self, folder: Path, source: Store, locks: ExitStack) -> MergeStep:
        """Adds one attempt of a source. Locks its recipe's folder in the target when it meets the recipe first."""
        name = source.place.at(folder.relative_to(source.root).as_posix())
        try:
            found = read_attempt(folder, source.root)
        except NewerRecordError as error:
            return MergeStep(name, "left out", str(error).removeprefix(f"{shown(folder)}: "))
        record = found.record
        if record is None:
            assert found.damage is not None
            return MergeStep(name, "left out", f"damaged: {found.damage.reason}; 'qharness repair' may restore it")
        recipe = record.spec.recipe
        if recipe not in self._held:
            locks.enter_context(self.store.locked(recipe))
            self._held[recipe] = defaultdict(list)
            for each in sorted(self.store.read(recipe).records, key=lambda each: each.attempt):
                self._held[recipe][each.key].append(each)
        held = self._held[recipe][record.key]
        step = self._join(name, record, held, source) if held else None
        if step is None:
            added, step = self._add(name, found, record)
            held.append(added)
            self._met[source.root, record.key] = len(held)
        return step

    def _add(self, name: str, found: Attempt, record: RunRecord) -> tuple[RunRecord, MergeStep]:
        """A new attempt: in the place that it had in the source, if that is free."""
        spec, note = record.spec, "; without its log, which is damaged" if found.damage is not None else ""
        place, number = self.store.place, str(record.attempt)
        run = self.store.folder(spec.recipe, found.folder.parent.name).relative_to(self.store.root).as_posix()
        if not note and number not in place.names(run):
            place.add(f"{run}/{number}", files_of(found.folder))
            return record, MergeStep(name, "copied", place.at(f"{run}/{number}"))
        numbered = replace(record, attempt=self.store.next_attempt(spec.recipe, spec.run_id))
        log = None if note else files_of(found.folder).get(LOG)
        home = self.store.save(numbered, log).parent.relative_to(self.store.root).as_posix()
        return numbered, MergeStep(name, "renumbered", f"{shown(place.at(home))}{note}")

    def _join(self, name: str, record: RunRecord, held: list[RunRecord], source: Store) -> MergeStep | None:
        """What becomes of an attempt that the target has; None if it is to be added, with the settings that it has.

        What was withdrawn anywhere counts nowhere.
        """
        failure = record.outcome.failure
        valid = [each for each in held if each.status != "invalid"]
        if record.status == "invalid" and valid and failure is not None:
            held[:] = [self.store.withdraw(each, failure) if each in valid else each for each in held]
            return MergeStep(name, "withdrawn", failure.message)
        if len(valid) < len(held):
            return _already_there(name, held[-1])
        if _content(record) != _content(held[0]):
            return MergeStep(
                name,
                "conflict",
                f"differs from the same attempt in {shown(self.store.place.title)}, whose copy is kept: one was edited",
            )
        met = self._met.get((source.root, record.key), 0)
        for number, each in enumerate(held[met:], met + 1):
            if each.spec.readers == record.spec.readers:
                self._met[source.root, record.key] = number
                return _already_there(name, each)
        return None


def _already_there(name: str, held: RunRecord) -> MergeStep:
    return MergeStep(name, "already there", f"attempt {held.attempt} of {held.spec.run_id}")


def _content(record: RunRecord) -> RunRecord:
    """What must be equal in two copies of an attempt: everything but its number and the settings for reading it."""
    return replace(record, attempt=0, spec=replace(record.spec, readers=ReaderSettings()))
