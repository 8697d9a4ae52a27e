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


@pytest.fixture(scope="module")
def timed(sweep_type, tmp_path_factory, tiny: Path) -> dict[str, RunRecord]:
    sweeps = sweep_type(tmp_path_factory.mktemp("gpu-speed"))
    grid = {"batch_sizes": [1, 32], "prompt_tokens": [128], "new_tokens": 8, "warmup": 1, "iterations": 2}
    records = sweeps.run(
        {
            "models": [{"id": str(tiny), "dtype": "bfloat16", "label": "tiny"}],
            "methods": ["none", "bnb-nf4", "torchao-int8-dynamic"],
            "measure": {"throughput": grid},
            "device": "cuda",
        }
    )
    return {record.spec.method.label: record for record in records if record.spec.kind == "performance"}


def families(record: RunRecord, phase: str, batch_size: int) -> set[str]:
    """The kernel families of a point, whose CUDA kernels the profiler must have seen."""
    (fact,) = (
        each
        for each in record.outcome.facts
        if each.code == "kernels_at" and (each.arguments["phase"], each.arguments["batch_size"]) == (phase, batch_size)
    )
    assert fact.arguments["names"]
    return {"packed", "dequantize", "plain"} & set(fact.arguments)


def test_the_kernel_changes_with_the_rows_of_a_point(timed: dict[str, RunRecord]) -> None:
    """bitsandbytes unpacks above 1,536 rows; torch multiplies int8 with int8 from 17 rows on."""
    nf4, int8 = timed["bnb-nf4"], timed["torchao-int8-dynamic"]
    assert families(nf4, "decode", 1) == {"packed"}
    assert families(nf4, "prefill", 32) == {"dequantize"}
    assert families(int8, "decode", 1) == {"dequantize"}
    assert families(int8, "decode", 32) == families(int8, "prefill", 1) == {"packed"}
