"""What only a GPU can show: the kernels that run there, and methods that quantize nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.record import RunRecord

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpu(sweep_type, tmp_path_factory, tiny: Path) -> dict[str, RunRecord]:
    sweeps = sweep_type(tmp_path_factory.mktemp("gpu"))
    records = sweeps.run(
        {
            "models": [{"id": str(tiny), "dtype": "bfloat16", "label": "tiny"}],
            "methods": [
                "none",
                "bnb-nf4",
                "bnb-int8",
                "fp8",
                {"gptq": {"group_size": 32}},
                {"awq": {"group_size": 32}},
                {"torchao-int4": {"group_size": 32}},
                "torchao-int8-dynamic",
            ],
            "calibration": {"samples": 32, "length": 128},
            "measure": {"perplexity": {"context": 128, "windows": 4}, "divergence": {}, "memory": {}},
            "device": "cuda",
        }
    )
    return {record.spec.method.label: record for record in records if record.spec.kind == "quality"}


def test_every_method_runs_or_says_why_not(on_gpu: dict[str, RunRecord]) -> None:
    assert {record.status for record in on_gpu.values()} <= {"ok", "unsupported"}
    assert on_gpu["none"].status == "ok"


def test_the_kernels_that_ran_are_named(on_gpu: dict[str, RunRecord]) -> None:
    for label, record in on_gpu.items():
        if label != "none" and record.status == "ok":
            assert record.outcome.fact("cuda_kernels")
