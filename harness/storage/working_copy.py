"""A copy on this machine of the results at a URL, which is changed as any folder is, and then sent.

So whatever changes a folder of results, such as a repair, changes a bucket too. The leases of all recipes in it are
held meanwhile. Nothing is lost at any moment: what was renamed is copied in the store, what was written is sent and
read back, and only then what is gone is deleted. What is interrupted can be repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

from harness.core.owner import temporary_folder
from harness.errors import ResultsError, reason_of
from harness.storage.checksums import file_sha256
from harness.storage.mirror import CLAIM, unfinished
from harness.storage.pack import PACK
from harness.storage.remote import RemotePlace
from harness.storage.seal import MAX_BYTES, RECORD
from harness.storage.store import DAMAGED

Stamp = tuple[int, int, int]
"""A file's number, size and time of change: it differs if the content does, and stays if the file is renamed."""


@dataclass(frozen=True)
class WorkingCopy:
    """The folder ``root``, in which ``recipes`` may be changed until ``send``; ``""`` if the URL is that of one."""

    root: Path
    place: RemotePlace
    recipes: tuple[str, ...]
    before: Mapping[str, Stamp]

    def located(self, text: str) -> str:
        """A path in the copy, or a message with one, as the user knows it: by the URL."""
        return text.replace(str(self.root), self.place.title)

    def send(self) -> None:
        """Makes the store equal to the copy. Raises OSError, ResultsError if an object does not hold what was sent."""
        objects, after = self.place.objects, _stamps(self.root)
        origin = {stamp: name for name, stamp in self.before.items()}
        changed = sorted((name for name, stamp in after.items() if self.before.get(name) != stamp), key=_record_last)
        moved = _moved_before_overwritten({name: origin[after[name]] for name in changed if after[name] in origin})
        written = [name for name in changed if after[name] not in origin]
        begun = {_parent(name) for name in changed if _last(name) == RECORD} - set(map(_parent, self.before))
        for folder in sorted(begun):  # claimed until its record is there, it hides no attempt in a pack
            self.place.refuse_lost(folder)
            objects.create(f"{folder}/{CLAIM}", b"")
        for name, source in moved:
            self.place.refuse_lost(name)
            objects.copy(source, name)
        for name in written:
            self.place.refuse_lost(name)
            objects.send(self.root / name, name)
        self._read_back(written)
        gone = [name for name in self.before if name not in after]
        folders = {_parent(name) for name in gone if _last(name) == RECORD} - set(map(_parent, after))
        self._delete([name for name in gone if _parent(name) not in folders], sorted(folders))

    def remove_unfinished(self) -> Iterator[str]:
        """Deletes what interrupted writes left of attempts; yields the URL of each."""
        for folder in unfinished(self.place.objects.list()):
            if _recipe(f"{folder}/{CLAIM}") in self.recipes:
                self.place.refuse_lost(folder)
                self.place.remove(folder)
                yield self.place.at(folder)

    def _read_back(self, names: list[str]) -> None:
        for name in names:
            with temporary_folder() as folder:
                self.place.objects.fetch(self.place.objects.stat(name), folder / "back")
                if file_sha256(folder / "back") != file_sha256(self.root / name):
                    raise ResultsError(f"{self.place.at(name)}: does not hold what was sent; nothing was deleted")

    def _delete(self, names: list[str], folders: list[str]) -> None:
        """Deletes files, and attempts with their claims, which go last: until then readers ignore what is left."""
        objects = self.place.objects
        for name in (*names, *folders):
            self.place.refuse_lost(name)
        for folder in folders:
            if CLAIM not in objects.names(folder):
                objects.create(f"{folder}/{CLAIM}", b"")
        objects.delete([f"{folder}/{RECORD}" for folder in folders] + names)
        own = (RECORD, CLAIM)
        objects.delete([name for name in self.before if _parent(name) in folders and _last(name) not in own])
        objects.delete([f"{folder}/{CLAIM}" for folder in folders])


@contextmanager
def working_copy(place: RemotePlace) -> Iterator[WorkingCopy]:
    """The copy, and the leases of its recipes while it is used.

    Raises ResultsError if the store cannot be read, a sweep writes there, or there are no results; OSError.
    """
    try:
        listed = place.objects.list()
    except OSError as error:
        raise ResultsError(reason_of(error)) from None
    with ExitStack() as held, temporary_folder() as folder:
        recipes = tuple(sorted({each for name in listed if (each := _recipe(name)) is not None}))
        for each in recipes:
            held.enter_context(place.locked(each))
        place.mirror.refresh()
        root = folder / place.title.rpartition("/")[2]
        root.mkdir()
        tops = {recipe.partition("/")[0] for recipe in recipes}
        for source in place.mirror.root.iterdir():
            if source.is_dir() and not source.name.startswith(".") and tops & {"", source.name}:
                shutil.copytree(source, root / source.name, ignore=shutil.ignore_patterns(".*"))
        for name in listed:
            parts = PurePosixPath(name).parts
            if DAMAGED in parts[:-1]:  # so that nothing takes the name of what was set aside before
                (root / Path(*parts[: parts.index(DAMAGED) + 2])).mkdir(parents=True, exist_ok=True)
        yield WorkingCopy(root, place, recipes, _stamps(root))


def _recipe(name: str) -> str | None:
    """The folder of the recipe that an object is of, "" for the URL itself; None for what is no file of results."""
    *folders, last = name.split("/")
    if last == PACK:
        return "/".join(folders)
    return "/".join(folders[:-2]) if last in (*MAX_BYTES, CLAIM) and DAMAGED not in folders else None


def _stamps(root: Path) -> dict[str, Stamp]:
    """The files of results in a folder, those set aside included, by their names in it."""
    found = {}
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") and part != DAMAGED for part in parts)
        if not hidden and path.name in (*MAX_BYTES, PACK) and path.is_file():
            status = path.stat()
            found["/".join(parts)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _moved_before_overwritten(moves: Mapping[str, str]) -> list[tuple[str, str]]:
    """The new name and the old one of each file, a folder's files together, in an order that keeps all contents.

    A folder gets new files only after its own were copied to where they belong.
    """
    order = TopologicalSorter[str]()
    for name, source in moves.items():
        order.add(_parent(name))
        if _parent(source) != _parent(name):
            order.add(_parent(source), _parent(name))
    place = {folder: number for number, folder in enumerate(order.static_order())}
    return sorted(moves.items(), key=lambda move: (place[_parent(move[0])], _record_last(move[0])))


def _record_last(name: str) -> bool:
    return _last(name) == RECORD


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
