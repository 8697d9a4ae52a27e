"""What an interrupted harness left behind: unfinished files, temporary folders and processes, each of a dead owner.

Nothing is deleted by its age or by its looks. What carries no owner, or one that lives, that cannot be judged, or what
belongs to another user, stays.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.owner import owner_in
from harness.host.process import end_leftovers

DEPTH = 4
"""How far below a root unfinished files lie: recipe, run, attempt and file in results; kind and artifact in a cache."""
_UNFINISHED = re.compile(r"\..*\.(part|removed)", re.DOTALL)
_TEMPORARY = re.compile(r"qharness-\d.*", re.DOTALL)


@dataclass(frozen=True)
class Debris:
    """What was removed, and the unfinished files and folders whose owner ran on another machine or in a container."""

    processes: int
    paths: tuple[Path, ...]
    unknown: tuple[Path, ...]

    def __bool__(self) -> bool:
        return bool(self.processes or self.paths or self.unknown)


def clear(roots: Sequence[Path]) -> Debris:
    """Ends the processes of dead owners, then deletes their temporary folders and what they left below the roots."""
    processes = end_leftovers()  # they could still write
    found = [*_temporary(), *(path for root in roots for path in _unfinished(root))]
    states = {path: owner.state() for path in found if (owner := owner_in(path.name)) is not None and _is_own(path)}
    removed = [path for path, state in states.items() if state == "dead" and _delete(path)]
    unknown = [path for path, state in states.items() if state == "unknown"]
    return Debris(processes, tuple(removed), tuple(unknown))


def _temporary() -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in Path(tempfile.gettempdir()).iterdir() if _TEMPORARY.fullmatch(path.name))


def _unfinished(root: Path) -> Iterator[Path]:
    """Hidden parts below a root. Links are not followed, hidden folders not entered."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        yield from (here / name for name in (*folders, *files) if _UNFINISHED.fullmatch(name))
        depth = len(here.relative_to(root).parts)
        folders[:] = [name for name in folders if depth + 1 < DEPTH and not name.startswith(".")]


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:  # somebody else deleted it meanwhile
        return False


def _delete(path: Path) -> bool:
    """Deletes a file or folder, also with folders in it that may not be read; returns whether it is gone."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
            if path.is_dir():
                _unlock(path)
                shutil.rmtree(path, ignore_errors=True)
    return not os.path.lexists(path)


def _unlock(top: Path) -> None:
    """Gives this user access to a folder and every folder in it."""
    top.chmod(0o700)
    for folder, folders, _ in os.walk(top):
        for inner in (Path(folder, name) for name in folders):
            if not inner.is_symlink():
                inner.chmod(0o700)
