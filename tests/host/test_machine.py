"""What this machine is and how it stands, with GPUs from a stub of NVIDIA's library."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from nvml_stub import A100, GIB, H200, SLICED_H200, SLICES, NvmlStub, mig_slice
from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.host import machine
from harness.host.machine import installed, installed_beside

H200_TOO = replace(H200, uuid="GPU-f0000000-0000-4000-8000-000000000000")


@pytest.fixture(autouse=True)
def three_gpus(nvml: NvmlStub, torch_uses_gpu: None) -> None:
    nvml.holds(H200, A100, H200_TOO)


@pytest.mark.parametrize(
    ("visible", "expected", "uuids"),
    [
        (None, H200, (H200.uuid, H200_TOO.uuid)),
        ("1", A100, (A100.uuid,)),
        ("1,0", A100, (A100.uuid,)),
        ("2,1,0", H200_TOO, (H200_TOO.uuid, H200.uuid)),
        ("GPU-89a", A100, (A100.uuid,)),
    ],
)
def test_the_first_visible_gpu_is_the_one(
    monkeypatch, tmp_path: Path, visible: str | None, expected, uuids: tuple[str, ...]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen = machine.choose("auto", tmp_path)
    assert chosen.device == "cuda"
    limit_w = 700 if expected.name == H200.name else 400
    assert chosen.hardware.startswith(f"{expected.name}, {limit_w} W; ")
    assert chosen.uuids == uuids
    assert chosen.memory_bytes == expected.total_bytes
    assert machine.fingerprint().hardware["gpu"] == expected.name


def test_gpus_of_one_kind_are_one_machine_and_each_has_a_state_of_its_own(nvml: NvmlStub, tmp_path: Path) -> None:
    second, slow = replace(H200, uuid="GPU-2").answering(temperature=55), replace(H200, uuid="GPU-3")
    nvml.holds(H200, second, slow.answering(power_limit=500_000), A100)
    chosen = machine.choose("cuda", tmp_path)
    assert chosen.uuids == (H200.uuid, "GPU-2")
    assert chosen.gpus == 2
    now = machine.fingerprint()
    assert now.hardware["gpus"] == 4
    assert (now.state["gpu_temperature_c"], now.state["gpu_temperature_c_of_gpu_1"]) == (41, 55)


def test_a_job_with_more_cores_is_the_same_machine_on_a_gpu_and_another_on_a_cpu(monkeypatch, tmp_path: Path) -> None:
    one, other = [], []
    for cores, chosen in ((2, one), (8, other)):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        chosen += [machine.choose(device, tmp_path).hardware for device in ("cuda", "cpu")]
    assert one[0] == other[0]
    assert (one[1].endswith(", 2 cores"), other[1].endswith(", 8 cores")) == (True, True)


def test_a_gpu_with_another_power_limit_is_another_machine_and_its_driver_is_known(
    nvml: NvmlStub, tmp_path: Path
) -> None:
    nvml.holds(H200, driver="580.65.06")
    usual = machine.choose("cuda", tmp_path)
    nvml.holds(H200.answering(power_limit=500_000), driver="590.44.01")
    held_down = machine.choose("cuda", tmp_path)
    assert (usual.driver, held_down.driver) == ("580.65.06", "590.44.01")
    assert usual.hardware.replace("700 W", "500 W") == held_down.hardware
    nvml.holds(H200.answering(power_limit="!3"))  # not supported
    assert machine.choose("cuda", tmp_path).hardware.startswith("NVIDIA H200; ")


@pytest.mark.parametrize("hidden", ["", "-1", "7", "GPU-89"])
def test_a_hidden_gpu_is_not_used(monkeypatch, tmp_path: Path, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert machine.choose("auto", tmp_path).device == "cpu"
    with pytest.raises(UsageError, match=rf"CUDA_VISIBLE_DEVICES is '{hidden}', which names none of {H200.uuid}, "):
        machine.choose("cuda", tmp_path)


def test_a_machine_without_a_gpu_says_so(nvml: NvmlStub, tmp_path: Path) -> None:
    assert machine.gpu_summary() == "NVIDIA H200, 141 GiB"
    nvml.holds()
    assert machine.gpu_summary().startswith("none: the NVIDIA driver reports no GPU that can be used")
    assert machine.unreported_state() == {"all": "NVML shows no GPU"}
    assert "gpu_sm_clock_mhz" not in machine.state()
    with pytest.raises(UsageError, match="device: cuda, but the NVIDIA driver reports no GPU"):
        machine.choose("cuda", tmp_path)


def test_a_gpu_with_another_power_limit_is_another_machine(nvml: NvmlStub, tmp_path: Path) -> None:
    nvml.holds(H200, H200_TOO.answering(power_limit=500_000))
    assert machine.choose("cuda", tmp_path).uuids == (H200.uuid,)


def test_slices_serve_one_run_each(nvml: NvmlStub, tmp_path: Path) -> None:
    nvml.holds(H200, H200_TOO)
    whole = machine.choose("cuda", tmp_path)
    assert (whole.gpus, whole.gpus_per_run) == (2, 2)
    alike = [mig_slice(number, number, "1g.18gb", 17 * GIB) for number in (1, 2, 3)]
    nvml.holds(replace(SLICED_H200, slices=alike))
    sliced = machine.choose("cuda", tmp_path)
    assert (sliced.gpus, sliced.gpus_per_run) == (3, 1)


def test_a_slice_is_a_machine_of_its_own(nvml: NvmlStub, tmp_path: Path) -> None:
    nvml.holds(SLICED_H200)
    chosen = machine.choose("cuda", tmp_path)
    assert chosen.hardware.startswith("NVIDIA H200 MIG 3g.71gb, 700 W; ")  # of the whole GPU
    assert chosen.memory_bytes == 70 * GIB
    assert chosen.uuids == (SLICES[0].uuid,)
    hardware = machine.fingerprint().hardware
    assert (hardware["gpu_mig_profile"], hardware["gpu_memory_bytes"]) == ("3g.71gb", 70 * GIB)


def test_what_a_gpu_does_not_report_is_left_out(nvml: NvmlStub) -> None:
    assert machine.fingerprint().state["gpu_temperature_c"] == 41
    nvml.holds(H200.answering(temperature="!3", field_74="!3"))
    state = machine.fingerprint().state
    assert not state.keys() & {"gpu_temperature_c", "gpu_power_violation_s"}
    assert state["gpu_sm_clock_mhz"] == 1755
    unreported = {"gpu_temperature_c", "gpu_power_violation_s", "gpu_other_processes", "gpu_other_bytes"}
    assert machine.unreported_state().keys() == unreported


def test_all_distributions_are_found_with_the_versions_that_their_metadata_has() -> None:
    expected: dict[str, str] = {}
    for each in distributions():
        expected.setdefault(canonicalize_name(each.metadata["Name"]), each.version)
    assert installed() == expected


def test_so_are_those_of_another_interpreter(tmp_path: Path) -> None:
    """In its own environment, whatever this process has imported."""
    packages = tmp_path / "packages"
    (packages / "Some_Library-1.2.3.dist-info").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={packages}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    found = installed_beside(str(python))
    assert found["some-library"] == "1.2.3"
    assert found["python"] == platform.python_version()
    assert found.items() >= {"numpy": version("numpy")}.items()
    assert installed_beside(str(tmp_path / "missing")) == {}
