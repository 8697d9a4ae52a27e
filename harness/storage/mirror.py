"""A copy, on this machine, of the results below a URL, so that they are read like any others.

Only objects that are new or changed are fetched. The copy is made of files that a results folder has, and nothing is
ever written from it to the store: it may be deleted at any time. What readers keep beside results, in hidden files,
stays.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from harness.core.foreign import parse_json, read_file
from harness.core.identity import digest
from harness.core.owner import current_owner
from harness.errors import ResultsError, reason_of
from harness.storage.objects import Listed, Objects
from harness.storage.pack import PACK
from harness.storage.reading import MAX_FOLDER_DEPTH
from harness.storage.seal import MAX_BYTES, RECORD

CLAIM = ".claim"
"""The first object of an attempt: whoever creates it has its number. Without a record beside it, the attempt is being
written, or its writing was interrupted."""
INVENTORY = ".inventory.json"
"""What each file was fetched from: the object's version and size, and the file's own time of change."""
MAX_INVENTORY_BYTES = 512 * 2**20
MAX_INVENTORY_VALUES = 20_000_000
MAX_NAME_BYTES = 255
"""Of one part of a name: more than any file system takes."""
TRIES = 3
"""How often the objects are listed again because one vanished while it was fetched."""


@dataclass(frozen=True)
class Mirror:
    """The copy of what is below a URL, in a folder of its own."""

    objects: Objects
    root: Path

    @classmethod
    def of(cls, objects: Objects, folder: Path) -> Mirror:
        """The mirror of a URL, in a folder that holds several."""
        last = "".join(letter if letter.isalnum() else "-" for letter in objects.url.rpartition("/")[2])
        return cls(objects, folder / f"{last[:40]}-{digest(objects.url)}")

    def refresh(self, folder: str = "") -> None:
        """Makes the copy of a folder, or of all, equal to what the store has now.

        Raises ResultsError if the store cannot be read, or the copy not be written.
        """
        from filelock import FileLock

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root.with_name(f".{self.root.name}.lock")):
                self._refresh(folder)
        except OSError as error:
            raise ResultsError(reason_of(error)) from None

    def _refresh(self, folder: str) -> None:
        known = self._inventory()
        try:
            for left in reversed(range(TRIES)):
                wanted = _results(self.objects.list(folder))
                for name in [each for each in known if each not in wanted and _is_below(each, folder)]:
                    self._forget(name)
                    del known[name]
                new = [each for each in wanted.values() if not self._has(each, known.get(each.name))]
                try:
                    for each in (pack for pack in new if _is_pack(pack.name)):
                        known[each.name] = [each.version, each.bytes, self._fetch(each)]
                    for each, content in self.objects.read_all([other for other in new if not _is_pack(other.name)]):
                        known[each.name] = [each.version, each.bytes, self._write(each.name, content)]
                except FileNotFoundError:
                    if left == 0:
                        raise
                    continue
                return
        finally:
            self._write(INVENTORY, json.dumps(known).encode())

    def _inventory(self) -> dict[str, list[str | int]]:
        """What was fetched. If that is not known, all is deleted, and will be fetched again."""
        with suppress(ResultsError):
            path = self.root / INVENTORY
            raw = parse_json(
                read_file(path, MAX_INVENTORY_BYTES, ResultsError), INVENTORY, ResultsError, MAX_INVENTORY_VALUES
            )
            if isinstance(raw, dict) and all(isinstance(each, list) and len(each) == 3 for each in raw.values()):
                return raw
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return {}

    def _has(self, listed: Listed, known: list[str | int] | None) -> bool:
        if known is None or known[:2] != [listed.version, listed.bytes]:
            return False
        try:
            status = (self.root / listed.name).stat()
        except OSError:
            return False
        return status.st_mtime_ns == known[2] and status.st_size == listed.bytes

    def _write(self, name: str, content: bytes) -> int:
        """Writes a file, which appears whole; returns its time of change."""
        with self._appearing(name) as part:
            part.write_bytes(content)
        return (self.root / name).stat().st_mtime_ns

    def _fetch(self, listed: Listed) -> int:
        """The same for an object that may be larger than memory."""
        with self._appearing(listed.name) as part:
            self.objects.fetch(listed, part)
        return (self.root / listed.name).stat().st_mtime_ns

    @contextmanager
    def _appearing(self, name: str) -> Iterator[Path]:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{current_owner()}.part")
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        path = self.root / name
        path.unlink(missing_ok=True)
        for each in path.parents:
            if each == self.root or any(each.iterdir()):
                return
            each.rmdir()


def _results(listed: Mapping[str, Listed]) -> dict[str, Listed]:
    """The files of results among objects, without what readers of a folder would not look at.

    Of an object that is larger than such a file may be, just enough is fetched for its reader to see that.
    """
    found = {}
    for name, each in listed.items():
        path = PurePosixPath(name)
        limit = each.bytes if _is_pack(name) else MAX_BYTES.get(path.name)
        if limit is not None and not _is_unfinished(str(path.parent), listed) and _is_plain(name):
            found[name] = replace(each, bytes=min(each.bytes, limit + 1))
    return found


def unfinished(listed: Mapping[str, Listed]) -> tuple[str, ...]:
    """The folders of attempts that are being written, or whose writing was interrupted."""
    claimed = (name.rpartition("/")[0] for name in listed if name.endswith(f"/{CLAIM}"))
    return tuple(sorted(folder for folder in claimed if _is_unfinished(folder, listed)))


def _is_unfinished(folder: str, listed: Mapping[str, Listed]) -> bool:
    return f"{folder}/{CLAIM}" in listed and f"{folder}/{RECORD}" not in listed


def _is_pack(name: str) -> bool:
    return name.rpartition("/")[2] == PACK


def _is_plain(name: str) -> bool:
    """Whether an object's name is a path in a results folder. A name may hold anything, and come from anybody."""
    parts = name.split("/")
    return len(parts) <= MAX_FOLDER_DEPTH + 1 and not any(
        not part or part.startswith(".") or "\0" in part or len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts
    )


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")
