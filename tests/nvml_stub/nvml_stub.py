"""A stub of NVIDIA's NVML library, compiled from nvml.c, behind the real pynvml: the GPUs of a machine that has none.

A test takes the fixture ``nvml`` and says what the machine holds::

    def test_two_gpus(nvml: NvmlStub) -> None:
        nvml.holds(H200, A100)

From then on pynvml in this process, and in every child process, talks to the stub. Each call reads the answers again:
another ``holds`` changes them at once, also for processes that run already (a GPU that disappears, memory that fills).
No number here was measured; they are what data sheets and nvml.h lead one to expect.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pynvml
import pytest

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
GIB = 2**30
NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, DRIVER_MISMATCH = 3, 4, 15, 18
_keep = TemporaryDirectory(prefix="qharness-nvml-stub-")


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU. ``pid`` None is whoever asks; ``used_bytes`` None is "not available"."""

    pid: int | None
    used_bytes: int | None

    def line(self) -> str:
        return f"process {self.pid or 'self'} {-1 if self.used_bytes is None else self.used_bytes}"


@dataclass(frozen=True)
class Device:
    """A GPU or a MIG slice: its name, its memory, who computes on it, and other answers by the keys of nvml.c.

    An answer ``"!3"`` is the error 3 (``NOT_SUPPORTED``); so is a key that is not there.
    """

    uuid: str
    name: str
    total_bytes: int
    used_bytes: int = 0
    answers: Mapping[str, int | str] = field(default_factory=dict)
    processes: Sequence[Process] = ()

    def lines(self) -> list[str]:
        own = {"uuid": self.uuid, "name": self.name, "total": self.total_bytes, "used": self.used_bytes}
        answers = [f"{key} {value}" for key, value in {**own, **self.answers}.items()]
        return [*answers, *(process.line() for process in self.processes)]

    def answering(self, **answers: int | str) -> Self:
        """The same device with other answers, by the keys of nvml.c."""
        return replace(self, answers={**self.answers, **answers})

    def running(self, *processes: Process) -> Self:
        return replace(self, processes=processes)


@dataclass(frozen=True)
class Gpu(Device):
    """A GPU, in MIG mode if it has ``slices``. Every call fails if it is ``lost``, or ``forbidden`` to this process."""

    slices: Sequence[Device] = ()
    lost: bool = False
    forbidden: bool = False

    def lines(self) -> list[str]:
        mode = [f"mig {int(bool(self.slices))}"] if self.slices or "mig" not in self.answers else []
        slices = [line for part in self.slices for line in ("slice", *part.lines())]
        failing = {GPU_IS_LOST: self.lost, NO_PERMISSION: self.forbidden}
        always = [f"always !{error}" for error, fails in failing.items() if fails]
        return ["gpu", *always, *mode, *super().lines(), *slices]


def mig_slice(number: int, gpu_instance: int, profile: str, total_bytes: int, **answers: int | str) -> Device:
    """A slice as of driver R470 and later, with one compute instance; it answers neither power nor clocks."""
    uuid = f"MIG-{number:08x}-1111-5222-8333-444444444444"
    own = {"gpu_instance": gpu_instance, "compute_instance": 0, "gpu_slices": int(profile[0])}
    own |= {"compute_slices": int(profile[0]), "sms": 16 * int(profile[0])}
    return Device(uuid, f"NVIDIA H200 MIG {profile}", total_bytes, answers={**own, **answers})


_WHOLE = {
    "clock_1": 1755,  # NVML_CLOCK_SM
    "clock_2": 3201,  # NVML_CLOCK_MEM
    "max_clock_1": 1980,
    "max_clock_2": 3201,
    "event_reasons": 0x0,
    "temperature": 41,
    "power": 120_000,
    "power_limit": 700_000,
    "persistence": 1,
    "energy": 5_000_000,
    "field_74": 3_000_000_000,  # NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP, ns
    "field_269": 250_000_000,  # NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, ns
}
H200 = Gpu(
    "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "NVIDIA H200",
    141 * GIB,
    answers={**_WHOLE, "capability": "9.0"},
)
A100 = Gpu(
    "GPU-89aa0b11-0c2d-4e3f-9a4b-5c6d7e8f9a0b",
    "NVIDIA A100-SXM4-80GB",
    80 * GIB,
    answers={**_WHOLE, "capability": "8.0", "power_limit": 400_000, "max_clock_1": 1410, "clock_1": 1275},
)
SLICES = (mig_slice(1, 1, "3g.71gb", 70 * GIB), mig_slice(2, 5, "1g.18gb", 17 * GIB))
SLICED_H200 = Gpu(H200.uuid, H200.name, H200.total_bytes, answers=H200.answers, slices=SLICES)


@dataclass(frozen=True)
class NvmlStub:
    """The library in a folder of its own, and the file with its answers."""

    folder: Path

    def holds(self, *gpus: Gpu, driver: str = "580.65.06", cuda: int = 13000, init: int = 0) -> None:
        """What the machine holds from now on. ``init`` is the error that nvmlInit returns, e.g. DRIVER_MISMATCH."""
        machine = [f"init {init}", f"driver {driver}", f"nvml 13.{driver}", f"cuda {cuda}"]
        text = "\n".join([*machine, *(line for gpu in gpus for line in gpu.lines())]) + "\n"
        written = self.folder / "machine.new"
        written.write_text(text, encoding="ascii")
        written.replace(self.folder / "machine.txt")

    def lacks(self, *functions: str) -> None:
        """From now on a library without these functions, as an older driver's; for new child processes too."""
        library = self.folder / LIBRARY
        library.unlink(missing_ok=True)
        shutil.copy(_compile(frozenset(functions)), library)
        own = self.folder / f"own-{len(list(self.folder.iterdir()))}.so"  # the loader knows a path that it loaded once
        shutil.copy(library, own)
        pynvml.nvmlLib = ctypes.CDLL(str(own))
        pynvml._nvmlGetFunctionPointer_cache.clear()


def install(folder: Path, patch: pytest.MonkeyPatch) -> NvmlStub:
    """The stub in a folder, for pynvml in this process until ``patch`` is undone and for its child processes."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here to build a stub of NVML with")
    patch.setattr(pynvml, "nvmlLib", None)
    patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    others = os.environ.get("LD_LIBRARY_PATH")
    patch.setenv("LD_LIBRARY_PATH", f"{folder}:{others}" if others else str(folder))
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stub = NvmlStub(folder)
    stub.holds()
    stub.lacks()
    return stub


@cache
def _compile(missing: frozenset[str]) -> Path:
    """The library, without the functions that are missing."""
    folder = Path(_keep.name, str(len(list(Path(_keep.name).iterdir()))))
    folder.mkdir()
    local = "".join(f"{name};" for name in sorted(missing))
    script = folder / "exports"
    script.write_text(f"{{ global: nvml*; local: {local} *; }};", encoding="ascii")
    flags = ["-shared", "-fPIC", "-O1", f"-Wl,--version-script={script}"]
    subprocess.run(["cc", *flags, "-o", folder / LIBRARY, SOURCE, "-ldl"], check=True)
    return folder / LIBRARY
