"""The C library's allocator, as a process with a memory limit needs it."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD, LARGE_BYTES = -3, 2**20
"""An option of glibc's ``mallopt`` (malloc.h), and its value."""


def return_freed_memory() -> None:
    """From now on each large block is mapped by itself, so that freeing it returns it. Without glibc nothing changes.

    By its own rule glibc would put large blocks among small ones once some were freed, and what is allocated next soon
    takes a part of every gap.
    """
    if (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(M_MMAP_THRESHOLD, LARGE_BYTES)
