"""The stub of NVML, asked by the real pynvml: what a test may rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pynvml
import pytest
from nvml_stub import (
    A100,
    DRIVER_MISMATCH,
    GIB,
    GPU_IS_LOST,
    H200,
    NO_PERMISSION,
    NOT_SUPPORTED,
    SLICED_H200,
    NvmlStub,
    Process,
)


def handle(index: int = 0) -> object:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def error(call, *arguments: object) -> int:
    """The number of the error that a call raises."""
    with pytest.raises(pynvml.NVMLError) as raised:
        call(*arguments)
    return raised.value.value


def test_two_unlike_gpus(nvml: NvmlStub) -> None:
    nvml.holds(H200, A100, driver="590.44.01")
    assert error(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED
    first, second = handle(0), handle(1)
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlSystemGetDriverVersion() == "590.44.01"
    assert pynvml.nvmlSystemGetCudaDriverVersion_v2() == 13000
    assert [pynvml.nvmlDeviceGetUUID(each) for each in (first, second)] == [H200.uuid, A100.uuid]
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByUUID(A100.uuid)) == A100.name
    assert pynvml.nvmlDeviceGetCudaComputeCapability(second) == (8, 0)
    assert pynvml.nvmlDeviceGetMemoryInfo(first).total == 141 * GIB
    assert pynvml.nvmlDeviceGetMigMode(first) == [0, 0]
    assert error(pynvml.nvmlDeviceGetHandleByIndex, 2) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    for abbreviated in ("GPU-8932", "MIG-GPU-8932", ""):
        assert error(pynvml.nvmlDeviceGetHandleByUUID, abbreviated) == pynvml.NVML_ERROR_NOT_FOUND


def test_changing_answers_and_errors(nvml: NvmlStub) -> None:
    nvml.holds(H200.answering(event_reasons=0x24, power_limit=f"!{NOT_SUPPORTED}"))
    gpu = handle()
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == 0x24
    assert error(pynvml.nvmlDeviceGetEnforcedPowerLimit, gpu) == NOT_SUPPORTED
    assert pynvml.nvmlDeviceGetTemperatureV(gpu, pynvml.NVML_TEMPERATURE_GPU) == 41
    power, other = pynvml.nvmlDeviceGetFieldValues(gpu, [74, 75])
    assert (power.nvmlReturn, power.value.ullVal, other.nvmlReturn) == (0, 3_000_000_000, NOT_SUPPORTED)
    assert pynvml.nvmlDeviceGetViolationStatus(gpu, pynvml.NVML_PERF_POLICY_THERMAL).violationTime == 250_000_000
    nvml.holds(H200.answering(temperature=90))
    assert pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU) == 90


def test_processes(nvml: NvmlStub) -> None:
    nvml.holds(H200)
    gpu = handle()
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    nvml.holds(H200.running(Process(None, 5 * GIB), Process(7, 0), Process(8, None)))
    listed = {each.pid: each.usedGpuMemory for each in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
    assert listed == {os.getpid(): 5 * GIB, 7: 0, 8: None}


def test_mig_slices_have_answers_of_their_own(nvml: NvmlStub) -> None:
    nvml.holds(A100, SLICED_H200)
    gpu = handle(1)
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    slices = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index) for index in (0, 1)]
    assert error(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 2) == pynvml.NVML_ERROR_NOT_FOUND
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 7
    assert [pynvml.nvmlDeviceGetMemoryInfo(each).total // GIB for each in slices] == [70, 17]
    assert [pynvml.nvmlDeviceGetGpuInstanceId(each) for each in slices] == [1, 5]
    by_uuid = pynvml.nvmlDeviceGetHandleByUUID(SLICED_H200.slices[1].uuid)
    assert pynvml.nvmlDeviceGetName(by_uuid) == "NVIDIA H200 MIG 1g.18gb"
    by_instances = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{H200.uuid}/5/0")
    assert pynvml.nvmlDeviceGetUUID(by_instances) == SLICED_H200.slices[1].uuid
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(by_uuid)) == H200.uuid
    assert pynvml.nvmlDeviceGetAttributes(by_uuid).gpuInstanceSliceCount == 1
    assert error(pynvml.nvmlDeviceGetPowerUsage, by_uuid) == NOT_SUPPORTED


def test_a_forbidden_gpu_is_counted(nvml: NvmlStub) -> None:
    nvml.holds(replace(H200, forbidden=True), A100)
    assert pynvml.nvmlDeviceGetName(handle(1)) == A100.name
    assert pynvml.nvmlDeviceGetCount() == 2
    assert error(pynvml.nvmlDeviceGetHandleByIndex, 0) == NO_PERMISSION
    assert error(pynvml.nvmlDeviceGetHandleByUUID, H200.uuid) == pynvml.NVML_ERROR_NOT_FOUND


def test_a_lost_gpu_fails_every_call_and_leaves_the_other(nvml: NvmlStub) -> None:
    nvml.holds(H200, A100)
    first, second = handle(0), handle(1)
    nvml.holds(replace(H200, lost=True), A100)
    assert error(pynvml.nvmlDeviceGetMemoryInfo, first) == GPU_IS_LOST
    assert error(pynvml.nvmlDeviceGetHandleByIndex, 0) == GPU_IS_LOST
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetName(second) == A100.name
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByUUID(A100.uuid)) == A100.uuid


def test_a_library_without_a_function_and_one_that_does_not_match_the_driver(nvml: NvmlStub) -> None:
    nvml.holds(H200)
    nvml.lacks("nvmlDeviceGetTemperatureV")
    gpu = handle()
    function_not_found = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert error(pynvml.nvmlDeviceGetTemperatureV, gpu, pynvml.NVML_TEMPERATURE_GPU) == function_not_found
    assert pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU) == 41
    nvml.lacks()
    nvml.holds(init=DRIVER_MISMATCH)
    assert error(pynvml.nvmlInit) == DRIVER_MISMATCH


def test_a_child_process_sees_the_same_machine(nvml: NvmlStub) -> None:
    nvml.holds(A100)
    code = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetName(n.nvmlDeviceGetHandleByIndex(0)))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == A100.name
