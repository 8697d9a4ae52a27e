"""What a run reads of the user's files, as planning saw it when it hashed them (see ``storage/checksums.py``).

This stands beside a spec and not in it: sizes and times do not belong to a run's identity.
"""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Input:
    """A model, a text or a task: its files; of a folder also the ``patterns`` of what in it decides, and their names.

    A file that appears in a folder may decide as much as one that changed.
    """

    files: tuple[InputFile, ...]
    folder: str = ""
    patterns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
