"""Where the runs of a sweep execute: the hardware, the libraries, and the artifacts of earlier runs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Protocol

from harness.core.owner import Owner
from harness.core.record import Outcome
from harness.core.run import RunSpec

MAIN = "main"
"""The stack that every site has: the environment that the harness itself is installed in."""

KERNEL_PACKAGES = (
    "causal-conv1d",
    "fast-hadamard-transform",
    "fbgemm-gpu-genai",
    "fla-core",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "flash-linear-attention",
    "flashinfer-python",
    "kernels",
    "mamba-ssm",
    "mslk",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "triton",
)
"""Distributions that libraries take GPU kernels from where they are installed, so that they change what runs there."""

CONFIGURATIONS = "configurations"
"""The folder of a cache with transformers' answers (``harness.models.resolve``), one sealed JSON file each."""
WINDOWS = "windows"
"""The folder of a cache with the windows of long texts (``harness.text.kept_windows``), one sealed JSON file each."""
REQUESTS = "requests"
"""The folder of a cache with tokens of tasks' requests (``harness.text.kept_requests``), one sealed JSON file each."""
EXPERT_TOKENS = "expert-tokens"
"""The folder of a cache with the calibration tokens that each expert of a model sees, one sealed JSON file each."""
MAX_SEALED_BYTES = 64 * 2**20
"""The largest file in one of these folders."""


@dataclass(frozen=True)
class Machine:
    """What planning needs to know about a site's hardware: the device to run on, and its hardware class.

    ``capability`` is the GPU's compute capability; None on a CPU. ``uuids`` name the GPUs that runs may use, all of
    this class, as NVML does (``GPU-…``, ``MIG-…``); empty on a CPU. ``memory_bytes`` is the device's whole memory,
    on a CPU as much as the control groups allow; 0 if it is not known. ``instructions`` are those of the processor, as
    Linux names them (``amx_tile``); empty if they are not known.
    ``gpu_problem`` says why runs do not use the GPU that the machine has; None if they do, or were not to.
    ``absent_compilers`` names the programs that compile CUDA kernels while a model runs and that are not there.
    ``driver`` is the version of the GPU's driver, None on a CPU or if it is not known.
    """

    device: str
    hardware: str
    capability: tuple[int, int] | None = None
    uuids: tuple[str, ...] = ()
    memory_bytes: int = 0
    instructions: frozenset[str] = frozenset()
    gpu_problem: str | None = None
    driver: str | None = None
    absent_compilers: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        """How many GPUs or MIG slices runs may use; 1 if they have no names."""
        return max(len(self.uuids), 1)

    @property
    def gpus_per_run(self) -> int:
        """How many of them one run may use. CUDA shows a process one MIG slice at most (NVIDIA's MIG user guide)."""
        return 1 if any(uuid.startswith("MIG-") for uuid in self.uuids) else self.gpus


@dataclass(frozen=True)
class Node:
    """A machine of a site, as the schedule of a sweep sees it.

    ``name`` tells it from the site's others in records and displays; it must be a pseudonym (``node-1``), because host
    names say where a sweep ran. It is empty if the site is one machine. ``gpus`` are those that runs may use; 1 on a
    CPU, where runs share ``cores`` (``RunSpec.cores``) and ``memory_bytes``. Without cores one executes at a time.
    ``stacks`` are those that are ready there, the main one always; None if all are that the site's runs use.
    ``lent_s`` is how long the sweep may have it from its beginning; None if nobody takes it away.
    """

    name: str = ""
    gpus: int = 1
    cores: int = 0
    memory_bytes: int = 0
    stacks: frozenset[str] | None = None
    lent_s: float | None = None

    def has(self, stacks: Set[str]) -> bool:
        """Whether all of these stacks are ready there."""
        return self.stacks is None or stacks <= self.stacks | {MAIN}


HERE = Node()
"""The node of a site that is one machine with one device."""


@dataclass(frozen=True)
class Speeds:
    """What a machine does in a second.

    ``start_s`` is how long a Python process computes to start and to import NumPy: other imports scale with it. What a
    copy reads and what it writes both count. ``operations_per_s`` are those of matrix products, by dtype.
    """

    start_s: float
    bandwidth_byte_per_s: float
    operations_per_s: Mapping[str, float]
    disk_byte_per_s: float

    def rate(self, dtype: str) -> float:
        """Operations per second in a dtype. One that was not timed is taken to be as fast as float32."""
        return self.operations_per_s.get(dtype) or self.operations_per_s["float32"]


class Artifacts(Protocol):
    """The artifacts that runs left at a site for other runs."""

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """The outcome of the run that made the spec's artifact; None if there is none, or it is seen to be damaged.

        Raises OSError if it may be elsewhere, and that cannot be read.
        """
        ...

    def maker(self, spec: RunSpec) -> Owner | None:
        """The other process that may still measure the last of the spec's artifact; None if none does."""
        ...

    def damage(self, spec: RunSpec, read_data: bool) -> str | None:
        """What is wrong with the spec's artifact; None if nothing is, or there is none.

        Without ``read_data`` only names and sizes are checked, with it every byte, after fetching what is elsewhere.
        Raises OSError if that cannot be fetched, which says nothing of what it is.
        """
        ...

    def remove(self, spec: RunSpec) -> bool:
        """Deletes a run's artifact everywhere; returns whether there was one here. Raises OSError if it cannot."""
        ...

    def discard(self, spec: RunSpec) -> bool:
        """Deletes a run's damaged artifact here alone; returns whether there was one. Raises OSError if it cannot."""
        ...

    def amend(self, spec: RunSpec, outcome: Outcome) -> None:
        """Replaces the outcome of an artifact that is here. Raises OSError, and ResultsError if there is none."""
        ...

    def share(self, spec: RunSpec) -> None:
        """Sends a run's new artifact to where other sites find it, if there is such a place.

        Raises OSError if that fails, and ResultsError for a damaged one.
        """
        ...


class Site(Protocol):
    """Where a sweep runs. Planning queries the site, never its own process."""

    @property
    def artifacts(self) -> Artifacts: ...

    def machine(self, device: str) -> Machine:
        """The hardware for a recipe's ``device``: cpu, cuda or auto.

        Raises UsageError if the site lacks a GPU or cannot use it.
        """
        ...

    def speeds(self, device: str) -> Speeds:
        """What a machine that executes runs for this ``device`` does in a second, for forecasts.

        Raises UsageError as ``machine`` does.
        """
        ...

    def version(self, package: str, stack: str = MAIN) -> str | None:
        """The version of a distribution in a stack, by its name on PyPI; None if it is not installed."""
        ...

    def obstacle(self, stack: str) -> str | None:
        """Why a stack cannot run anything, and what to do about it; None if it is ready.

        Raises UsageError for an unknown stack.
        """
        ...
