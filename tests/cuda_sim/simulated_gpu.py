"""The state of simulated GPUs: memory, clock, launches, faults. Stands on the standard library.

Every number follows from what ran, never from the time that it took here: the same program gives the same figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

VARIABLE = "QHARNESS_SIMULATED_GPU"
"""The environment variable that holds a worker's plan as JSON."""
BLOCK_BYTES = 512
"""The caching allocator rounds every size up to a multiple of this (kMinBlockSize in CUDACachingAllocator)."""
SEGMENT_BYTES = 2 * 2**20
"""It takes memory from the driver in multiples of this (kSmallBuffer)."""
CONTEXT_BYTES = 64 * 2**20
"""What the driver counts as used before torch has allocated anything: the CUDA context."""
ASSERTION = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API "
    "call, so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
LOST = (
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API call"
)


@dataclass(frozen=True)
class Fault:
    """What goes wrong: at the ``count``-th allocation or launch of an operator whose name contains ``operator``.

    A count of 0 is never. ``out_of_memory`` fails one allocation, ``assert`` and ``lost`` all that follows: once a
    kernel has failed, every call into CUDA fails until the process ends.
    """

    kind: str
    count: int
    operator: str = ""


@dataclass(frozen=True)
class Plan:
    """What to simulate. A launch takes the longer of ``launch_s`` and its bytes over ``bytes_per_s``.

    ``others_bytes`` of the memory belong to other processes: little is free, so that little is measured and
    transformers, which leaves 1.2 GiB of a whole GPU alone, still loads. Launches are slow for the same reason: the
    machine's rates are measured until enough of the simulated time has passed.
    """

    gpus: int = 1
    name: str = "NVIDIA Simulated"
    capability: tuple[int, int] = (9, 0)
    memory_bytes: int = 2 * 2**30
    others_bytes: int = 2 * 2**30 - 192 * 2**20
    launch_s: float = 5e-2
    bytes_per_s: float = 1e9
    faults: tuple[Fault, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        values = json.loads(text)
        faults = tuple(Fault(**each) for each in values.pop("faults"))
        return cls(**{**values, "capability": tuple(values["capability"]), "faults": faults})


@dataclass
class Memory:
    """One GPU's memory as torch's caching allocator counts it."""

    total_bytes: int
    others_bytes: int = 0
    allocated: int = 0
    peak_allocated: int = 0
    reserved: int = 0
    peak_reserved: int = 0
    allocations: int = 0

    def allocate(self, size: int) -> bool:
        """Takes the memory, or returns False if there is not enough."""
        after = self.allocated + size
        if after > self.total_bytes - self.others_bytes - CONTEXT_BYTES:
            return False
        self.allocations += 1
        self.allocated = after
        self.peak_allocated = max(self.peak_allocated, after)
        self.reserved = max(self.reserved, _rounded(after, SEGMENT_BYTES))
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def free(self, size: int) -> None:
        self.allocated -= size

    def empty_cache(self) -> None:
        self.reserved = _rounded(self.allocated, SEGMENT_BYTES)

    def reset_peaks(self) -> None:
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.others_bytes - CONTEXT_BYTES - self.reserved


@dataclass
class Launch:
    """One kernel, as a profiler shows it."""

    name: str
    seconds: float


@dataclass
class Gpus:
    """The GPUs of a process. ``on_lost`` is called when a GPU disappears."""

    plan: Plan
    on_lost: Callable[[], None] = lambda: None
    current: int = 0
    clock_s: float = 0.0
    launches: int = 0
    synchronized: int = 0
    error: str = ""
    profiled: list[Launch] | None = None
    memories: list[Memory] = field(default_factory=list)
    _seen: dict[Fault, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memories = [Memory(self.plan.memory_bytes, self.plan.others_bytes) for _ in range(self.plan.gpus)]

    @property
    def memory(self) -> Memory:
        return self.memories[self.current]

    def allocate(self, index: int, size: int, operator: str) -> tuple[int, str]:
        """The bytes taken, and why there are none: a message like torch's, or nothing."""
        rounded = _rounded(max(size, 1), BLOCK_BYTES)
        memory = self.memories[index]
        if self._strikes("out_of_memory", operator) or not memory.allocate(rounded):
            total, free = memory.total_bytes / 2**20, memory.free_bytes / 2**20
            return 0, (
                f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU {index} has a total capacity of "
                f"{total:.2f} MiB of which {free:.2f} MiB is free."
            )
        return rounded, ""

    def launch(self, operator: str, touched_bytes: int) -> None:
        """A kernel runs: the clock moves. A fault in it shows in the next call, as on a GPU."""
        seconds = max(self.plan.launch_s, touched_bytes / self.plan.bytes_per_s)
        self.clock_s += seconds
        self.launches += 1
        if self.profiled is not None:
            self.profiled.append(Launch(operator, seconds))
        if self._strikes("assert", operator):
            self.error = ASSERTION
        if self._strikes("lost", operator):
            self.error = LOST
            self.on_lost()

    def _strikes(self, kind: str, operator: str) -> bool:
        struck = False
        for fault in self.plan.faults:
            if fault.kind == kind and fault.operator in operator:
                self._seen[fault] = self._seen.get(fault, 0) + 1
                struck |= self._seen[fault] == fault.count
        return struck


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
