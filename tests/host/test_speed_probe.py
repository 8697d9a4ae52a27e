"""What the probe counts and times: on a CPU for real, on a GPU with a stand-in for torch that only counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.site import Machine
from harness.host import speed_probe, speeds


class _Tensor:
    def __init__(self, torch: _Torch, shape: tuple[int, ...], dtype: str) -> None:
        self.torch, self.shape, self.dtype = torch, shape, dtype

    def __matmul__(self, other: _Tensor) -> _Tensor:
        self.torch.begin(f"product in {self.dtype}", 2 * self.shape[0] * self.shape[1] * other.shape[1])
        return self

    def copy_(self, source: _Tensor) -> _Tensor:
        self.torch.begin("copy", 2 * 4 * source.shape[0])
        return self


class _Torch:
    """Work begins when it is called, and its time passes when the device is waited for, as on a GPU."""

    float32, bfloat16, float16 = "float32", "bfloat16", "float16"
    PER_S = 1e12

    def __init__(self) -> None:
        self.now_s = 0.0
        self.begun: list[float] = []
        self.calls: Counter[str] = Counter()
        self.cuda = SimpleNamespace(synchronize=self.synchronize)

    def ones(self, *shape: int, device: str, dtype: str = "float32") -> _Tensor:
        assert device == "cuda:0"
        return _Tensor(self, shape, dtype)

    def empty_like(self, other: _Tensor) -> _Tensor:
        return _Tensor(self, other.shape, other.dtype)

    def begin(self, what: str, amount: float) -> None:
        self.calls[what] += 1
        self.begun.append(amount)

    def synchronize(self, device: str) -> None:
        self.now_s += sum(self.begun) / self.PER_S
        self.begun.clear()


def test_a_gpu_is_waited_for_and_every_byte_and_operation_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch = _Torch()
    modules: dict[str, Any] = {"torch": torch}
    monkeypatch.setattr(speed_probe, "import_module", modules.__getitem__)
    best = speed_probe._best
    monkeypatch.setattr(speed_probe, "_best", lambda work, clock=None: best(work, lambda: torch.now_s))
    found = speed_probe.probe("cuda:0", tmp_path)
    assert found["bandwidth_byte_per_s"] == pytest.approx(torch.PER_S)
    assert found["operations_per_s"] == pytest.approx(dict.fromkeys(speed_probe.GPU_DTYPES, torch.PER_S))
    assert min(torch.calls.values()) >= speed_probe.BURSTS
    assert found["disk_byte_per_s"] > 0
    assert not list(tmp_path.iterdir())


def test_a_probe_that_ends_without_an_answer_leaves_a_typical_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(speeds.subprocess, "run", lambda *command, **own: subprocess.CompletedProcess(command, 1))
    assert speeds.machine_speeds(Machine("cpu", "a machine"), tmp_path) == speeds.TYPICAL
    assert not list((tmp_path / speeds.FOLDER).iterdir()), "it is timed again"


def test_starting_is_timed_with_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The threads that NumPy starts compute while they wait. The constants of forecasts count without them."""
    started: list[dict[str, str]] = []
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def run(command: list[str], env: dict[str, str], **others: object) -> None:
        if command[-2:] == ["-c", "import numpy"]:
            started.append({name: value for name, value in env.items() if name.endswith("_NUM_THREADS")})
        else:
            answer = {"bandwidth_byte_per_s": 1.0, "operations_per_s": {"float32": 1.0}, "disk_byte_per_s": 1.0}
            Path(command[-1]).write_text(json.dumps(answer), encoding="utf-8")

    monkeypatch.setattr(speeds.subprocess, "run", run)
    assert speeds.machine_speeds(Machine("cpu", "a machine"), tmp_path) != speeds.TYPICAL
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    assert started == [one] * speeds.STARTS


def test_speeds_are_those_of_the_interpreter_and_of_so_many_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numbers = iter(range(1, 10))
    monkeypatch.setattr(
        speeds, "_time", lambda device, folder: speeds.Speeds(next(numbers), 1.0, {"float32": 1.0}, 1.0)
    )
    (tmp_path / speeds.FOLDER).mkdir()
    machine = Machine("cpu", "a machine")
    first = speeds.machine_speeds(machine, tmp_path)
    assert speeds.machine_speeds(machine, tmp_path) == first
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    second = speeds.machine_speeds(machine, tmp_path)
    assert second != first
    monkeypatch.setattr(sys, "executable", "/another/python")
    assert speeds.machine_speeds(machine, tmp_path) not in (first, second)
