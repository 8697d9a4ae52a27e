"""Shared memory in /dev/shm that killed processes leave behind: which of it was theirs, and that alone is deleted.

A file there keeps its memory until somebody deletes it. But /dev/shm is also a disk that people keep files on, and
containers may share it. So only a file that a process of the run is seen to have mapped counts, and only if its name is
one of those that libraries give to shared memory. A process number in a name proves nothing: other containers have the
same numbers.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FOLDER = Path("/dev/shm")
_MADE_BY_LIBRARIES = re.compile(
    r"psm_.+"  # multiprocessing.shared_memory
    r"|sem\.(?:loky|mp)-.+"  # semaphores of joblib and multiprocessing
    r"|torch_.+"
    r"|vllm_.+|.+-cpushm.*"  # vLLM
    r"|__KMP_REGISTERED_LIB_.+"  # Intel's and LLVM's OpenMP
    r"|nccl-.+",
    re.DOTALL,
)


class Shared(NamedTuple):
    """A file of shared memory. Another file of the same name has another inode."""

    path: Path
    inode: int


def list_shared() -> set[Shared]:
    """This user's shared memory that a library made: regular files directly in the folder."""
    return {shared for shared, _ in _list()}


def find_shared(pids: Iterable[int], younger: bool = False) -> set[Shared]:
    """The shared memory that these processes have mapped; with ``younger`` that alone which was made after one of the
    processes that have it mapped had started."""
    began: dict[int, float] = {}
    for pid in pids:
        start_s = _start_s(pid) if younger else 0.0
        for inode in _mapped(Path(f"/proc/{pid}/maps")):
            began[inode] = min(start_s, began.get(inode, start_s))
    return {shared for shared, oldest_s in _list() if shared.inode in began and oldest_s >= began[shared.inode]}


def delete_shared(found: Iterable[Shared]) -> None:
    """Deletes those files that are still there and that no running process has mapped."""
    left = set(found) & list_shared()
    if left:
        mapped = {inode for maps in Path("/proc").glob("[0-9]*/maps") for inode in _mapped(maps)}
        left = {shared for shared in left if shared.inode not in mapped}
    for shared in left:
        with suppress(OSError):  # somebody else deleted it meanwhile
            shared.path.unlink()


def _list() -> list[tuple[Shared, float]]:
    """As ``list_shared``, each with the oldest of its times, in seconds since 1970: it is at least as old."""
    found = []
    with suppress(OSError):  # a system without such a folder
        for path in FOLDER.iterdir():
            if _MADE_BY_LIBRARIES.fullmatch(path.name) is None:
                continue
            with suppress(OSError):  # it went meanwhile
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    times = (status.st_atime, status.st_mtime, status.st_ctime)
                    found.append((Shared(path, status.st_ino), min(times)))
    return found


def _mapped(maps: Path) -> set[int]:
    """The inodes in the folder's file system that a process's table of mappings names (see proc_pid_maps(5)).

    Not the paths: the C library makes a semaphore under another name than the one it then gets.
    """
    inodes = set()
    with suppress(OSError):  # it ended, or may not be read; or there is no such folder
        device = FOLDER.stat().st_dev
        name = f"{os.major(device):02x}:{os.minor(device):02x}".encode()
        for line in maps.read_bytes().splitlines():
            fields = line.split(maxsplit=5)
            if fields[3] == name:
                inodes.add(int(fields[4]))
    return inodes


def _start_s(pid: int) -> float:
    """When a process had started, in seconds since 1970, rounded up to a tick; infinity if it has ended."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError:
        return float("inf")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + (ticks + 1) / os.sysconf("SC_CLK_TCK")
