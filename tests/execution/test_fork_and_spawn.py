"""A forked run measures what one measures whose process starts anew: equal quality, and memory that agrees."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.core.record import RunRecord
from harness.execution import starter

pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

TOLERANCE_BYTES = 2 << 20
"""By how much memory above the loaded process may differ: measured are 0.5 MB where one thread computes."""
IMPORTED_BYTES = 50 << 20
"""Less than transformers takes."""
OF_ONE_THREAD = ("load", "quantize_on_load", "probe", "text")
"""Phases in which libraries do not let threads compete for memory, so that two processes need the same."""


def by_phase(record: RunRecord, metric: str) -> Mapping[str, float]:
    """A run's memory of each phase, in bytes; the resident set's where several are measured."""
    found = [each for each in record.outcome.measurements if each.metric == metric]
    return {str(each.protocol["phase"]): each.values[0] for each in found}


def above(record: RunRecord) -> Mapping[str, float]:
    """The peak of each phase above what the process had before it, in bytes."""
    before = by_phase(record, "memory_before_bytes")
    peaks = by_phase(record, "peak_memory_bytes")
    return {phase: peak - before[phase] for phase, peak in peaks.items() if phase in OF_ONE_THREAD}


def before_import(record: RunRecord) -> float:
    """What the process held before its phase ``import``, in bytes."""
    return by_phase(record, "memory_before_bytes")["import"]


def test_forked_and_spawned_runs_agree(sweep_type, tmp_path: Path, tiny: Path, monkeypatch) -> None:
    monkeypatch.setattr(starter, "subprocess", subprocess)  # not forks of what tests import

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
        assert [each for each in record.outcome.measurements if "memory" not in each.metric] == [
            each for each in other.outcome.measurements if "memory" not in each.metric
        ], "to the last bit"
        assert record.outcome.labels == other.outcome.labels
        assert [each.name for each in record.outcome.phases] == [each.name for each in other.outcome.phases]
        assert above(record) == pytest.approx(above(other), abs=TOLERANCE_BYTES)
        assert above(record).keys() >= ({"probe"} if record.spec.job.quantizes else {"probe", "text"})
        assert before_import(record) > before_import(other) + IMPORTED_BYTES, "the server had imported it"
