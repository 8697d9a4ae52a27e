"""GPUs as the real pynvml reads them from a stub of NVIDIA's library."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from itertools import product

import pynvml
import pytest
from nvml_stub import (
    A100,
    DRIVER_MISMATCH,
    GIB,
    H200,
    NOT_SUPPORTED,
    SLICED_H200,
    SLICES,
    Gpu,
    NvmlStub,
    Process,
)

from harness.host.gpu import GpuIdentity, GpuState, absence, gpu, gpus, mistaken_absence, visible_uuids
from harness.host.visible import all_parts, select, visible_parts

OTHER, ANOTHER = 2**30, 2**30 + 1  # no process has so large a number


def state() -> GpuState:
    with gpu() as first:
        assert first is not None
        return first.state()


def identity() -> GpuIdentity:
    with gpu() as first:
        assert first is not None
        return first.identity()


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, (H200, A100)),
        ("1", (A100,)),
        ("GPU-89a", (A100,)),
        (f"{A100.uuid},{H200.uuid}", (A100, H200)),
        (f"{A100.uuid},{A100.uuid}", ()),
        ("GPU-89", ()),
        ("", ()),
    ],
)
def test_the_visible_gpus(nvml: NvmlStub, monkeypatch, listed: str | None, expected: tuple[Gpu, ...]) -> None:
    nvml.holds(H200, A100)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_uuids() == tuple(each.uuid for each in expected)
    with gpus() as found:
        assert [each.name() for each in found] == [each.name for each in expected]
    with gpu() as first:
        assert (first is None) == (not expected)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, (A100.uuid, SLICES[0].uuid, SLICES[1].uuid)),
        ("1", (SLICES[0].uuid,)),
        (SLICED_H200.uuid, (SLICES[0].uuid,)),
        (SLICES[1].uuid, (SLICES[1].uuid,)),
        (f"MIG-{SLICED_H200.uuid}/5/0", (SLICES[1].uuid,)),
    ],
)
def test_the_visible_slices(nvml: NvmlStub, monkeypatch, listed: str | None, expected: tuple[str, ...]) -> None:
    nvml.holds(A100, SLICED_H200)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_uuids() == expected


def test_gpus_of_other_jobs_have_no_number(nvml: NvmlStub, monkeypatch) -> None:
    nvml.holds(replace(H200, forbidden=True), A100, replace(H200, uuid="GPU-0", lost=True))
    assert visible_uuids() == (A100.uuid,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert visible_uuids() == (A100.uuid,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert visible_uuids() == ()


def test_whole_uuids_and_the_list_of_all_gpus_agree(nvml: NvmlStub, monkeypatch) -> None:
    nvml.holds(A100, SLICED_H200)
    names = [A100.uuid, SLICED_H200.uuid, SLICES[0].uuid, f"MIG-{SLICED_H200.uuid}/1/0", "0", "GPU-x", ""]
    pynvml.nvmlInit()
    for listed in (",".join(pair) for pair in product(names, names)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert visible_parts(pynvml) == select(listed, all_parts(pynvml)), listed


def test_a_whole_uuid_needs_no_list_of_all_gpus(nvml: NvmlStub, monkeypatch) -> None:
    """To list all GPUs initializes them, which takes seconds each without persistence mode. Nor does an empty list."""

    def refuse(index: int) -> None:
        raise AssertionError(f"GPU {index} was initialized")

    nvml.holds(H200, A100, SLICED_H200)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", refuse)
    for uuid in (A100.uuid, SLICES[1].uuid):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid)
        assert visible_uuids() == (uuid,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_uuids() == ()


def test_identity(nvml: NvmlStub) -> None:
    nvml.holds(H200, driver="590.44.01")
    assert identity() == GpuIdentity("NVIDIA H200", (9, 0), 141 * GIB, "590.44.01", 700.0)
    nvml.holds(SLICED_H200)
    assert identity() == GpuIdentity("NVIDIA H200 MIG 3g.71gb", (9, 0), 70 * GIB, "580.65.06", 700.0, "3g.71gb")
    nvml.holds(H200.answering(power_limit=f"!{NOT_SUPPORTED}", capability=f"!{NOT_SUPPORTED}"))
    assert identity() == GpuIdentity("NVIDIA H200", None, 141 * GIB, "580.65.06")
    assert identity().hardware() == {"gpu": "NVIDIA H200", "gpu_memory_bytes": 141 * GIB, "driver": "580.65.06"}


def test_the_cuda_version_of_the_driver(nvml: NvmlStub) -> None:
    nvml.holds(H200, cuda=12040)
    with gpu() as first:
        assert first is not None
        assert first.driver_cuda() == (12, 4)


def test_the_state_is_in_the_units_of_its_names(nvml: NvmlStub) -> None:
    nvml.holds(replace(H200.answering(event_reasons=0x24), used_bytes=GIB))
    found = state()
    assert found.values == {
        "gpu_sm_clock_mhz": 1755,
        "gpu_memory_clock_mhz": 3201,
        "gpu_slowdown_reasons": 0x24,
        "gpu_power_violation_s": 3,
        "gpu_thermal_violation_s": 0.25,
        "gpu_temperature_c": 41,
        "gpu_used_bytes": GIB,
        "gpu_sm_clock_limit_mhz": 1980,
        "gpu_power_limit_w": 700,
        "gpu_persistence": 1,
        "gpu_processes": 0,
    }
    assert found.unreported.keys() == {"gpu_other_processes", "gpu_other_bytes"}


def test_an_older_library_and_an_older_pynvml_give_the_same_state(nvml: NvmlStub, monkeypatch) -> None:
    nvml.holds(H200.running(Process(None, GIB), Process(OTHER, 2 * GIB)))
    newest = state()
    assert newest.values["gpu_other_bytes"] == 2 * GIB
    nvml.lacks(
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetMaxMigDeviceCount",
    )
    assert state() == newest
    nvml.lacks()
    for name in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetFieldValues"):
        monkeypatch.delattr(pynvml, name)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount")
    assert state() == newest


def test_a_newer_library_without_what_is_deprecated_gives_the_same_state(nvml: NvmlStub) -> None:
    nvml.holds(H200)
    newest = state()
    nvml.lacks("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetViolationStatus")
    assert state() == newest


def test_a_value_that_is_not_reported_has_its_reason(nvml: NvmlStub) -> None:
    nvml.holds(H200.answering(field_269=f"!{NOT_SUPPORTED}", temperature=f"!{NOT_SUPPORTED}"))
    nvml.lacks("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    found = state()
    assert found.unreported == {
        "gpu_slowdown_reasons": "Function Not Found",
        "gpu_thermal_violation_s": "Not Supported",
        "gpu_temperature_c": "Not Supported",
        "gpu_other_processes": "the driver lists no process of this run",
        "gpu_other_bytes": "the driver lists no process of this run",
    }
    assert found.values["gpu_power_violation_s"] == 3
    assert not found.values.keys() & found.unreported.keys()


def test_a_slice_has_its_own_memory_and_processes_and_no_clocks(nvml: NvmlStub) -> None:
    """The whole GPU's answers are none of a slice's: other slices use it too."""
    parts = [replace(SLICES[0], used_bytes=5 * GIB).running(Process(None, 4 * GIB), Process(OTHER, GIB)), SLICES[1]]
    nvml.holds(
        replace(SLICED_H200, slices=parts, used_bytes=90 * GIB).running(Process(None, 4 * GIB), Process(ANOTHER, GIB))
    )
    found = state()
    expected = {"gpu_used_bytes": 5 * GIB, "gpu_processes": 2, "gpu_other_processes": 1, "gpu_other_bytes": GIB}
    assert found.values == expected
    assert found.unreported["gpu_sm_clock_mhz"] == "Not Supported"
    with gpus() as (first, second):
        assert (first.process_bytes(), first.used_bytes(), first.energy_j()) == (4 * GIB, 5 * GIB, None)
        assert (second.process_bytes(), second.used_bytes()) == (None, 0)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ({}, {"gpu_processes": 0}),
        ({None: 100}, {"gpu_processes": 1, "gpu_other_processes": 0, "gpu_other_bytes": 0}),
        ({None: 100, OTHER: 20, ANOTHER: 3}, {"gpu_processes": 3, "gpu_other_processes": 2, "gpu_other_bytes": 23}),
        ({None: 100, OTHER: None}, {"gpu_processes": 2, "gpu_other_processes": 1}),
        ({None: 100, OTHER: 0, ANOTHER: 3}, {"gpu_processes": 3, "gpu_other_processes": 2}),
        ({None: 0, OTHER: 20}, {"gpu_processes": 2, "gpu_other_processes": 1, "gpu_other_bytes": 20}),
        ({OTHER: 20}, {"gpu_processes": 1}),  # it may be this one, by another number
    ],
)
def test_who_else_computes_on_the_gpu(nvml: NvmlStub, processes: dict[int | None, int | None], expected: dict) -> None:
    nvml.holds(H200.running(*(Process(pid, used) for pid, used in processes.items())))
    found = state().values
    counts = "gpu_processes", "gpu_other_processes", "gpu_other_bytes"
    assert {name: found[name] for name in counts if name in found} == expected


def test_processes_that_this_one_started_are_its_own(nvml: NvmlStub) -> None:
    """As the parts of vLLM on several GPUs: one process for each, beside the one that started them."""
    with subprocess.Popen(["sleep", "60"]) as child, subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        nvml.holds(H200.running(Process(None, 1), Process(child.pid, 20), Process(other.pid, 300)))
        found = state().values
        with gpu() as first:
            assert first is not None
            assert first.process_bytes() == 21
        child.kill()
        other.kill()
    assert (found["gpu_other_processes"], found["gpu_other_bytes"]) == (1, 300)


@pytest.mark.parametrize(("used", "expected"), [(3 * GIB, 3 * GIB), (0, None), (None, None)])
def test_the_memory_of_this_process(nvml: NvmlStub, used: int | None, expected: int | None) -> None:
    nvml.holds(H200.running(Process(None, used), Process(OTHER, GIB)))
    with gpu() as first:
        assert first is not None
        assert first.process_bytes() == expected


def test_energy(nvml: NvmlStub) -> None:
    nvml.holds(H200.answering(energy=2500))
    with gpu() as first:
        assert first is not None
        assert first.energy_j() == 2.5
        nvml.holds(H200.answering(energy=f"!{NOT_SUPPORTED}"))
        assert first.energy_j() is None


def test_the_energy_of_a_whole_gpu_is_not_that_of_its_slice(nvml: NvmlStub) -> None:
    """Drivers were seen to answer for a slice with the power of its GPU."""
    answering = SLICES[0].answering(energy=2500, power=600_000)
    nvml.holds(replace(SLICED_H200, slices=(answering,)))
    with gpu() as first:
        assert first is not None
        assert (first.energy_j(), first.power_w()) == (None, None)


def test_a_gpu_that_disappears(nvml: NvmlStub) -> None:
    nvml.holds(H200, A100)
    with gpu() as first:
        assert first is not None
        nvml.holds(replace(H200, lost=True), A100)
        assert first.state().values == {}
        assert first.state().unreported["gpu_sm_clock_mhz"] == "GPU is lost"
        assert (first.energy_j(), first.used_bytes(), first.process_bytes()) == (None, None, None)
    assert visible_uuids() == (A100.uuid,)


@pytest.mark.parametrize(("listed", "named"), [(None, False), ("", False), ("-1", False), ("7", True), ("GPU-1", True)])
def test_an_absence_that_nobody_means(nvml: NvmlStub, monkeypatch, listed: str | None, named: bool) -> None:
    """auto takes the CPU then, and says why."""
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert mistaken_absence() is None, "no GPU is there"
    nvml.holds(H200)
    assert (mistaken_absence() is not None) == named
    nvml.holds(H200, init=DRIVER_MISMATCH)
    assert (mistaken_absence() is None) == (listed in ("", "-1"))


def test_why_no_gpu_is_visible(nvml: NvmlStub, monkeypatch) -> None:
    assert absence().startswith("the NVIDIA driver reports no GPU that can be used; run nvidia-smi")
    nvml.holds(replace(SLICED_H200, slices=(), answers={**H200.answers, "mig": 1}))
    assert visible_uuids() == ()
    assert absence().startswith("the NVIDIA driver reports no GPU that can be used; run nvidia-smi")
    nvml.holds(H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert absence() == f"CUDA_VISIBLE_DEVICES is 'GPU-1', which names none of {H200.uuid}"
    nvml.holds(H200, init=DRIVER_MISMATCH)
    assert absence() == "the NVIDIA driver was updated and its old version still runs: restart the machine"
    assert visible_uuids() == ()
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert absence() == "no NVIDIA driver was found (NVML Shared Library Not Found)"
