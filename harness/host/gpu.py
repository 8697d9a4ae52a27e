"""The GPU that torch calls cuda:0, read through NVML: its properties and changing state. Imports no backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from harness.core.identity import Scalar

T = TypeVar("T")


class Gpu:
    """The GPU that torch calls cuda:0, read through NVML. Values that the GPU does not report are left out."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def name(self) -> str:
        return str(self._nvml.nvmlDeviceGetName(self._handle))

    def capability(self) -> tuple[int, int] | None:
        answer = self._query({"capability": lambda: self._nvml.nvmlDeviceGetCudaComputeCapability(self._handle)})
        return (int(answer["capability"][0]), int(answer["capability"][1])) if answer else None

    def driver(self) -> str | None:
        """The driver's version."""
        return self._query({"version": lambda: str(self._nvml.nvmlSystemGetDriverVersion())}).get("version")

    def driver_cuda(self) -> tuple[int, int] | None:
        """The newest CUDA version that the driver supports. NVML reports 12.4 as 12040."""
        number = self._query({"number": lambda: int(self._nvml.nvmlSystemGetCudaDriverVersion_v2())}).get("number")
        return None if number is None else (number // 1000, number % 1000 // 10)

    def hardware(self) -> dict[str, Scalar]:
        nvml, handle = self._nvml, self._handle
        return self._query(
            {
                "gpu": lambda: nvml.nvmlDeviceGetName(handle),
                "gpu_memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
                "driver": nvml.nvmlSystemGetDriverVersion,
            }
        )

    def state(self, pid: int) -> dict[str, float]:
        """The changing state, clocks first. ``pid`` is this process.

        ``gpu_slowdown_reasons`` is NVML's bit mask of why clocks are reduced now. The ``…_violation_s`` are the
        seconds since the driver was loaded in which power or heat reduced them. ``gpu_processes`` counts all processes
        that compute on the GPU, including this one. ``gpu_other_bytes`` is the memory of the others, known only if the
        driver lists this process under its own pid (in a container it may not).
        """
        nvml, handle = self._nvml, self._handle
        clock, limit = nvml.nvmlDeviceGetClockInfo, nvml.nvmlDeviceGetMaxClockInfo
        state: dict[str, float] = self._query(
            {
                "gpu_sm_clock_mhz": lambda: float(clock(handle, nvml.NVML_CLOCK_SM)),
                "gpu_memory_clock_mhz": lambda: float(clock(handle, nvml.NVML_CLOCK_MEM)),
                "gpu_slowdown_reasons": lambda: float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
                "gpu_power_violation_s": lambda: self._violation_s(nvml.NVML_PERF_POLICY_POWER),
                "gpu_thermal_violation_s": lambda: self._violation_s(nvml.NVML_PERF_POLICY_THERMAL),
                "gpu_temperature_c": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                "gpu_used_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
                "gpu_sm_clock_limit_mhz": lambda: float(limit(handle, nvml.NVML_CLOCK_SM)),
                "gpu_power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
                "gpu_persistence": lambda: float(nvml.nvmlDeviceGetPersistenceMode(handle)),
            }
        )
        return {**state, **self._computing(pid)}

    def _violation_s(self, policy: int) -> float:
        return float(self._nvml.nvmlDeviceGetViolationStatus(self._handle, policy).violationTime) / 1e9

    def _computing(self, pid: int) -> dict[str, float]:
        answer = self._query({"all": lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)})
        listed = answer.get("all")
        if listed is None:
            return {}
        others = [process.usedGpuMemory for process in listed if process.pid != pid]
        counts = {"gpu_processes": float(len(listed))}
        if len(others) < len(listed) and None not in others:
            counts["gpu_other_bytes"] = float(sum(others))
        return counts

    def energy_j(self) -> float | None:
        """Joules used since the driver was loaded; None if the GPU does not count them."""
        answer = self._query({"mj": lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)})
        return answer["mj"] / 1000 if answer else None

    def process_bytes(self, pid: int) -> int | None:
        """Memory that the driver attributes to a process, including its CUDA context.

        None if the driver does not list the process: in a container it may know it by another pid.
        """
        answer = self._query({"all": lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)})
        sizes = [process.usedGpuMemory for process in answer.get("all", ()) if process.pid == pid]
        return int(sizes[0]) if sizes and sizes[0] is not None else None

    def used_bytes(self) -> int | None:
        """Memory in use on the whole GPU, by any process."""
        answer = self._query({"used": lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used})
        return int(answer["used"]) if answer else None

    def _query(self, queries: dict[str, Callable[[], T]]) -> dict[str, T]:
        answers = {}
        for name, read in queries.items():
            try:
                answers[name] = read()
            except self._nvml.NVMLError:
                continue
        return answers


@contextmanager
def gpu() -> Iterator[Gpu | None]:
    """The first visible GPU; None without a driver or a GPU, or if CUDA_VISIBLE_DEVICES hides all of them."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        handle = next(_visible(pynvml), None)
        yield None if handle is None else Gpu(pynvml, handle)
    finally:
        pynvml.nvmlShutdown()


def visible_uuids() -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order, or all GPUs. None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(str(pynvml.nvmlDeviceGetUUID(handle)) for handle in _visible(pynvml))
    finally:
        pynvml.nvmlShutdown()


def _visible(nvml: Any) -> Iterator[Any]:
    """NVML's handles of the visible GPUs. Workers set CUDA_DEVICE_ORDER, so that CUDA numbers GPUs as NVML does.

    As for CUDA, whatever follows the first entry that names no GPU is hidden too.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        entries = [str(index) for index in range(nvml.nvmlDeviceGetCount())] if listed is None else listed.split(",")
        for entry in map(str.strip, entries):
            if entry.isdigit():
                yield nvml.nvmlDeviceGetHandleByIndex(int(entry))
            elif entry.startswith(("GPU-", "MIG-")):
                yield nvml.nvmlDeviceGetHandleByUUID(entry)
            else:
                return
    except nvml.NVMLError:
        return
