"""Sweeps on a machine with two simulated GPUs: runs execute beside each other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from nvml_stub import H200, Process
from simulated_gpu import Plan
from simulated_machine import PROCESS_BYTES, Simulated

from harness.core.record import RunRecord

pytestmark = pytest.mark.heavy(minutes=1)

TWO = tuple(replace(H200, uuid=uuid).running(Process(None, PROCESS_BYTES)) for uuid in (H200.uuid, "GPU-2"))


def recipe(tiny: Path, name: str, *methods: object, **others: object) -> dict[str, object]:
    return {
        "name": name,
        "models": [{"id": str(tiny), "dtype": "bfloat16", "label": "tiny"}],
        "methods": list(methods),
        "limits": {"time": "2m"},
        **others,
    }


def began(record: RunRecord) -> datetime:
    return datetime.fromisoformat(record.started_at)


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
