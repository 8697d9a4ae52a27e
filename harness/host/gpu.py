"""GPUs as NVML reports them: which are visible, their identity and their changing state. Imports no backend.

Functions of NVML that are deprecated have successors; the older one is called only where the library lacks the newer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.core.identity import Scalar
from harness.host.processor import is_of_this_run
from harness.host.visible import VARIABLE, GpuPart, all_parts, hides_all, select, visible_parts

T = TypeVar("T")
_MIG = " MIG "
"""Before the profile in the name of a slice: "NVIDIA H200 MIG 1g.18gb"."""


@dataclass(frozen=True)
class GpuIdentity:
    """What decides whether two GPUs, or the same one on two days, give the same figures. None is not reported.

    ``capability`` is the compute capability. ``power_limit_w`` is what the GPU is set to. For a MIG slice
    ``memory_bytes`` is its own, ``mig_profile`` its size (``1g.18gb``; "unknown" if its name lacks it), and the power
    limit is its whole GPU's; ``mig_profile`` of a whole GPU is None.
    """

    name: str
    capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    power_limit_w: float | None = None
    mig_profile: str | None = None

    @property
    def hardware_class(self) -> str:
        """The name, which holds a slice's profile, and the power limit: speeds of unlike classes are not compared."""
        return self.name if self.power_limit_w is None else f"{self.name}, {self.power_limit_w:g} W"

    def hardware(self) -> dict[str, Scalar]:
        """The values that are known, as a fingerprint names them."""
        values: dict[str, Scalar | None] = {
            "gpu": self.name,
            "gpu_memory_bytes": self.memory_bytes,
            "gpu_capability": None if self.capability is None else ".".join(map(str, self.capability)),
            "gpu_power_limit_w": self.power_limit_w,
            "gpu_mig_profile": self.mig_profile,
            "driver": self.driver,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class GpuState:
    """A GPU's state at one moment: the values that it reports, and for each other why it does not."""

    values: Mapping[str, float]
    unreported: Mapping[str, str]


class Gpu:
    """A GPU or a MIG slice, read through NVML.

    A slice is asked by its own handle: its memory and processes are its own, and what NVML reports for whole GPUs only
    (clocks, power, temperature, energy) is not reported for it.
    """

    def __init__(self, nvml: Any, part: GpuPart) -> None:
        self._nvml, self._part, self._handle = nvml, part, part.handle

    @property
    def uuid(self) -> str:
        """As CUDA_VISIBLE_DEVICES takes it (``GPU-…``, ``MIG-…``)."""
        return self._part.uuid

    def serial(self) -> str | None:
        """The serial number of the board; None if it has none."""
        number = self._of_whole("nvmlDeviceGetSerial")
        return None if number is None else str(number)

    def name(self) -> str:
        """The GPU's name, with the profile if this is a MIG slice. "unknown GPU" if it is lost."""
        return self._known(lambda: str(self._ask("nvmlDeviceGetName"))) or "unknown GPU"

    def capability(self) -> tuple[int, int] | None:
        """The compute capability."""
        answer = self._of_whole("nvmlDeviceGetCudaComputeCapability")
        return None if answer is None else (int(answer[0]), int(answer[1]))

    def driver(self) -> str | None:
        """The driver's version."""
        return self._known(lambda: str(self._call(("nvmlSystemGetDriverVersion",))))

    def driver_cuda(self) -> tuple[int, int] | None:
        """The newest CUDA version that the driver supports. NVML reports 12.4 as 12040."""
        number = self._known(lambda: int(self._call(("nvmlSystemGetCudaDriverVersion_v2",))))
        return None if number is None else (number // 1000, number % 1000 // 10)

    def identity(self) -> GpuIdentity:
        name = self.name()
        milliwatts = self._of_whole("nvmlDeviceGetPowerManagementLimit")
        return GpuIdentity(
            name,
            self.capability(),
            self._known(lambda: int(self._ask("nvmlDeviceGetMemoryInfo").total)),
            self.driver(),
            None if milliwatts is None else milliwatts / 1000,
            None if self._part.instances is None else name.partition(_MIG)[2] or "unknown",
        )

    def state(self) -> GpuState:
        """The changing state, clocks first.

        ``gpu_slowdown_reasons`` is NVML's bit mask of why clocks are reduced now. The ``…_violation_s`` are the
        seconds since the driver was loaded in which power or heat reduced them. ``gpu_processes`` counts all processes
        that compute on the GPU. ``gpu_other_processes`` and ``gpu_other_bytes`` count those that are not of this run
        and their memory. They are known only if the driver lists processes of this run (in a container it may list
        them by other numbers) and, for the memory, that of the others.
        """
        nvml = self._nvml
        reasons = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        temperature = "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"
        queries: dict[str, Callable[[], float]] = {
            "gpu_sm_clock_mhz": lambda: float(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)),
            "gpu_memory_clock_mhz": lambda: float(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM)),
            "gpu_slowdown_reasons": lambda: float(self._call(reasons, self._handle)),
            "gpu_power_violation_s": lambda: self._violation_s(_POWER_CAP, nvml.NVML_PERF_POLICY_POWER),
            "gpu_thermal_violation_s": lambda: self._violation_s(_THERMAL_SLOWDOWN, nvml.NVML_PERF_POLICY_THERMAL),
            "gpu_temperature_c": lambda: float(self._call(temperature, self._handle, nvml.NVML_TEMPERATURE_GPU)),
            "gpu_used_bytes": lambda: float(self._ask("nvmlDeviceGetMemoryInfo").used),
            "gpu_sm_clock_limit_mhz": lambda: float(self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)),
            "gpu_power_limit_w": lambda: float(self._ask("nvmlDeviceGetEnforcedPowerLimit")) / 1000,
            "gpu_persistence": lambda: float(self._ask("nvmlDeviceGetPersistenceMode")),
            "gpu_processes": lambda: float(len(self._processes())),
        }
        values: dict[str, float] = {}
        unreported: dict[str, str] = {}
        for name, query in queries.items():
            try:
                values[name] = query()
            except nvml.NVMLError as error:
                unreported[name] = str(error)
        own, others = self._own_and_others()
        sizes = _sum(others)
        if own:
            values["gpu_other_processes"] = float(len(others))
        if own and sizes is not None:
            values["gpu_other_bytes"] = float(sizes)
        elif own:
            unreported["gpu_other_bytes"] = "the driver does not report the memory of another process"
        else:
            reason = unreported.get("gpu_processes", "the driver lists no process of this run")
            unreported |= {"gpu_other_processes": reason, "gpu_other_bytes": reason}
        return GpuState(values, unreported)

    def energy_j(self) -> float | None:
        """Joules used since the driver was loaded; None if the GPU does not count them, and for a slice."""
        millijoules = self._not_of_slice("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def power_w(self) -> float | None:
        """The board's power; on most GPUs the mean of the last second. None if it is not reported, and for a slice."""
        milliwatts = self._not_of_slice("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def process_bytes(self) -> int | None:
        """Memory that the driver attributes to this process and those that it started, including CUDA contexts.

        None if the driver does not list them (in a container it may know them by other numbers), or lists them without
        their memory.
        """
        own, _ = self._own_and_others()
        return _sum(own) if own else None

    def used_bytes(self) -> int | None:
        """Memory in use on the whole GPU or slice, by any process."""
        return self._known(lambda: int(self._ask("nvmlDeviceGetMemoryInfo").used))

    def _processes(self) -> list[Any]:
        names = "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"
        return list(self._call(names, self._handle))

    def _own_and_others(self) -> tuple[list[int | None], list[int | None]]:
        """The memory of each process of this run that computes on the GPU, and of each other one; None is unknown."""
        own: list[int | None] = []
        others: list[int | None] = []
        for process in self._known(self._processes) or ():
            (own if is_of_this_run(process.pid) else others).append(_used_bytes(process))
        return own, others

    def _violation_s(self, field_id: int, policy: int) -> float:
        """Seconds in which clocks were reduced, from a field value; a library that lacks it has the policy's time."""
        try:
            (field,) = self._ask("nvmlDeviceGetFieldValues", [field_id])
            if field.nvmlReturn == self._nvml.NVML_SUCCESS:
                return float(field.value.ullVal) / 1e9
            missing = self._nvml.NVMLError(field.nvmlReturn)
        except self._nvml.NVMLError as error:
            missing = error
        try:
            return float(self._ask("nvmlDeviceGetViolationStatus", policy).violationTime) / 1e9
        except self._nvml.NVMLError:
            raise missing from None

    def _ask(self, function: str, *arguments: object) -> Any:
        """NVML's answer about this GPU. Raises NVMLError."""
        return self._call((function,), self._handle, *arguments)

    def _call(self, functions: tuple[str, ...], *arguments: object) -> Any:
        """The answer of the first function that pynvml and the library have. Raises NVMLError."""
        nvml = self._nvml
        for function in functions:
            call = getattr(nvml, function, None)
            try:
                if call is not None:
                    return call(*arguments)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                    raise
        raise nvml.NVMLError(nvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def _of_whole(self, function: str) -> Any | None:
        """An answer that is the same for a GPU and its slices: a slice's own, or else its GPU's; None if neither."""
        own = self._known(lambda: self._ask(function))
        if own is not None or self._part.instances is None:
            return own
        return self._known(lambda: self._call((function,), self._ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle")))

    def _not_of_slice(self, function: str) -> float | None:
        """A figure of a whole GPU; None for a slice, even where the driver answers for it: with that of its GPU."""
        return None if self._part.instances is not None else self._known(lambda: float(self._ask(function)))

    def _known(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except self._nvml.NVMLError:
            return None


_POWER_CAP = 74
"""NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP: nanoseconds."""
_THERMAL_SLOWDOWN = 269
"""NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: nanoseconds; NVIDIA's translation of NVML_PERF_POLICY_THERMAL."""


def _used_bytes(process: Any) -> int | None:
    """A process's memory; None if unknown. Some drivers then report 0, though a CUDA context takes hundreds of MB."""
    return int(process.usedGpuMemory) if process.usedGpuMemory else None


def _sum(sizes: list[int | None]) -> int | None:
    """The sum; None if one of the sizes is unknown."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def gpu_value(name: str, index: int) -> str:
    """The name of a value of one of several GPUs, of which the first is 0: ``gpu_temperature_c_of_gpu_1``."""
    return f"{name}_of_gpu_{index}" if index else name


@contextmanager
def gpus() -> Iterator[tuple[Gpu, ...]]:
    """The visible GPUs and MIG slices in CUDA's order; none without a driver, a GPU, or if all of them are hidden."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield ()
        return
    try:
        yield tuple(Gpu(pynvml, part) for part in visible_parts(pynvml))
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def gpu() -> Iterator[Gpu | None]:
    """The first visible GPU or MIG slice, which torch calls cuda:0; None if there is none."""
    with gpus() as found:
        yield next(iter(found), None)


def visible_uuids() -> tuple[str, ...]:
    """The UUIDs of the visible GPUs and MIG slices, in CUDA's order."""
    with gpus() as found:
        return tuple(each.uuid for each in found)


def identifying() -> frozenset[str]:
    """What tells this machine's GPUs from all others: the UUIDs of them and their slices, serial numbers of boards."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return frozenset()
    try:
        parts = [part for parts in all_parts(pynvml) for part in parts]
        serials = [Gpu(pynvml, part).serial() for part in parts]
        uuids = [uuid for part in parts for uuid in (part.uuid, part.gpu_uuid)]
        return frozenset([*uuids, *(serial for serial in serials if serial)])
    finally:
        pynvml.nvmlShutdown()


def absence() -> str:
    """Why no GPU is visible, in a clause that begins small."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return f"no NVIDIA driver was found ({error})"
        if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return "the NVIDIA driver was updated and its old version still runs: restart the machine"
        return f"the NVIDIA driver does not answer: {error}"
    try:
        uuids = [part.uuid for parts in all_parts(pynvml) for part in parts]
        if not uuids:
            return "the NVIDIA driver reports no GPU that can be used; run nvidia-smi (in MIG mode a GPU needs a slice)"
        return f"{VARIABLE} is {os.environ.get(VARIABLE)!r}, which names none of {', '.join(uuids)}"
    finally:
        pynvml.nvmlShutdown()


def mistaken_absence() -> str | None:
    """Why no GPU is visible, if that can hardly be meant: a GPU was named that is not there, or the driver is broken.

    None if there is no driver or no GPU, or all are hidden.
    """
    import pynvml

    if hides_all(os.environ.get(VARIABLE)):
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return absence() if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH else None
    try:
        parts = all_parts(pynvml)
        return absence() if any(parts) and not select(os.environ.get(VARIABLE), parts) else None
    finally:
        pynvml.nvmlShutdown()
