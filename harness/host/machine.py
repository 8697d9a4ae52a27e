"""The machine the harness runs on: its properties, its changing state, and its software.

It imports no backend: a GPU is read through NVML, a library's version from its metadata.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from harness.core.identity import Scalar
from harness.core.record import Fingerprint
from harness.core.site import Machine
from harness.errors import UsageError
from harness.host.compilers import absent_compilers
from harness.host.control_group import memory_left, memory_limits
from harness.host.gpu import GpuIdentity, absence, gpu, gpu_value, gpus, mistaken_absence
from harness.host.preflight import preflight
from harness.host.processor import instruction_sets, processor_state

DIST_INFO = ".dist-info"
START_S = 60.0
"""Within which an interpreter starts, on a busy machine with a cold disk."""
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


def choose(device: str, cache_root: Path | None = None) -> Machine:
    """The machine with the recipe's device. Raises UsageError for a GPU that is missing or that torch cannot use.

    Of several GPUs, those that are like the first one belong to it: figures of unlike ones cannot be compared.
    Torch's answer about a GPU is kept in a cache folder (default: the user's).
    """
    checked = None if device == "cpu" else preflight(cache_root or cache_folder())
    unmeant = mistaken_absence() if device == "auto" and checked is None else None
    problem = unmeant if checked is None else checked.problem
    if device == "cuda" and checked is None:
        raise UsageError(f"device: cuda, but {absence()}; see 'qharness doctor'")
    if device == "cuda" and problem is not None:
        raise UsageError(f"device: cuda, but {problem}")
    if checked is None or problem is not None:
        cpu, instructions = f"{cpu_name()}, {cores()} cores", frozenset(instruction_sets())
        allowed = min([memory_bytes(), *memory_limits()])
        return Machine("cpu", cpu, memory_bytes=allowed, instructions=instructions, gpu_problem=problem)
    with gpus() as visible:
        found = visible[0].identity() if visible else GpuIdentity(checked.name)
        alike = tuple(each.uuid for each in visible if each.identity() == found)
    hardware = f"{found.hardware_class}; {cpu_name()}"  # without the cores, which a job is given more or fewer of
    return Machine(
        "cuda",
        hardware,
        checked.capability,
        alike,
        found.memory_bytes or 0,
        driver=checked.driver,
        absent_compilers=absent_compilers(),
    )


def fingerprint(
    packages: Iterable[str] = (),
    installed: Mapping[str, str] = MappingProxyType({}),
    beside: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Fingerprint:
    """The machine and its software at this moment; what cannot be read is left out.

    ``packages`` are additional packages whose versions matter; ``installed`` and ``beside`` are noted as given.
    """
    hardware: dict[str, Scalar] = {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "platform": platform.platform(),
    }
    with gpus() as visible:
        if visible:
            hardware |= visible[0].identity().hardware()
        if len(visible) > 1:
            hardware["gpus"] = len(visible)
    software = {"python": platform.python_version(), **versions(packages)}
    return Fingerprint(hardware, software, state(), installed, beside)


def state() -> dict[str, float]:
    """The changing state at this moment. GPUs are read first, because an idle GPU lowers its clocks."""
    of_gpu: dict[str, float] = {}
    with gpus() as visible:
        for index, device in enumerate(visible):
            of_gpu |= {gpu_value(name, index): value for name, value in device.state().values.items()}
    load = {"load_average_1m": os.getloadavg()[0], "available_memory_bytes": float(available_memory_bytes())}
    return {**of_gpu, **processor_state(), **load}


def unreported_state() -> Mapping[str, str]:
    """The values of ``state`` that a GPU does not report, each with the reason."""
    with gpu() as device:
        return {"all": "NVML shows no GPU"} if device is None else device.state().unreported


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """The installed versions of the packages that affect figures."""
    installed = {package: installed_version(package) for package in (*PACKAGES, *packages)}
    return {package: number for package, number in installed.items() if number is not None}


@cache
def installed() -> Mapping[str, str]:
    """The versions of all distributions of this environment, by their names as package indexes have them.

    Read from the names of their folders: each of some hundred metadata files would have to be parsed.
    """
    return _distributions(sys.path)


def installed_beside(interpreter: str) -> Mapping[str, str]:
    """The same of another interpreter's environment, and the version of its Python; nothing if it does not start."""
    tell = "import json, platform, sys; print(json.dumps([platform.python_version(), sys.path[1:]]))"
    try:
        told = subprocess.run([interpreter, "-c", tell], stdin=subprocess.DEVNULL, capture_output=True, timeout=START_S)
        python, places = json.loads(told.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}
    return {"python": python, **_distributions(places)}


def _distributions(places: Iterable[str]) -> dict[str, str]:
    """Of two copies of a distribution, the one that is imported."""
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    for place in map(Path, places):
        for folder in place.glob(f"*{DIST_INFO}"):
            name, _, number = folder.name.removesuffix(DIST_INFO).partition("-")
            found.setdefault(canonicalize_name(name), number)
    return dict(sorted(found.items()))


@cache
def installed_version(package: str) -> str | None:
    """The version of a distribution, read without importing it; None if it is not installed.

    Read once: a plan asks for the same few dozen hundreds of times, and each answer parses the package's whole README.
    """
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


def is_wsl() -> bool:
    """Whether this is Linux under Windows (WSL2), which reaches the GPU through Windows."""
    return Path("/dev/dxg").exists() or "microsoft" in platform.release().lower()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    return _meminfo("MemTotal")


def available_memory_bytes() -> int:
    """Memory still available to processes; 0 if unknown."""
    return _meminfo("MemAvailable")


def usable_memory_bytes() -> int:
    """Memory that is available and that the control groups of this process leave; 0 if unknown."""
    return min([available_memory_bytes(), *memory_left()])


def cache_folder() -> Path:
    """The folder for everything that can be recreated: $QHARNESS_CACHE, or qharness in the user's cache folder."""
    chosen = os.environ.get("QHARNESS_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qharness"


def state_folder() -> Path:
    """The folder for what must not be lost: qharness in the user's state folder (XDG base directories)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "qharness"


def gpu_summary() -> str:
    """Name and memory of the GPU that would be used, or why there is none."""
    with gpu() as device:
        found = None if device is None else device.identity()
    if found is None:
        return f"none: {absence()}"
    return f"{found.name}, {found.memory_bytes / 2**30:.0f} GiB" if found.memory_bytes else found.name


def _meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes; 0 if there is no /proc."""
    path = Path("/proc/meminfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
