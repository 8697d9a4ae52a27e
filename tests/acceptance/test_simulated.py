"""``qharness selfcheck --gpu`` from end to end on simulated CUDA: its branches for a GPU run, whatever they measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvml_stub import H200, NvmlStub, Process
from simulated_gpu import VARIABLE, Plan

from harness.acceptance import recipes
from harness.acceptance.checks import faults
from harness.acceptance.models import Shape
from harness.api.selfcheck import CHECKS, selfcheck
from harness.execution import local
from harness.host import preflight
from harness.host.preflight import TorchAnswer, TriedProduct

pytestmark = [pytest.mark.heavy(minutes=4), pytest.mark.slow]

SHAPE = Shape(vocabulary=256, hidden=128, inner=256, heads=4, kv_heads=2, context=4096)
FINE = {"float32": TriedProduct(None, True)}
SIMULATION = Path(__file__).parents[1] / "cuda_sim"


def test_every_check_comes_to_an_end(monkeypatch: pytest.MonkeyPatch, nvml: NvmlStub, tmp_path: Path) -> None:
    """Speeds, energy and the second process are not those of a GPU; bytes, zeros and ends of runs are."""
    nvml.holds(H200.answering(power=300_000).running(Process(None, 300 * 2**20)))
    monkeypatch.setattr(local, "WORKER", "cuda_worker")
    monkeypatch.setenv("PYTHONPATH", str(SIMULATION))
    monkeypatch.setenv(VARIABLE, Plan().to_json())
    answer = TorchAnswer("2.13.0+cu130", "13.0", True, ("sm_90",), capability=(9, 0), uuid=H200.uuid[4:], products=FINE)
    monkeypatch.setattr(preflight, "_answer", lambda place, uuid: answer)
    monkeypatch.setattr(recipes, "WHOLE", SHAPE)
    monkeypatch.setattr(faults, "_HOLD", faults._SPIN.replace("while True", "while False"))
    checked = selfcheck(tmp_path / "out.zip", on_gpu=True, minutes=20, cache_root=tmp_path / "cache")
    verdicts = {each.about: each.verdict for each in checked.findings}
    assert len(verdicts) > len(CHECKS)
    for about in (
        "machine",
        "torch on the GPU",
        "key-value cache",
        "stored bytes, int8",
        "stored bytes, fp8",
        "divergence from itself",
        "divergence of rtn",
        "reload of rtn",
        "batch too large",
        "run after out of memory",
    ):
        assert verdicts[about] == "PASS", checked.findings
    assert verdicts["own speeds"] != "PASS"  # the simulated GPU is slow, and on a busy machine suspect
    assert not any("internal error" in each.reason for each in checked.findings)
