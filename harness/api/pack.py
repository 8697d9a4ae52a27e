"""``qharness store pack`` and ``unpack``: the attempts of a recipe in one file, and in folders again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.api.locations import open_results, refuse_bundle
from harness.core.foreign import shown
from harness.core.identity import RUN_ID
from harness.errors import NewerRecordError, ResultsError, StorageError, reason_of
from harness.storage.disk import Disk
from harness.storage.objects import is_url, local_path
from harness.storage.pack import PACK, add, pack_of, without
from harness.storage.place import LocalPlace
from harness.storage.reading import ATTEMPT, attempt_folders, read_attempt
from harness.storage.remote import RemotePlace
from harness.storage.repair import FILES
from harness.storage.store import Store
from harness.storage.working_copy import working_copy

Change = Callable[[Path, Path, LocalPlace], "PackStep"]
"""What is done to the folder of a recipe in a results folder."""
BATCH_BYTES = 64 * 2**20
"""Files that are written, made durable and read back together."""


@dataclass(frozen=True)
class PackStep:
    """What was done to one recipe: how many attempts were moved, and which were left where they are, and why.

    Folders and files are named by their paths or URLs.
    """

    recipe: str
    moved: int
    left: Mapping[str, str]


def pack(results: str | Path, disk: Disk | None = None) -> Iterator[PackStep]:
    """Moves every whole attempt of a results folder into its recipe's pack, byte by byte; yields one step per recipe.

    A folder is deleted when its files are in the pack, durable and read back, so that an interruption loses nothing;
    the same command goes on. Damaged attempts, and those with other files, stay. Results may be at a URL.
    Raises UsageError for a bundle, ResultsError for a folder without records, and while a sweep writes there;
    StorageError if the disk refuses.
    """
    return _anywhere(results, _pack, disk or Disk())


def unpack(results: str | Path, disk: Disk | None = None) -> Iterator[PackStep]:
    """Gives every attempt in a pack its folder back, and deletes the packs. Raises as ``pack`` does."""
    return _anywhere(results, _unpack, disk or Disk())


def _anywhere(results: str | Path, change: Change, disk: Disk) -> Iterator[PackStep]:
    refuse_bundle(results)
    if not is_url(results):
        return _steps(local_path(results), change, disk)
    return _remote_steps(open_results(results), change, disk)


def _remote_steps(store: Store, change: Change, disk: Disk) -> Iterator[PackStep]:
    """Changes a copy, and yields what was done once it is sent."""
    assert isinstance(store.remote, RemotePlace)
    try:
        with working_copy(store.remote) as copy:
            steps = list(_steps(copy.root, change, disk, copy.place.title))
            copy.send()
    except OSError as error:
        raise StorageError(f"{reason_of(error)}; nothing is lost, run the same command again") from None
    for step in steps:
        left = {copy.located(path): copy.located(reason) for path, reason in step.left.items()}
        yield PackStep(copy.located(step.recipe), step.moved, left)


def _steps(root: Path, change: Change, disk: Disk, title: str | None = None) -> Iterator[PackStep]:
    """``title`` is what messages call the folder."""
    title = title or shown(root)
    if not root.is_dir():
        raise ResultsError(f"{title}: no such folder; name a results folder")
    recipes = dict.fromkeys(
        folder.parent.parent
        for folder in attempt_folders(root)
        if RUN_ID.fullmatch(folder.parent.name) and folder.parent.parent.is_relative_to(root)
    )
    if not recipes:
        raise ResultsError(f"{title}: contains no records of 'qharness run'")
    for recipe in recipes:
        place = LocalPlace(recipe.absolute().parent, disk)
        place.own(place.root / recipe.name / PACK)
        try:
            with Store(place.root).locked(recipe.name):
                yield change(recipe, root, place)
        except OSError as error:
            where = shown(Path(str(error.filename or recipe)))
            raise StorageError(f"{where}: {reason_of(error)}; nothing is lost, run the same command again") from None


def _pack(recipe: Path, root: Path, place: LocalPlace) -> PackStep:
    left: dict[str, str] = {}
    waiting: dict[Path, dict[str, bytes]] = {}
    moved = size = 0
    if (there := pack_of(recipe)) is not None and there.faults:  # adding to it would hide them
        damage = f"{'; '.join(there.faults)}; nothing is added to it, and 'qharness store unpack' saves what is whole"
        return PackStep(str(recipe), 0, {str(there.path): damage})
    folders = [each for each in attempt_folders(recipe) if each.is_dir() and each.parent.parent == recipe]
    for folder in folders:
        reason = _obstacle(folder, root)
        if reason is not None:
            left[str(folder)] = reason
            continue
        waiting[folder] = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
        size += sum(map(len, waiting[folder].values()))
        if size > BATCH_BYTES:
            _move(recipe, waiting, place)
            moved, size, waiting = moved + len(waiting), 0, {}
    _move(recipe, waiting, place)
    return PackStep(str(recipe), moved + len(waiting), left)


def _obstacle(folder: Path, root: Path) -> str | None:
    """Why an attempt cannot be packed without loss; None if it can."""
    if not (ATTEMPT.fullmatch(folder.name) and RUN_ID.fullmatch(folder.parent.name)):
        return "not the folder of an attempt"
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.name not in FILES or each.is_symlink() or not each.is_file():
            return f"has something else than the files of a record: {shown(each.name)}"
    try:
        damage = read_attempt(folder, root).damage
    except NewerRecordError as error:
        return str(error)
    return None if damage is None else damage.reason


def _move(recipe: Path, attempts: Mapping[Path, Mapping[str, bytes]], place: LocalPlace) -> None:
    keys = {f"{folder.parent.name}/{folder.name}": files for folder, files in attempts.items()}
    pack = pack_of(recipe)
    for key in keys:
        if pack is not None and key in pack.attempts and not pack.attempts[key].keys() <= keys[key].keys():
            without(recipe, key, place.disk)  # an older copy, with a file that the attempt has no more
    add(recipe, keys, place.disk)
    pack = pack_of(recipe)
    for folder, (key, files) in zip(attempts, keys.items(), strict=True):
        members = {} if pack is None else pack.attempts.get(key, {})
        if pack is None or {name: pack.read(member) for name, member in members.items()} != files:
            raise ResultsError(f"{shown(recipe / PACK)}: does not hold what was written; {shown(folder)} stays")
        place.disk.remove(folder)
        with suppress(OSError):  # other attempts of this run stay
            folder.parent.rmdir()


def _unpack(recipe: Path, root: Path, place: LocalPlace) -> PackStep:
    pack = pack_of(recipe)
    if pack is None:
        return PackStep(str(recipe), 0, {})
    left = dict.fromkeys([str(pack.path)], "; ".join(pack.faults)) if pack.faults else {}
    moved = 0
    for key, members in pack.attempts.items():
        folder = place.root / recipe.name / key
        if os.path.lexists(folder):  # packing was interrupted; the folder is what counts
            if (reason := _obstacle(recipe / key, root)) is not None:
                left[str(recipe / key)] = f"{reason}; the pack has this attempt too, and stays"
            continue
        place.copy_from_pack(folder, pack, members)
        moved += 1
    if not left:
        place.disk.remove(pack.path)
    return PackStep(str(recipe), moved, left)
