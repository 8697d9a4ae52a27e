"""The heap of a process whose large blocks come and go among small ones that live long."""

import platform
import subprocess
import sys

import pytest

from harness.host.allocator import KEPT_BYTES, LARGE_BYTES, MOST_REUSED_BYTES

BLOCK_BYTES = MOST_REUSED_BYTES // 2
PROGRAM = """
import ctypes, sys
from harness.host import allocator

c = ctypes.CDLL(None)
c.malloc.argtypes, c.malloc.restype, c.free.argtypes = (ctypes.c_size_t,), ctypes.c_void_p, (ctypes.c_void_p,)
with allocator.returning_freed_memory():
    pass
heap, start = allocator.BoundedHeap(), allocator._heap_end()
for turn in range(100):
    if sys.argv[1] == "bounded":
        heap.bound()
    blocks = [c.malloc(int(sys.argv[2]) + 1000 * turn) for _ in range(3)]
    c.malloc(2**22)  # stays, as the states of a window do
    for block in blocks:
        c.free(block)
    c.malloc(70_000)  # stays in a gap, where no such block fits any more
print(allocator._heap_end() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
@pytest.mark.parametrize("bounded", [True, False])
def test_the_heap_grows_by_what_is_kept_and_no_more(bounded: bool) -> None:
    asked = [sys.executable, "-c", PROGRAM, "bounded" if bounded else "unbounded", str(BLOCK_BYTES)]
    grown = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert LARGE_BYTES < BLOCK_BYTES < MOST_REUSED_BYTES
    assert (grown <= KEPT_BYTES + 4 * BLOCK_BYTES) is bounded
