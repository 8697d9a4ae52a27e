"""``qharness store pack`` and ``unpack``: the attempts of a recipe in one file, and in folders again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.foreign import shown
from harness.core.identity import RUN_ID
from harness.errors import NewerRecordError, ResultsError, StorageError
from harness.storage.disk import Disk
from harness.storage.pack import PACK, add, pack_of, without
from harness.storage.place import LocalPlace
from harness.storage.reading import ATTEMPT, attempt_folders, read_attempt
from harness.storage.repair import FILES
from harness.storage.store import Store

BATCH_BYTES = 64 * 2**20
"""Files that are written, made durable and read back together."""


@dataclass(frozen=True)
class PackStep:
    """What was done to one recipe: how many attempts were moved, and which were left where they are, and why."""

    recipe: Path
    moved: int
    left: Mapping[Path, str]


def pack(results: str | Path, disk: Disk | None = None) -> Iterator[PackStep]:
    """Moves every whole attempt of a results folder into its recipe's pack, byte by byte; yields one step per recipe.

    A folder is deleted when its files are in the pack, durable and read back, so that an interruption loses nothing;
    the same command goes on. Damaged attempts, and those with other files, stay.
    Raises ResultsError for a folder without records, and while a sweep writes there; StorageError if the disk refuses.
    """
    return _steps(Path(results), _pack, disk or Disk())


def unpack(results: str | Path, disk: Disk | None = None) -> Iterator[PackStep]:
    """Gives every attempt in a pack its folder back, and deletes the packs. Raises as ``pack`` does."""
    return _steps(Path(results), _unpack, disk or Disk())


def _steps(root: Path, change: Callable[[Path, Path, LocalPlace], PackStep], disk: Disk) -> Iterator[PackStep]:
    if not root.is_dir():
        raise ResultsError(f"{shown(root)}: no such folder; name a results folder on this machine")
    recipes = dict.fromkeys(
        folder.parent.parent
        for folder in attempt_folders(root)
        if RUN_ID.fullmatch(folder.parent.name) and folder.parent.parent.is_relative_to(root)
    )
    if not recipes:
        raise ResultsError(f"{shown(root)}: contains no records of 'qharness run'")
    for recipe in recipes:
        place = LocalPlace(recipe.absolute().parent, disk)
        place.own(place.root / recipe.name / PACK)
        try:
            with Store(place.root).locked(recipe.name):
                yield change(recipe, root, place)
        except OSError as error:
            where = shown(Path(str(error.filename or recipe)))
            raise StorageError(f"{where}: {error.strerror}; nothing is lost, run the same command again") from None


def _pack(recipe: Path, root: Path, place: LocalPlace) -> PackStep:
    left: dict[Path, str] = {}
    waiting: dict[Path, dict[str, bytes]] = {}
    moved = size = 0
    if (there := pack_of(recipe)) is not None and there.faults:  # adding to it would hide them
        damage = f"{'; '.join(there.faults)}; nothing is added to it, and 'qharness store unpack' saves what is whole"
        return PackStep(recipe, 0, {there.path: damage})
    folders = [each for each in attempt_folders(recipe) if each.is_dir() and each.parent.parent == recipe]
    for folder in folders:
        reason = _obstacle(folder, root)
        if reason is not None:
            left[folder] = reason
            continue
        waiting[folder] = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
        size += sum(map(len, waiting[folder].values()))
        if size > BATCH_BYTES:
            _move(recipe, waiting, place)
            moved, size, waiting = moved + len(waiting), 0, {}
    _move(recipe, waiting, place)
    return PackStep(recipe, moved + len(waiting), left)


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
        return PackStep(recipe, 0, {})
    left = dict.fromkeys([pack.path], "; ".join(pack.faults)) if pack.faults else {}
    moved = 0
    for key, members in pack.attempts.items():
        folder = place.root / recipe.name / key
        if os.path.lexists(folder):  # packing was interrupted; the folder is what counts
            if (reason := _obstacle(recipe / key, root)) is not None:
                left[recipe / key] = f"{reason}; the pack has this attempt too, and stays"
            continue
        place.copy_from_pack(folder, pack, members)
        moved += 1
    if not left:
        place.disk.remove(pack.path)
    return PackStep(recipe, moved, left)
