"""Which GPU is asked, on a made-up NVML: the one that torch will call cuda:0."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.host import machine


class NVMLError(Exception):
    """As pynvml's."""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, torch_uses_gpu: None) -> None:
    """GPUs "A" and "B"; B refuses to tell its temperature, as MIG slices do."""
    nvml = ModuleType("pynvml")

    def by_index(index: int) -> str:
        if index > 1:
            raise NVMLError
        return "AB"[index]

    def temperature(handle: str, sensor: int) -> int:
        if handle == "B":
            raise NVMLError
        return 50

    def violation(handle: str, policy: int) -> SimpleNamespace:
        if handle == "B":
            raise NVMLError
        return SimpleNamespace(violationTime=(3_000_000_000, 250_000_000)[policy])

    memory = type("Memory", (), {"total": 80 * 2**30, "used": 2**30})
    members = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_PERF_POLICY_POWER": 0,
        "NVML_PERF_POLICY_THERMAL": 1,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": by_index,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid[-1],
        "nvmlDeviceGetName": lambda handle: f"GPU {handle}",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-uuid-of-{handle}",
        "nvmlDeviceGetMemoryInfo": lambda handle: memory,
        "nvmlDeviceGetTemperature": temperature,
        "nvmlDeviceGetClockInfo": lambda handle, clock: {1: 1500, 2: 2600}[clock],
        "nvmlDeviceGetMaxClockInfo": lambda handle, clock: 1980,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x24,
        "nvmlDeviceGetViolationStatus": violation,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
        "nvmlSystemGetDriverVersion": lambda: "600.1",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
    }
    for name, member in members.items():
        setattr(nvml, name, member)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, "GPU A"), ("1", "GPU B"), ("1,0", "GPU B"), ("GPU-uuid-of-B", "GPU B")]
)
def test_the_first_visible_gpu_is_the_one(two_gpus, monkeypatch, visible: str | None, expected: str) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen = machine.choose("auto")
    assert chosen.device == "cuda"
    assert chosen.hardware.startswith(f"{expected}; ")
    assert chosen.gpus == (2 if visible is None else visible.count(",") + 1)
    assert chosen.memory_bytes == 80 * 2**30
    assert machine.fingerprint().hardware["gpu"] == expected


@pytest.mark.parametrize("hidden", ["", "-1", "7"])
def test_a_hidden_gpu_is_not_used(two_gpus, monkeypatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert machine.choose("auto").device == "cpu"
    with pytest.raises(UsageError, match="no NVIDIA GPU"):
        machine.choose("cuda")


def test_what_a_gpu_does_not_tell_is_left_out(two_gpus, monkeypatch) -> None:
    assert machine.fingerprint().state["gpu_temperature_c"] == 50
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    state = machine.fingerprint().state
    assert not state.keys() & {"gpu_temperature_c", "gpu_power_violation_s", "gpu_thermal_violation_s"}
    assert state["gpu_sm_clock_mhz"] == 1500


def test_what_drifts_in_a_gpu_is_told_in_the_units_of_its_names(two_gpus) -> None:
    found = {name: value for name, value in machine.state().items() if name.startswith("gpu_")}
    assert found == {
        "gpu_sm_clock_mhz": 1500,
        "gpu_memory_clock_mhz": 2600,
        "gpu_slowdown_reasons": 0x24,
        "gpu_power_violation_s": 3,
        "gpu_thermal_violation_s": 0.25,
        "gpu_temperature_c": 50,
        "gpu_used_bytes": 2**30,
        "gpu_sm_clock_limit_mhz": 1980,
        "gpu_power_limit_w": 700,
        "gpu_persistence": 1,
        "gpu_processes": 0,
    }


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ({}, {"gpu_processes": 0}),
        ({7: 100}, {"gpu_processes": 1, "gpu_other_bytes": 0}),
        ({7: 100, 8: 20, 9: 3}, {"gpu_processes": 3, "gpu_other_bytes": 23}),
        ({7: 100, 8: None}, {"gpu_processes": 2}),
        ({8: 20}, {"gpu_processes": 1}),  # this one may be it, by another number
    ],
)
def test_who_else_computes_on_the_gpu(two_gpus, monkeypatch, listed: dict[int, int | None], told: dict) -> None:
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in listed.items()]
    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetComputeRunningProcesses", lambda handle: processes)
    with machine.gpu() as gpu:
        assert gpu is not None
        state = gpu.state(pid=7)
    assert {name: state[name] for name in ("gpu_processes", "gpu_other_bytes") if name in state} == told


def test_energy_and_memory_are_told_where_the_driver_tells_them(two_gpus, monkeypatch) -> None:
    """B counts no energy; the driver lists this process on A alone, and another one whose memory it does not know."""
    mine = SimpleNamespace(pid=1, usedGpuMemory=3 * 2**30)
    unknown = SimpleNamespace(pid=2, usedGpuMemory=None)

    def millijoules(handle: str) -> int:
        if handle == "B":
            raise NVMLError
        return 2500

    nvml = sys.modules["pynvml"]
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", millijoules, raising=False)
    listed = {"A": [unknown, mine], "B": []}
    monkeypatch.setattr(nvml, "nvmlDeviceGetComputeRunningProcesses", listed.get, raising=False)
    found = {}
    for index in ("0", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", index)
        with machine.gpu() as gpu:
            assert gpu is not None
            found[index] = gpu.energy_j(), gpu.process_bytes(1), gpu.process_bytes(2), gpu.used_bytes()
    assert found == {"0": (2.5, 3 * 2**30, None, 2**30), "1": (None, None, None, 2**30)}
