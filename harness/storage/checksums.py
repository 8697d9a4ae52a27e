"""Hashes of files, and how a file or a folder differs from when it was hashed."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from harness.core.foreign import open_file
from harness.core.inputs import Input, InputFile
from harness.errors import SourceError, reason_of

CHUNK_BYTES = 2**20


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal. Raises SourceError if it is no regular file or cannot be read."""
    digest = hashlib.sha256()
    with open_file(path, SourceError) as (file, _):
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def git_blob(path: Path) -> str:
    """The hash of a git blob: sha1 of ``blob SIZE``, a zero byte and the content (gitformat-pack)."""
    with open_file(path, SourceError) as (file, size):
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def stat_file(path: Path) -> InputFile:
    """A file without its hash. Raises OSError if it does not exist."""
    now = path.stat()
    return InputFile(str(path), now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns)


def hash_file(path: Path) -> InputFile:
    """A file and its hash, consistent with each other. Raises SourceError if the file changes meanwhile."""
    before = stat_file(path)
    sha256 = file_sha256(path)
    if stat_file(path) != before:
        raise SourceError(f"{path}: changed while it was being hashed; plan again when nothing writes to it")
    return InputFile(before.path, before.size, before.mtime_ns, before.inode, before.changed_ns, sha256)


def list_folder(folder: Path, files: tuple[InputFile, ...], patterns: tuple[str, ...]) -> Input:
    """The files of a folder that affect its results, and the names of all files that match a pattern."""
    return Input(files, str(folder), patterns, _matching_names(folder, patterns))


def find_difference(known: Input, any_change: bool = False) -> str | None:
    """The first difference visible without reading file contents, or None.

    ``any_change`` counts a change of any kind (ctime), not only another size, mtime or inode.
    """
    first = next((difference for file in known.files if (difference := compare_stat(file, any_change))), None)
    if first is not None or not known.folder:
        return first
    try:
        now = _matching_names(Path(known.folder), known.patterns)
    except OSError as error:
        return f"{known.folder}: gone ({reason_of(error)})"
    added, gone = sorted(set(now) - set(known.names)), sorted(set(known.names) - set(now))
    if added or gone:
        how = "added" if added else "removed"
        return f"{known.folder}: files {how} since it was hashed: {', '.join(added or gone)}"
    return None


def compare_stat(file: InputFile, any_change: bool = False) -> str | None:
    """How a file on disk differs in size, mtime or inode, with ``any_change`` also in ctime; None if it does not."""
    try:
        now = stat_file(Path(file.path))
    except OSError as error:
        return f"{file.path}: gone ({reason_of(error)})"
    pairs = {
        "size": (file.size, now.size),
        "modification time": (file.mtime_ns, now.mtime_ns),
        "inode": (file.inode, now.inode),
        **({"change time": (file.changed_ns, now.changed_ns)} if any_change else {}),
    }
    other = [name for name, (before, after) in pairs.items() if before != after]
    if other == ["inode"] and (file.sha256 or file.blob):  # a copy, or a file system that renumbered its inodes
        return compare_content(file)
    return f"{file.path}: another {' and '.join(other)} than when it was hashed" if other else None


def compare_content(file: InputFile) -> str | None:
    """How a file's content differs now, by hashing it again; None if it does not."""
    path = Path(file.path)
    try:
        if file.sha256 and file_sha256(path) != file.sha256:
            return f"{path}: another content than when it was hashed"
        if file.blob and git_blob(path) != file.blob:
            return f"{path}: another content than the hub's"
    except SourceError as error:
        return str(error)
    return None


def _matching_names(folder: Path, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The names in a folder that match a pattern."""
    names = (path.name for path in folder.iterdir())
    return tuple(sorted(name for name in names if any(fnmatchcase(name, each) for each in patterns)))
