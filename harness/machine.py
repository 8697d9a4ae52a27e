"""The machine the harness runs on: what it is, what drifts in it, and what software it holds.

No backend is imported: a GPU is asked through NVML, a library's version through its metadata.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.record import Fingerprint
from harness.spec import Scalar

PACKAGES = (
    "qharness",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "numpy",
)


@dataclass(frozen=True)
class Machine:
    """What the planner must know: the device that runs, and the class of hardware a figure belongs to."""

    device: str
    hardware: str


def choose(device: str) -> Machine:
    """The machine with the recipe's device. Raises UsageError for a GPU that is not there or not usable."""
    gpu = _gpu_name()
    usable = gpu is not None and not _cpu_build()
    if device == "cuda" and not usable:
        raise UsageError(
            "device: cuda, but "
            + ("the installed torch is a CPU build" if gpu else "no NVIDIA GPU or driver was found")
            + "; see 'qharness doctor'"
        )
    if device == "cpu" or not usable:
        return Machine("cpu", f"{cpu_name()}, {cores()} cores")
    return Machine("cuda", str(gpu))


def fingerprint() -> Fingerprint:
    """The machine and its software as they are at this moment."""
    hardware: dict[str, Scalar] = {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "platform": platform.platform(),
    }
    state = {"load_average_1m": os.getloadavg()[0], "available_memory_bytes": float(_meminfo("MemAvailable"))}
    with _nvml() as nvml:
        if nvml is not None:
            handle = nvml.nvmlDeviceGetHandleByIndex(0)
            hardware |= {
                "gpu": nvml.nvmlDeviceGetName(handle),
                "gpu_memory_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).total,
                "driver": nvml.nvmlSystemGetDriverVersion(),
            }
            state |= {
                "gpu_temperature_c": float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                "gpu_sm_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                "gpu_used_bytes": float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
            }
    return Fingerprint(hardware, {"python": platform.python_version(), **versions()}, state)


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide a figure."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    return _meminfo("MemTotal")


def gpu_summary() -> str | None:
    """Name and memory of the first GPU, or None where NVML finds none."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        return f"{nvml.nvmlDeviceGetName(handle)}, {nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30:.0f} GiB"


def _gpu_name() -> str | None:
    with _nvml() as nvml:
        return None if nvml is None else str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0)))


def _cpu_build() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True


@contextmanager
def _nvml() -> Iterator[Any | None]:
    """NVML, initialised and shut down again; None where there is no driver or no GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml if pynvml.nvmlDeviceGetCount() else None
    finally:
        pynvml.nvmlShutdown()


def _meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes; 0 where there is no /proc."""
    path = Path("/proc/meminfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
