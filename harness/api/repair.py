"""``qharness repair``: mends what is damaged in a results folder or a cache, from what is proven to be the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.api.locations import open_results, refuse_bundle
from harness.api.results_step import ResultsStep
from harness.api.verify import debris, is_cache, is_shared_cache, within
from harness.core.foreign import shown
from harness.core.identity import RUN_ID
from harness.core.record import Damaged, RunRecord
from harness.errors import NewerRecordError, ResultsError, StorageError, reason_of
from harness.host.machine import cache_folder
from harness.storage.cache import OUTCOME, Cache, shared_faults
from harness.storage.objects import is_url, local_path
from harness.storage.pack import PACK
from harness.storage.place import LocalPlace
from harness.storage.reading import ATTEMPT, attempt_folders, read_attempt
from harness.storage.remote import RemotePlace
from harness.storage.repair import Replacement, from_artifact, from_copy, sealed_now, sealed_record, without_log
from harness.storage.seal import EVIDENCE, LOG, RECORD, Seal
from harness.storage.shared_cache import SharedCache
from harness.storage.store import Store
from harness.storage.working_copy import working_copy

MADE_AGAIN = "the next run that needs it makes it again"
Action = Literal["restored", "sealed", "resealed", "removed", "set aside", "not repaired"]
RepairStep = ResultsStep[Action]
"""What was done to one attempt, folder or file."""


def repair(
    path: str | Path, source: str | Path | None = None, cache: str | Path | None = None, seal: bool = False
) -> Iterator[RepairStep]:
    """Repairs what can be repaired, one step after the other, and yields each when it is done.

    A damaged attempt of a results folder is restored from ``source``, another copy of the results or a baseline, or
    from the artifacts in ``cache`` (default: the user's); it is moved to ``.damaged`` before. What cannot be restored
    is moved there too, and the next run of the recipe makes it again. ``seal`` adds checksums to old records. In a
    cache, what is damaged or left over is deleted. Either may be at a URL.

    Raises UsageError for a bundle, ResultsError for what is neither, and while a sweep writes there;
    StorageError if the disk refuses.
    """
    refuse_bundle(path)
    if is_url(path):
        yield from _remote(str(path), source, cache, seal)
        return
    root = local_path(path)
    if not root.is_dir():
        raise ResultsError(f"{shown(root)}: no such folder")
    root = root if root.name not in ("", "..") else Path(os.path.abspath(root))  # noqa: PTH100 - not resolved
    try:
        if is_cache(root):
            for fault in Cache(root).repair(read_data=True):
                yield RepairStep(str(fault.path), "removed", f"{within(fault)}; {MADE_AGAIN}")
        else:
            yield from _Repair(root, *_sources(source, cache), seal).steps()
    except OSError as error:
        where = shown(Path(str(error.filename or root)))
        raise StorageError(f"{where}: cannot repair it: {reason_of(error)}") from None


def _sources(source: str | Path | None, cache: str | Path | None) -> tuple[Path | None, Path]:
    return None if source is None else Path(source), Path(cache or cache_folder())


def _remote(url: str, source: str | Path | None, cache: str | Path | None, seal: bool) -> Iterator[RepairStep]:
    """Repairs a copy of results, and yields what was done once that is sent."""
    store = open_results(url)
    assert isinstance(store.remote, RemotePlace)
    objects = store.remote.objects
    try:
        if is_shared_cache(objects):
            for fault in shared_faults(SharedCache(objects), read_data=True):
                if not isinstance(fault, str) and fault.kind != "newer":
                    objects.delete([each for each in fault.names if each.endswith(f"/{OUTCOME}")])
                    objects.delete(fault.names)
                    yield RepairStep(objects.at(fault.run), "removed", f"{fault.reason}; {MADE_AGAIN}")
            return
        with working_copy(store.remote) as copy:
            if not copy.recipes:
                raise ResultsError(f"{store.remote.title}: neither a results folder nor a cache; nothing was changed")
            left = [*copy.remove_unfinished()]
            steps = [*_Repair(copy.root, *_sources(source, cache), seal).steps()] if any(copy.before) else []
            copy.send()
        for step in steps:
            yield replace(step, path=copy.located(step.path), detail=copy.located(step.detail))
        for each in left:
            yield RepairStep(each, "removed", "left by an interrupted write")
    except OSError as error:
        raise StorageError(f"cannot repair it: {reason_of(error)}; run the same command again") from None


@dataclass(frozen=True)
class _Repair:
    root: Path
    source: Path | None
    cache: Path
    seal: bool

    def steps(self) -> Iterator[RepairStep]:
        folders = list(attempt_folders(self.root))
        self._refuse_part(folders)
        written = [lock.parent for pattern in (".lock", "*/.lock") for lock in self.root.glob(pattern)]
        recipes = dict.fromkeys((*map(self._recipe, folders), *written))
        if not recipes:
            raise ResultsError(f"{shown(self.root)}: neither a results folder nor a cache; nothing was changed")
        with ExitStack() as locks:
            for recipe in recipes:
                locks.enter_context(Store(recipe.parent).locked(recipe.name))
            for folder in folders:
                yield from self._mended(folder)
            for each in [found for recipe in recipes for found in debris(recipe)]:  # elsewhere may be files of others
                path = Path(each.path)
                if each.state == "debris" and os.path.lexists(path):
                    Store(self.root).disk.remove(path)
                    yield RepairStep(str(path), "removed", each.reason)

    def _refuse_part(self, folders: Sequence[Path]) -> None:
        """Raises ResultsError if the root is the folder of one run or attempt: its recipe's lock is above it."""
        for folder in folders:
            here = Path(os.path.abspath(folder))  # noqa: PTH100 - not resolved
            is_placed = ATTEMPT.fullmatch(here.name) and RUN_ID.fullmatch(here.parent.name)
            if is_placed and not folder.parent.parent.is_relative_to(self.root):
                raise ResultsError(f"{shown(self.root)}: a part of a recipe's folder; name {shown(here.parent.parent)}")

    def _recipe(self, folder: Path) -> Path:
        """The folder of the recipe that an attempt is in; what is nowhere near its place belongs to the whole."""
        recipe = folder.parent if folder.name == PACK else folder.parent.parent
        return recipe if recipe.is_relative_to(self.root) else self.root

    def _mended(self, folder: Path) -> Iterator[RepairStep]:
        try:
            attempt = read_attempt(folder, self.root)
        except NewerRecordError as error:
            yield RepairStep(str(folder), "not repaired", str(error))
            return
        damage = attempt.damage
        if damage is not None and folder.name == PACK:
            yield RepairStep(str(folder), "not repaired", f"{damage.reason}; 'qharness store unpack' saves the rest")
            return
        if damage is not None or (attempt.seal is None and self.seal):
            recipe = self._recipe(folder)
            LocalPlace(recipe.parent).unpack(recipe.parent / folder.relative_to(recipe.parent))
        if damage is None:
            if attempt.record is not None and attempt.seal is None and self.seal:
                yield self._sealed(attempt.record, folder)
            return
        moved = self._put_back(damage)
        if moved is not None:
            yield moved
            if moved.action == "restored":
                yield from self._mended(Path(moved.path))
            return
        found = self._replacement(damage)
        if found is not None:
            yield self._replaced(damage, found)
            attempt = read_attempt(folder, self.root)
            damage = attempt.damage
            if damage is None:
                return
        if attempt.record is not None and attempt.seal is not None:
            yield self._without_log(attempt.record, attempt.seal, damage)
        else:
            aside = self._store(folder).set_aside(self._recipe(folder).name, damage)
            detail = f"{damage.reason}; moved to {shown(aside)}, and the next run makes it again"
            yield RepairStep(str(folder), "set aside", detail)

    def _put_back(self, damage: Damaged) -> RepairStep | None:
        """Moves a sealed record from a wrong folder to its own; leaves it where it is if it is another recipe's.

        None if that is not what is wrong, or if something else is in its own folder.
        """
        folder, recipe = damage.path, damage.path.parent.parent
        record = sealed_record(folder) if recipe.is_relative_to(self.root) else None
        if record is None:
            return None
        if recipe != self.root and record.spec.recipe != recipe.name:
            return RepairStep(str(folder), "not repaired", damage.reason)
        if folder == recipe / record.spec.run_id / str(record.attempt):
            return None
        home = self._store(folder).put_back(recipe.name, folder, record)
        return (
            None if home is None else RepairStep(str(home), "restored", f"was in {shown(folder)}; moved to its place")
        )

    def _store(self, folder: Path) -> Store:
        return Store(self._recipe(folder).parent)

    def _replacement(self, damage: Damaged) -> Replacement | None:
        folder = damage.path
        run_id, attempt = folder.parent.name, folder.name
        if self.source is not None:
            recipes = [self.source, *sorted(each for each in self.source.glob("*") if each.is_dir())]
            for twin in (each / run_id / attempt for each in recipes):  # in a folder or in a pack
                found = from_copy(folder, twin, self.source)
                if found is not None:
                    return found

        if damage.log_only:
            return None
        artifacts = Cache(self.cache)
        return from_artifact(folder, self._store(folder), artifacts.outcome, f"the artifact in {shown(self.cache)}")

    def _exchange(self, damage: Damaged, files: Mapping[str, bytes]) -> str:
        """Puts an attempt with these files in the place of a damaged one; returns to where that was moved.

        Writes the new files first, so that a full disk loses nothing.
        """
        folder, store = damage.path, self._store(damage.path)
        place = LocalPlace(store.root, store.disk)
        with place.filling(folder.relative_to(store.root).as_posix(), files) as part:
            aside = store.set_aside(self._recipe(folder).name, damage)
            place.disk.rename(part, folder)
        return aside

    def _replaced(self, damage: Damaged, found: Replacement) -> RepairStep:
        aside = self._exchange(damage, found.files)
        detail = f"{damage.reason}; from {found.source}; what was there is in {shown(aside)}"
        return RepairStep(str(damage.path), "restored", detail)

    def _without_log(self, record: RunRecord, seal: Seal, damage: Damaged) -> RepairStep:
        folder, content = damage.path, without_log(record, seal)
        if not os.path.lexists(folder / LOG):
            self._store(folder).disk.write_whole(folder / RECORD, content)
            return RepairStep(str(folder), "resealed", f"{damage.reason}; sealed without a log")
        evidence = folder / EVIDENCE
        files = {RECORD: content, **({EVIDENCE: evidence.read_bytes()} if EVIDENCE in seal.files else {})}
        aside = self._exchange(damage, files)
        detail = f"{damage.reason}; sealed without it; the damaged log is in {shown(aside)}"
        return RepairStep(str(folder), "resealed", detail)

    def _sealed(self, record: RunRecord, folder: Path) -> RepairStep:
        try:
            content = sealed_now(record, folder)
        except ResultsError as error:
            return RepairStep(str(folder), "not repaired", str(error))
        self._store(folder).disk.write_whole(folder / RECORD, content)
        return RepairStep(str(folder), "sealed", "with its content of now; what changed it earlier is not seen")
