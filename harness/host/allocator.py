"""The C library's allocator, as a process with a memory limit needs it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt`` (malloc.h): how much free memory it keeps, and which blocks it maps by themselves."""
LARGE_BYTES = 2**20
MOST_REUSED_BYTES = 2**25
"""glibc's maximum: larger blocks are always mapped by themselves."""
KEPT_BYTES = 2**27


def return_freed_memory() -> None:
    """From now on each large block is mapped by itself, so that freeing it returns it. Without glibc nothing changes.

    By its own rule glibc would put large blocks among small ones once some were freed, and what is allocated next soon
    takes a part of every gap.
    """
    _set(M_MMAP_THRESHOLD, LARGE_BYTES)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """``return_freed_memory`` for what is allocated in this context; after it the memory of freed blocks is used again.

    Memory that is mapped anew costs a page fault for every 4 KiB, which for the intermediate results of a layer takes
    as long as a tenth of its products and more.
    """
    return_freed_memory()
    try:
        yield
    finally:
        _reuse_freed_memory()


class BoundedHeap:
    """Keeps the heap from growing by much more than ``KEPT_BYTES`` while ``bound`` is called again and again.

    Small blocks that live long end up in the gaps that large ones leave, and what is allocated next does not fit there
    any more. Once the heap has grown so far, what finds no gap is mapped by itself.
    """

    def __init__(self) -> None:
        self._end = _heap_end()

    def bound(self) -> None:
        if _heap_end() - self._end > KEPT_BYTES:
            return_freed_memory()
        else:
            _reuse_freed_memory()


def trim() -> None:
    """Returns all free memory that was kept for the next blocks."""
    if (release := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        release(0)


def mapped(size: int) -> mmap.mmap:
    """Memory that is returned when nothing uses it any more, whatever the allocator keeps and in which thread."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def private_bytes() -> int:
    """What this process has reserved for itself alone, which a limit of memory counts; 0 if the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _reuse_freed_memory() -> None:
    _set(M_MMAP_THRESHOLD, MOST_REUSED_BYTES)
    _set(M_TRIM_THRESHOLD, KEPT_BYTES)


def _heap_end() -> int:
    """Where the heap ends (sbrk(2)); 0 if the C library does not say."""
    if (move := getattr(ctypes.CDLL(None), "sbrk", None)) is None:
        return 0
    move.argtypes, move.restype = (ctypes.c_ssize_t,), ctypes.c_void_p
    return move(0) or 0


def _set(option: int, value: int) -> None:
    if (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(option, value)
