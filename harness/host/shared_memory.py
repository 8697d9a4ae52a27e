"""Shared memory in /dev/shm that killed processes leave behind: which of it was theirs, and that alone is deleted.

A file there keeps its memory until somebody deletes it, and its name rarely says whose it is: Python's are called
``psm_`` and a random number. So its users are found while they still run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")
_OF_PROCESS = re.compile(r"(?:sem\.(?:loky|joblib)-|torch_|__KMP_REGISTERED_LIB_)(\d+)[-_].*", re.DOTALL)
"""Names with the number of the process that made the file: those of joblib, torch and Intel's OpenMP."""


def list_shared() -> set[Path]:
    """All shared memory on this machine."""
    with suppress(OSError):  # a system without such a folder
        return set(FOLDER.iterdir())
    return set()


def find_shared(pids: Iterable[int]) -> set[Path]:
    """The shared memory that these processes have mapped, or that carries the number of one of them in its name."""
    numbers = set(pids)
    named = {path: _OF_PROCESS.fullmatch(path.name) for path in list_shared()}
    return {path for path, found in named.items() if found is not None and int(found[1]) in numbers} | {
        path for pid in numbers for path in _mapped(Path(f"/proc/{pid}/maps"))
    }


def delete_shared(paths: Iterable[Path]) -> None:
    """Deletes those files that still exist, are this user's, and that no running process has mapped."""
    left = {path for path in paths if _is_own(path)}
    if left:
        left -= {path for maps in Path("/proc").glob("[0-9]*/maps") for path in _mapped(maps)}
    for path in left:
        with suppress(OSError):  # somebody else deleted it meanwhile
            path.unlink()


def _mapped(maps: Path) -> Iterator[Path]:
    """The files of shared memory in a process's table of mappings, of which a line's sixth field is the path."""
    with suppress(OSError):  # it ended, or may not be read
        for line in maps.read_bytes().splitlines():
            path = os.fsdecode(line.split(maxsplit=5)[5]) if b"/dev/shm/" in line else ""
            if path.startswith(f"{FOLDER}/"):
                yield Path(path)


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False
