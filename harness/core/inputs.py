"""The user's files that a run reads, as they were when planning hashed them (see ``storage/checksums.py``).

They are kept beside a spec, not in it: file sizes and times are not part of a run's identity.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InputFile:
    """A file when it was hashed; ``changed_ns`` is the time of its last change of any kind (ctime).

    ``sha256`` hashes its content. Planning does not hash files in a hub's cache: their names are hashes already,
    a ``sha256`` or, for small files, git's ``blob``. Both are empty if the name is not a hash.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    changed_ns: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True)
class Input:
    """The files of a model, a text or a task. For a folder also the ``patterns`` of relevant files and their ``names``.

    The names matter because a file added to a folder can change the result as much as an edited one.
    """

    files: tuple[InputFile, ...]
    folder: str = ""
    patterns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
