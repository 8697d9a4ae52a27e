"""A forked run measures what one measures whose process starts anew: equal quality, and memory that agrees."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from own_tasks import choosing

from harness.core.record import RunRecord
from harness.execution import starter

pytestmark = [pytest.mark.heavy(minutes=1.5), pytest.mark.thorough]

TOLERANCE_BYTES = 2 << 20
"""By how much a phase's peak above what the process had before it may differ: measured are 0.5 MB."""
PASSES_BYTES = 8 << 20
"""The same of phases that make passes, whose peaks depend on what the allocator has kept: measured are 3.2 MB."""
IMPORTED_BYTES = 50 << 20
"""Less than transformers takes."""
OF_ONE_THREAD = ("load", "quantize_on_load", "probe", "text", "quantize", "prefill", "decode")
"""Phases whose peaks two processes share closely."""
PEAKS = {
    "reference": {"load", "probe", "text", "forward", "noise floor"},
    "quantize": {"quantize", "probe"},
    "quality": {"probe", "text", "forward"},
    "task": {"probe", "questions"},
    "performance": {"probe", "generate", "prefill", "decode"},
}
"""Phases that are compared, by kind of run, among others."""


def by_phase(record: RunRecord, metric: str) -> Mapping[str, float]:
    """A run's memory of each phase, in bytes; the resident set's where several are measured."""
    found = [each for each in record.outcome.measurements if each.metric == metric]
    return {str(each.protocol["phase"]): each.values[0] for each in found}


def above(record: RunRecord) -> Mapping[str, float]:
    """The peak of each phase but the imports, which a fork finds made, above what the process had before, in bytes."""
    before = by_phase(record, "memory_before_bytes")
    peaks = by_phase(record, "peak_memory_bytes")
    return {phase: peak - before[phase] for phase, peak in peaks.items() if phase != "import"}


def before_import(record: RunRecord) -> float:
    """What the process held before its phase ``import``, in bytes."""
    return by_phase(record, "memory_before_bytes")["import"]


def test_forked_and_spawned_runs_agree(sweep_type, tmp_path: Path, tiny: Path, monkeypatch) -> None:
    monkeypatch.setattr(starter, "subprocess", subprocess)  # not forks of what tests import
    task = choosing(tmp_path, "weather")

    def measured(start: str) -> dict[str, RunRecord]:
        monkeypatch.setenv(starter.VARIABLE, start)
        (tmp_path / start).mkdir()
        records = sweep_type(tmp_path / start).run(
            {
                "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
                "methods": ["none", "int8", "bnb-nf4", {"rtn": {"bits": 4, "group_size": 32}}],
                "measure": {
                    "perplexity": {"text": "demo", "context": 128, "windows": 2},
                    "divergence": {},
                    "tasks": [{"name": str(task)}],
                    "throughput": {"batch_sizes": [1], "prompt_tokens": [64], "new_tokens": 8, "iterations": 2},
                    "memory": {},
                },
                "device": "cpu",
                "threads": 1,
            }
        )
        assert {record.status for record in records} == {"ok"}
        return {record.spec.title: record for record in records if record.spec.kind != "machine"}

    forked, spawned = measured("fork"), measured(starter.SPAWN)
    assert forked.keys() == spawned.keys()
    for title, record in forked.items():
        other = spawned[title]
        assert record.spec.run_id == other.spec.run_id
        if record.spec.kind != "performance":  # what it times is never the same twice
            assert [each for each in record.outcome.measurements if "memory" not in each.metric] == [
                each for each in other.outcome.measurements if "memory" not in each.metric
            ], "to the last bit"
            assert record.outcome.labels == other.outcome.labels
        assert [each.name for each in record.outcome.phases] == [each.name for each in other.outcome.phases]
        peaks, others = above(record), above(other)
        assert peaks.keys() == others.keys() >= PEAKS[record.spec.kind]
        for phase, peak in peaks.items():
            within = TOLERANCE_BYTES if phase in OF_ONE_THREAD else PASSES_BYTES
            assert peak == pytest.approx(others[phase], abs=within), (title, phase)
        assert before_import(record) > before_import(other) + IMPORTED_BYTES, "the server had imported it"
