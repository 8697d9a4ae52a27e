"""What was derived from records, kept beside them in hidden files, so that it need not be derived again.

Every entry is under a key that names the content which it was derived from. A file begins with a line that names the
code that derived the entries and the folder that they were made in; parts follow, one for each command that derived
something new, each after a line with the hash of its lines. A file that is missing, of other code or copied from
elsewhere costs time, and changes no answer; of a damaged one, the parts before the damage are used. ``qharness verify``
does not use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from harness.core.foreign import read_file
from harness.errors import ResultsError
from harness.storage.disk import Disk

SUMMARIES = ".summaries"
"""Rows of the table; a file in the results folder that a user names, as are the others."""
TABLES = ".tables"
"""The whole tables of all records, but their rows."""
COMPARED = ".compared"
"""What ``compare`` found of pairs of cases."""
TRACED = ".traced"
"""The figures of cases, as ``history`` shows them."""
COMPARISON = ".comparison"
"""The whole of the last comparison."""
HISTORY = ".history"
"""The whole of the last history."""
RECOMMENDATION = ".recommendation"
"""All that the last ``recommend`` showed."""
REPORT = ".report"
"""The files of the last report of many records."""
CODE = ("analysis", "core", "figures", "plugins.py", "stats", "storage", "tasks")
"""The rooms whose code reads records, and derives rows and findings from them; and the list of the figures."""
LIBRARIES = ("numpy", "scipy")
MAX_BYTES = 2**30
SPARE_ENTRIES = 1_000
"""Entries that a file may have beside four for each record: with more, those that were not used last are dropped."""


@cache
def code() -> str:
    """A digest of all that rows and findings depend on but the records: what other code derived is not used."""
    versions = (*(version(library) for library in LIBRARIES), sys.version)  # Python 3.12 adds floats up differently
    digest = hashlib.sha256(" ".join(versions).encode())
    root = Path(__file__).parents[1]
    for path in sorted(path for name in CODE for path in _python_files(root / name)):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _python_files(path: Path) -> Iterable[Path]:
    return path.rglob("*.py") if path.is_dir() else [path]


class _UnsyncedDisk(Disk):
    """Not synced to disk: the hashes show a file that a crash cut short, and it is derived again."""

    def _fsync(self, path: Path) -> None:
        pass


class SummaryFile:
    """The entries of one kind in a results folder that a certain ``code`` derived."""

    def __init__(self, folder: Path, code: str, name: str = SUMMARIES) -> None:
        self._path = folder / name
        self._code = code
        self._whole = False
        self._bytes = 0
        self._kept: dict[str, str] = {}

    def read(self, first: str = "") -> dict[str, str]:
        """The entries by key; none if they cannot be used, or if the first one does not have the key ``first``."""
        self._kept, self._whole = {}, False
        with suppress(OSError, ResultsError, ValueError):
            content = read_file(self._path, MAX_BYTES, ResultsError)
            head = self._head()
            if content.startswith(head) and content.startswith(first.encode(), content.find(b"\n", len(head)) + 1):
                self._bytes = len(content)
                self._whole = self._read_parts(memoryview(content)[len(head) :])
        return self._kept

    def add(self, entries: Mapping[str, str], records: int) -> None:
        """Keeps the entries that are not kept yet, each of one line, if the folder can be written.

        ``entries`` are all that were used, of folders with so many ``records``.
        """
        new = {key: entry for key, entry in entries.items() if key not in self._kept}
        if not new:
            return
        content = _part(new)
        few = len(self._kept) + len(new) <= 4 * records + SPARE_ENTRIES
        with suppress(OSError):
            if self._whole and few and self._bytes + len(content) < MAX_BYTES:
                self._append(content)
            else:
                self._write(entries)

    def replace(self, entries: Mapping[str, str]) -> None:
        """Keeps these entries and no others, if the folder can be written."""
        with suppress(OSError):
            self._write(entries)

    def _write(self, entries: Mapping[str, str]) -> None:
        content = self._head() + _part(entries)
        if len(content) < MAX_BYTES:
            _UnsyncedDisk().write_whole(self._path, content)

    def _append(self, content: bytes) -> None:
        """Adds a part, at once, so that two processes' do not mix; not to a file that other code wrote meanwhile."""
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags), "r+b", buffering=0) as file:
            head = self._head()
            if file.read(len(head)) == head:
                file.write(content)

    def _read_parts(self, content: memoryview) -> bool:
        """Whether all parts are whole."""
        while content:
            end = bytes(content[:_MAX_HEAD]).find(b"\n")
            digest, _, size = bytes(content[: max(end, 0)]).partition(b" ")
            if end < 0 or not size.isdigit():
                return False
            lines = content[end + 1 : end + 1 + int(size)]
            if len(lines) != int(size) or hashlib.sha256(lines).hexdigest().encode() != digest:
                return False
            for key, _, entry in (line.partition(" ") for line in str(lines, "utf-8").split("\n")[:-1]):
                self._kept[key] = entry
            content = content[end + 1 + int(size) :]
        return True

    def _head(self) -> bytes:
        status = self._path.parent.stat()
        return json.dumps([self._code, status.st_dev, status.st_ino]).encode() + b"\n"


_MAX_HEAD = 100
"""Bytes of the line before a part: a hash and a number."""


def _part(entries: Mapping[str, str]) -> bytes:
    content = "".join(f"{key} {entry}\n" for key, entry in entries.items()).encode()
    return f"{hashlib.sha256(content).hexdigest()} {len(content)}\n".encode() + content
