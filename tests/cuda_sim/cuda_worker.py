"""``harness.execution.worker`` with simulated GPUs: what tests run in its place (``local.WORKER``).

The plan is in the environment (``simulated_gpu.VARIABLE``). NVML answers as the stub in LD_LIBRARY_PATH does, if there
is one; the loader reads that variable only when a process starts, and this one may be a fork of an older one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

LIBRARY = "libnvidia-ml.so.1"


def main() -> None:
    from cuda_lines import Trace
    from cuda_simulation import simulated
    from simulated_gpu import VARIABLE, Plan

    from harness.execution import worker

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # a count of allocations should not depend on threads
    _use_nvml_stub()
    plan = Plan.from_json(os.environ[VARIABLE])
    trace = Trace()
    trace.start()
    try:
        with simulated(plan, _lose_gpu):
            worker.main(*sys.argv[1:])
    finally:
        trace.write()


def _stub() -> Path | None:
    """The library that a process started now would load, if it is a stub: one in a folder with its answers."""
    folders = map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    return next((each / LIBRARY for each in folders if (each / "machine.txt").exists()), None)


def _use_nvml_stub() -> None:
    import pynvml

    stub = _stub()
    if stub is not None:
        pynvml.nvmlLib = ctypes.CDLL(str(stub))
        pynvml._nvmlGetFunctionPointer_cache.clear()


def _lose_gpu() -> None:
    """Has NVML too answer NVML_ERROR_GPU_IS_LOST (15) for every GPU."""
    stub = _stub()
    if stub is not None:
        answers = stub.with_name("machine.txt")
        new = answers.with_suffix(".lost")
        new.write_text(answers.read_text().replace("\ngpu\n", "\ngpu\nalways !15\n"))
        new.replace(answers)


if __name__ == "__main__":
    from harness.execution.worker import _end, _print

    try:
        main()
    except BaseException as error:  # noqa: BLE001 - as the worker does
        _print(error)
        _end(1)
    _end(0)
