"""The acceptance test's check of a shared GPU, with a worker on a simulated one and a small model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from nvml_stub import H200, Process
from simulated_gpu import VARIABLE, Plan
from simulated_machine import PROCESS_BYTES, Simulated

from harness.acceptance import recipes
from harness.acceptance.bench import Bench
from harness.acceptance.checks import faults
from harness.acceptance.models import Shape
from harness.host.preflight import Preflight, TorchAnswer

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

SMALL = Shape(vocabulary=256, hidden=64, inner=128, layers=1, heads=4, kv_heads=2, context=4096)
OWN = Process(None, PROCESS_BYTES)


@pytest.fixture
def bench(simulated_machine: Simulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.setattr(recipes, "WHOLE", SMALL)
    monkeypatch.setenv(VARIABLE, Plan().to_json())
    simulated_machine.nvml.holds(H200.running(OWN))
    machine = simulated_machine.site(Plan(), [H200]).hardware
    preflight = Preflight(H200.name, H200.uuid, TorchAnswer())
    return Bench(tmp_path, True, machine, preflight, lambda text: None, time.monotonic() + 300)


def test_another_process_on_the_gpu_makes_a_run_suspect(
    bench: Bench, simulated_machine: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process is NVML's word alone: no process here can use the simulated GPU of another."""
    monkeypatch.setattr(faults, "_HOLD", 'import sys; print("ready", flush=True); sys.stdin.read()')
    monkeypatch.setattr(recipes, "disturbed", lambda on_gpu: recipes.after(on_gpu, 0))
    simulated_machine.nvml.holds(H200.running(OWN, Process(1, PROCESS_BYTES)))
    [finding] = faults.sharing(bench)
    assert finding.verdict == "PASS", finding.reason
