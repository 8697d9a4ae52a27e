"""Sweeps on a machine with two simulated GPUs: runs beside each other, and a model spread over both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from nvml_stub import H200, Process
from simulated_gpu import Plan
from simulated_machine import PROCESS_BYTES, Simulated

from harness.core.label import Label
from harness.core.record import RunRecord

pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

TWO = tuple(replace(H200, uuid=uuid).running(Process(None, PROCESS_BYTES)) for uuid in (H200.uuid, "GPU-2"))


def recipe(tiny: Path, name: str, *methods: object, **others: object) -> dict[str, object]:
    return {
        "name": name,
        "models": [{"id": str(tiny), "dtype": "bfloat16", "label": "tiny"}],
        "methods": list(methods),
        "limits": {"time": "2m"},
        **others,
    }


def peaks(record: RunRecord, metric: str, phase: str) -> Sequence[float]:
    return [
        each.values[0]
        for each in record.outcome.measurements
        if (each.metric, each.protocol.get("phase"), each.protocol.get("source")) == (metric, phase, "cuda allocated")
    ]


def began(record: RunRecord) -> datetime:
    return datetime.fromisoformat(record.started_at)


@pytest.mark.slow
def test_quality_runs_beside_each_other_and_the_model_of_each_is_on_one_gpu(
    simulated_machine: Simulated, tiny: Path
) -> None:
    text = {"perplexity": {"text": "demo", "context": 64, "windows": 4}}
    records = simulated_machine.run(recipe(tiny, "beside", "none", "int8", measure={**text, "memory": {}}), Plan(), TWO)
    assert {record.outcome.failure for record in records} == {None}
    first, second = sorted((record for record in records if record.spec.kind == "quality"), key=began)
    assert began(second) < began(first) + timedelta(seconds=first.wall_s)
    for record in (first, second):
        assert record.outcome.before is not None
        assert "gpus" not in record.outcome.before.hardware, "a worker sees its own GPU alone"


def test_a_spread_model_is_measured_on_both_gpus(simulated_machine: Simulated, tiny: Path) -> None:
    measure = {
        "perplexity": {"text": "demo", "context": 64, "windows": 4},
        "divergence": {},
        "memory": {},
        "throughput": {"batch_sizes": [1], "prompt_tokens": [16], "new_tokens": 4},
    }
    content = recipe(tiny, "spread", "none", measure=measure, devices=2)
    records = {record.spec.kind: record for record in simulated_machine.run(content, Plan(gpus=2), TWO)}
    assert {kind: record.outcome.failure for kind, record in records.items() if record.status != "ok"} == {}
    performance = records["performance"]
    assert Label("pipelined", {"gpus": 2}) in performance.outcome.labels
    own = peaks(performance, "peak_memory_of_gpu_bytes", "load")
    assert len(own) == 2
    assert min(own) > 0
    assert peaks(performance, "peak_memory_bytes", "load") == [sum(own)]
    assert performance.outcome.before is not None
    assert performance.outcome.before.hardware["gpus"] == 2
    divergence = [each for each in records["quality"].outcome.measurements if each.metric == "kl"]
    assert max(divergence[0].values) < 1e-6
