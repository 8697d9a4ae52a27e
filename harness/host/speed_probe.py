"""Times what a forecast needs to know of a machine: ``python speed_probe.py DEVICE FOLDER ANSWER`` writes JSON.

It runs by its path, in a process of its own, so that the parent imports no library. The best of several short bursts
counts: a forecast wants the machine's own speed, not that of a busy moment. A CPU is timed by NumPy, which starts in a
tenth of a second; a GPU only torch can time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

COPIED_BYTES, GPU_COPIED_BYTES = 2**25, 2**28
"""More than a cache holds."""
WRITTEN_BYTES = 2**25
SIZE, GPU_SIZE = 512, 4096
"""Rows and columns of the matrices. A burst on a CPU is shorter than a process's turn there, so that one of many is not
interrupted; on a GPU starting a kernel must not count."""
BURSTS, BURSTS_S = 5, 0.1
"""The fewest bursts, and the seconds that they take together: other processes do not disturb all of them."""
GPU_DTYPES = ("float32", "bfloat16", "float16")


def probe(device: str, folder: Path) -> dict[str, Any]:
    """Bytes per second through memory and to disk, and operations per second in products of each dtype.

    A copy counts what it reads and what it writes; a product of two n × n matrices is 2 · n³ operations.
    """
    timed = _gpu(import_module("torch"), device) if device.startswith("cuda") else _cpu(import_module("numpy"))
    return {**timed, "disk_byte_per_s": _disk(folder)}


def _cpu(numpy: Any) -> dict[str, Any]:
    """A copy by this thread, in its own processor time; products by all threads, or by one if it has no others."""
    source = numpy.ones(COPIED_BYTES // 4, numpy.float32)
    target = numpy.empty_like(source)
    matrix = numpy.ones((SIZE, SIZE), numpy.float32)
    copy_s = _best(lambda: numpy.copyto(target, source), time.thread_time)
    clock = time.thread_time if os.environ.get("OPENBLAS_NUM_THREADS") == "1" else time.perf_counter
    return {
        "bandwidth_byte_per_s": 2 * COPIED_BYTES / copy_s,
        "operations_per_s": {"float32": 2 * SIZE**3 / _best(lambda: matrix @ matrix, clock)},
    }


def _gpu(torch: Any, device: str) -> dict[str, Any]:
    def best(work: Callable[[], object]) -> float:
        def finished() -> None:
            work()
            torch.cuda.synchronize(device)

        return _best(finished)

    source = torch.ones(GPU_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    rates = {}
    for dtype in GPU_DTYPES:
        matrix = torch.ones(GPU_SIZE, GPU_SIZE, device=device, dtype=getattr(torch, dtype))
        rates[dtype] = 2 * GPU_SIZE**3 / best(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
    copy_s = best(lambda: target.copy_(source))
    return {"bandwidth_byte_per_s": 2 * GPU_COPIED_BYTES / copy_s, "operations_per_s": rates}


def _disk(folder: Path) -> float:
    """Bytes per second to the disk of a folder, until they are on it."""
    content, place = bytes(WRITTEN_BYTES), folder / f".speed-{os.getpid()}"

    def write() -> None:
        with place.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    try:
        write_s = min(_seconds(write) for _ in range(2))
    finally:
        place.unlink(missing_ok=True)
    return WRITTEN_BYTES / write_s


def _best(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    timed: list[float] = []
    while len(timed) < BURSTS or sum(timed) < BURSTS_S:
        timed.append(_seconds(work, clock))
    return min(timed)


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()
    return max(clock() - began, 1e-6)


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(probe(sys.argv[1], Path(sys.argv[2]))), encoding="utf-8")
