"""The machine the harness runs on: what it is, what drifts in it, and what software it holds.

No backend is imported: a GPU is asked through NVML, a library's version through its metadata.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import UsageError
from harness.record import Fingerprint
from harness.spec import Scalar

T = TypeVar("T")

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
    """What the planner must know: the device that runs, and the class of hardware a figure belongs to.

    ``capability`` is the GPU's compute capability; None on a CPU.
    """

    device: str
    hardware: str
    capability: tuple[int, int] | None = None


def choose(device: str) -> Machine:
    """The machine with the recipe's device. Raises UsageError for a GPU that is not there or not usable."""
    cpu = f"{cpu_name()}, {cores()} cores"
    with gpu() as found:
        name = None if found is None else found.name()
        capability = None if found is None else found.capability()
    usable = name is not None and not _cpu_build()
    if device == "cuda" and not usable:
        reason = "the installed torch is a CPU build" if name else "no NVIDIA GPU or driver was found"
        raise UsageError(f"device: cuda, but {reason}; see 'qharness doctor'")
    return Machine("cuda", f"{name}; {cpu}", capability) if usable and device != "cpu" else Machine("cpu", cpu)


def fingerprint(packages: Iterable[str] = ()) -> Fingerprint:
    """The machine and its software as they are at this moment; what cannot be asked is left out.

    ``packages`` are those whose versions matter beside the harness's own.
    """
    hardware: dict[str, Scalar] = {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "platform": platform.platform(),
    }
    state = {"load_average_1m": os.getloadavg()[0], "available_memory_bytes": float(available_memory_bytes())}
    with gpu() as found:
        if found is not None:
            hardware |= found.hardware()
            state |= found.state()
    return Fingerprint(hardware, {"python": platform.python_version(), **versions(packages)}, state)


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """The installed versions of the packages that decide a figure."""
    asked = {package: installed_version(package) for package in (*PACKAGES, *packages)}
    return {package: found for package, found in asked.items() if found is not None}


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, found without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


def available_memory_bytes() -> int:
    """What a process could still take; 0 where nobody says."""
    return _meminfo("MemAvailable")


def gpu_summary() -> str | None:
    """Name and memory of the GPU that would be used, or None where there is none."""
    with gpu() as found:
        if found is None:
            return None
        size = found.hardware().get("gpu_memory_bytes")
        return f"{found.name()}, {float(size) / 2**30:.0f} GiB" if size else found.name()


class Gpu:
    """The GPU that torch calls cuda:0, asked through NVML. Some GPUs refuse some questions; the answer is left out."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def name(self) -> str:
        return str(self._nvml.nvmlDeviceGetName(self._handle))

    def capability(self) -> tuple[int, int] | None:
        answer = self._asked({"capability": lambda: self._nvml.nvmlDeviceGetCudaComputeCapability(self._handle)})
        return (int(answer["capability"][0]), int(answer["capability"][1])) if answer else None

    def hardware(self) -> dict[str, Scalar]:
        nvml, handle = self._nvml, self._handle
        return self._asked(
            {
                "gpu": lambda: nvml.nvmlDeviceGetName(handle),
                "gpu_memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
                "driver": nvml.nvmlSystemGetDriverVersion,
            }
        )

    def state(self) -> dict[str, float]:
        nvml, handle = self._nvml, self._handle
        return self._asked(
            {
                "gpu_temperature_c": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                "gpu_sm_clock_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                "gpu_used_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
            }
        )

    def energy_j(self) -> float | None:
        """Joules used since the driver was loaded; None where the GPU does not count them."""
        answer = self._asked({"mj": lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)})
        return answer["mj"] / 1000 if answer else None

    def process_bytes(self, pid: int) -> int | None:
        """Memory that the driver counts to a process, its CUDA context included.

        None where the driver does not list the process: in a container it may know it by another number.
        """
        answer = self._asked({"all": lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)})
        sizes = [process.usedGpuMemory for process in answer.get("all", ()) if process.pid == pid]
        return int(sizes[0]) if sizes and sizes[0] is not None else None

    def used_bytes(self) -> int | None:
        """Memory in use on the whole GPU, whoever uses it."""
        answer = self._asked({"used": lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used})
        return int(answer["used"]) if answer else None

    def _asked(self, questions: dict[str, Callable[[], T]]) -> dict[str, T]:
        answers = {}
        for name, ask in questions.items():
            try:
                answers[name] = ask()
            except self._nvml.NVMLError:
                continue
        return answers


@contextmanager
def gpu() -> Iterator[Gpu | None]:
    """The first visible GPU; None where there is no driver, no GPU, or CUDA_VISIBLE_DEVICES hides them all."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _first_visible(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _first_visible(nvml: Any) -> Gpu | None:
    """Workers number GPUs as NVML does (CUDA_DEVICE_ORDER), so that an index means the same to both."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        if first.isdigit():
            return Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(int(first)))
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(first)) if first.startswith(("GPU-", "MIG-")) else None
    except nvml.NVMLError:
        return None


def _cpu_build() -> bool:
    return (installed_version("torch") or "+cpu").endswith("+cpu")


def _meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes; 0 where there is no /proc."""
    path = Path("/proc/meminfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
