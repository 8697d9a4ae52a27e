"""Whole runs on simulated GPUs: worker processes that measure a model on ``cuda``, and what their records hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvml_stub import H200
from simulated_gpu import Fault, Plan
from simulated_machine import PROCESS_BYTES, Simulated

from harness.core.label import codes
from harness.core.record import Measurement, RunRecord

pytestmark = pytest.mark.heavy(minutes=1)

GPU = Plan()


def recipe(tiny: Path, *methods: object, **measure: object) -> dict[str, object]:
    return {
        "models": [{"id": str(tiny), "dtype": "bfloat16", "label": "tiny"}],
        "methods": list(methods),
        "limits": {"time": "2m"},
        "measure": {"memory": {}, **measure},
    }


@pytest.fixture(scope="module")
def records(simulated_machine: Simulated, tiny: Path) -> dict[tuple[str, str], RunRecord]:
    """A whole sweep, by kind of run and method."""
    content = recipe(
        tiny,
        *("none", "int8", {"rtn": {"bits": 4, "group_size": 32}}),
        perplexity={"text": "demo", "context": 64, "windows": 4},
        divergence={},
        throughput={"batch_sizes": [1], "prompt_tokens": [16], "new_tokens": 4},
    )
    return {
        (record.spec.kind, "" if record.spec.kind == "machine" else record.spec.method.name): record
        for record in simulated_machine.run(content, GPU)
    }


def figures(record: RunRecord, metric: str, **where: object) -> list[Measurement]:
    return [
        each
        for each in record.outcome.measurements
        if each.metric == metric and where.items() <= dict(each.protocol).items()
    ]


def test_every_run_succeeds(records: dict[tuple[str, str], RunRecord]) -> None:
    assert {key: record.outcome.failure for key, record in records.items() if record.status != "ok"} == {}
    assert {kind for kind, _ in records} == {"machine", "reference", "quantize", "quality", "performance"}


def test_records_name_the_gpu_that_nvml_shows(records: dict[tuple[str, str], RunRecord]) -> None:
    for record in records.values():
        assert record.outcome.before is not None
        assert record.outcome.before.hardware["gpu"] == H200.name
        for moment in record.outcome.moments:
            assert moment.state["gpu_processes"] == 1.0


def test_speeds_are_read_from_the_gpus_clock(records: dict[tuple[str, str], RunRecord]) -> None:
    """Launches take a fixed time, so that each repetition takes the same, and dequantizing takes launches."""
    prefill_s = {}
    for method in ("none", "rtn", "int8"):
        [prefill], [decode] = (figures(records["performance", method], each) for each in ("prefill_s", "decode_step_s"))
        assert prefill.protocol["clock"] == "CUDA events"
        for figure in (prefill, decode):
            assert figure.values == pytest.approx([figure.values[0]] * len(figure.values), rel=1e-6)
            launches = figure.values[0] / GPU.launch_s
            assert launches == pytest.approx(round(launches), abs=1e-3)
            assert launches > 28  # the tiny model's linear layers
        prefill_s[method] = prefill.values[0]
    assert prefill_s["none"] < prefill_s["int8"] < prefill_s["rtn"]


def test_memory_is_torchs_and_the_drivers(records: dict[tuple[str, str], RunRecord]) -> None:
    run = records["performance", "none"]
    [weights] = figures(run, "memory_before_bytes", phase="probe", source="cuda allocated")
    stored = sum(each.values[0] for each in figures(records["quality", "none"], "stored_bytes"))
    assert stored <= weights.values[0] < 1.5 * stored  # blocks of 512 bytes, buffers
    [peak] = figures(run, "peak_memory_bytes", phase="load", source="cuda allocated")
    [reserved] = figures(run, "peak_memory_bytes", phase="load", source="cuda reserved")
    assert weights.values[0] <= peak.values[0] <= reserved.values[0]
    [process] = figures(run, "memory_after_bytes", phase="load", source="NVML process")
    assert process.values == (PROCESS_BYTES,)


def test_the_baseline_is_its_own_reference(records: dict[tuple[str, str], RunRecord]) -> None:
    [itself] = figures(records["quality", "none"], "kl_mean") or figures(records["quality", "none"], "kl")
    [other] = figures(records["quality", "rtn"], "kl_mean") or figures(records["quality", "rtn"], "kl")
    assert max(itself.values) < 1e-6 < max(other.values)


def test_the_profilers_kernels_are_recorded_of_quantized_variants(records: dict[tuple[str, str], RunRecord]) -> None:
    for method, kernel in (("rtn", "aten::__lshift__"), ("int8", "aten::")):
        fact = records["quality", method].outcome.fact("cuda_kernels")
        assert fact is not None
        assert kernel in fact.sentence
    assert records["quality", "none"].outcome.fact("cuda_kernels") is None


def test_the_kernels_of_each_point_of_a_grid_are_recorded(records: dict[tuple[str, str], RunRecord]) -> None:
    """Both methods unpack before each product, which is the kernel that they promise."""
    for method in ("rtn", "int8"):
        run = records["performance", method]
        seen = [each.arguments for each in run.outcome.facts if each.code == "kernels_at"]
        batches = [figure.protocol["batch_size"] for figure in figures(run, "prefill_s")]
        points = [(phase, batch) for batch in batches for phase in ("prefill", "decode")]
        assert [(each["phase"], each["batch_size"]) for each in seen] == points
        assert all(each["dequantize"] == 28 and each["names"] for each in seen)
        assert "kernel_fell_back" not in codes(run.outcome.labels)
    assert all(each.code != "kernels_at" for each in records["performance", "none"].outcome.facts)


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (Fault("out_of_memory", 1, "embedding"), "out_of_memory", "CUDA out of memory"),
        pytest.param(Fault("assert", 3, "embedding"), "failed", "device-side assert triggered", marks=pytest.mark.slow),
        (Fault("lost", 3, "embedding"), "failed", "unspecified launch failure"),
    ],
    ids=("out_of_memory", "assert", "lost"),
)
def test_a_failing_gpu_is_a_record(
    simulated_machine: Simulated, tiny: Path, fault: Fault, status: str, message: str
) -> None:
    content = {
        **recipe(tiny, "none", perplexity={"text": "demo", "context": 64, "windows": 4}),
        "name": fault.kind,
    }
    [run] = simulated_machine.run(content, Plan(faults=(fault,)))
    assert run.outcome.failure is not None
    assert (run.status, run.outcome.failure.phase) == (status, "forward" if fault.count > 1 else "probe")
    assert message in run.outcome.failure.message
    assert run.outcome.after is not None
    assert ("gpu" in run.outcome.after.hardware) == (fault.kind != "lost")
    [again] = simulated_machine.run(content, Plan())
    assert again.status == "ok"
