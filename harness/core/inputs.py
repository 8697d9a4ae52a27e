"""What a run reads of the user's files, as the planner saw it when it hashed them.

This stands beside a spec and not in it: sizes and times do not belong to a run's identity.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness.core.identity import file_sha256
from harness.errors import SourceError

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class InputFile:
    """A file when it was hashed; ``changed_ns`` is the time of its last change of any kind (ctime).

    ``sha256`` is of its content. A file in a hub's cache is not hashed while planning: it is named after its hash,
    ``sha256`` or, of a small one, git's ``blob``; both are empty where the name is no hash.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    changed_ns: int
    sha256: str = ""
    blob: str = ""

    def moved(self, touched: bool = False) -> str | None:
        """How the file on disk now differs from this by size, mtime or inode (``touched``: by any change at all)."""
        try:
            now = seen(Path(self.path))
        except OSError as error:
            return f"{self.path}: gone ({error.strerror})"
        pairs = {
            "size": (self.size, now.size),
            "modification time": (self.mtime_ns, now.mtime_ns),
            "inode": (self.inode, now.inode),
            **({"change time": (self.changed_ns, now.changed_ns)} if touched else {}),
        }
        other = [name for name, (before, after) in pairs.items() if before != after]
        if other == ["inode"] and (self.sha256 or self.blob):  # a copy in its place, or a file system that counts anew
            return self.rewritten()
        return f"{self.path}: another {' and '.join(other)} than when it was hashed" if other else None

    def rewritten(self) -> str | None:
        """How its content now differs: the whole file is hashed again."""
        try:
            if self.sha256 and file_sha256(Path(self.path)) != self.sha256:
                return f"{self.path}: another content than when it was hashed"
            if self.blob and git_blob(Path(self.path)) != self.blob:
                return f"{self.path}: another content than the hub's"
        except OSError as error:
            return f"{self.path}: gone ({error.strerror})"
        return None


@dataclass(frozen=True)
class Input:
    """A model, a text or a task: its files; of a folder also the ``patterns`` of what in it decides, and their names.

    A file that appears in a folder may decide as much as one that changed.
    """

    files: tuple[InputFile, ...]
    folder: str = ""
    patterns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def moved(self, touched: bool = False) -> str | None:
        """The first difference that can be seen without reading a file; None where there is none."""
        for file in self.files:
            found = file.moved(touched)
            if found is not None:
                return found
        if not self.folder:
            return None
        try:
            now = matching(Path(self.folder), self.patterns)
        except OSError as error:
            return f"{self.folder}: gone ({error.strerror})"
        added, gone = sorted(set(now) - set(self.names)), sorted(set(self.names) - set(now))
        if added or gone:
            how = "added" if added else "removed"
            return f"{self.folder}: files {how} since it was hashed: {', '.join(added or gone)}"
        return None


def hashed(path: Path) -> InputFile:
    """A file and its hash, of one moment. Raises SourceError where it changes meanwhile."""
    before = seen(path)
    sha256 = file_sha256(path)
    if seen(path) != before:
        raise SourceError(f"{path}: changed while it was hashed; plan again when nothing writes to it")
    return InputFile(before.path, before.size, before.mtime_ns, before.inode, before.changed_ns, sha256)


def seen(path: Path) -> InputFile:
    """A file that is not hashed. Raises OSError where it is not there."""
    found = path.stat()
    return InputFile(str(path), found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)


def of_folder(folder: Path, files: tuple[InputFile, ...], patterns: tuple[str, ...]) -> Input:
    """The files of a folder that decide what it computes."""
    return Input(files, str(folder), patterns, matching(folder, patterns))


def matching(folder: Path, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The names in a folder that fit a pattern."""
    names = (path.name for path in folder.iterdir())
    return tuple(sorted(name for name in names if any(fnmatchcase(name, each) for each in patterns)))


def git_blob(path: Path) -> str:
    """What git calls a file's content: sha1 of ``blob SIZE`` and the bytes (gitformat-pack)."""
    found = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
