"""A reference stays where its run was ended while the noise floor of another dtype was measured, which comes last."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.api.plan import plan
from harness.core.record import UNFINISHED, RunRecord
from harness.execution import local
from harness.execution.events import Ended, Event, PhaseBegan
from harness.recipe import load_recipe

pytestmark = [pytest.mark.heavy, pytest.mark.thorough]

WORKER = """
import os, runpy, signal
from harness.execution.checks import noise

def measured(context, *_):
    {end}

noise.other_dtype = measured
runpy.run_module("harness.execution.worker", run_name="__main__")
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
UNHAPPY = "a library is unhappy"
EXITED = f"raise SystemExit({UNHAPPY!r})"
HANGING = "context._announce('hanging'); signal.pause()"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Makes workers end in that way as soon as they measure the floor."""

    def ended(end: str) -> None:
        (tmp_path / "ended_worker.py").write_text(WORKER.format(end=end), encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(local, "WORKER", "ended_worker")

    return ended


def content(tiny: Path, methods: list[object]) -> dict[str, object]:
    return {
        "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
        "methods": methods,
        "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 4}, "divergence": {}},
    }


def swept(sweeps: Any, tiny: Path, methods: list[object]) -> dict[str, RunRecord]:
    records = sweeps.run(content(tiny, methods))
    return {record.spec.title: record for record in records}


def changes(reference: RunRecord) -> set[object]:
    """What the noise floors of a reference run change."""
    return {floor.protocol["changed"] for floor in reference.outcome.measured("kl_noise_floor")}


def made(sweeps: Any) -> list[str]:
    return [event.record.spec.title for event in sweeps.events if isinstance(event, Ended) and not event.reused]


def test_a_kill_costs_the_floor_alone_and_no_later_sweep_repeats_the_run(
    sweeps: Any,
    sweep_type: Any,
    tiny: Path,
    tmp_path: Path,
    ended: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended(KILLED)
    records = swept(sweeps, tiny, ["none"])
    reference = records["reference tiny"]
    fact = reference.outcome.fact("dtype_noise_not_measured")
    assert fact is not None
    assert fact.value == f"not measured in bfloat16: {UNFINISHED}: ended by signal 9"
    assert changes(reference) == {"batch size"}
    assert {record.status for record in records.values()} == {"ok"}
    monkeypatch.undo()
    again = swept(sweeps, tiny, ["none", {"rtn": {"group_size": 32}}])
    assert made(sweeps) == ["quantize rtn group_size=32", "quality rtn group_size=32"]
    assert again["quality rtn group_size=32"].outcome.measured("kl")
    elsewhere = sweep_type(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    elsewhere.cache = sweeps.cache
    found = swept(elsewhere, tiny, ["none"])["reference tiny"].outcome.fact("dtype_noise_not_measured")
    assert found is not None
    assert found.value == f"not measured in bfloat16: {UNFINISHED}: ended by signal 9", "what the cache knows"
    assert "reference tiny" not in made(elsewhere)


def test_a_library_that_ends_the_process_costs_the_floor_alone(
    sweeps: Any, tiny: Path, ended: Callable[[str], None]
) -> None:
    ended(EXITED)
    reference = swept(sweeps, tiny, ["none"])["reference tiny"]
    assert reference.status == "ok"
    fact = reference.outcome.fact("dtype_noise_not_measured")
    assert fact is not None
    assert fact.value == f"not measured in bfloat16: {UNFINISHED}: a library ended the process: sys.exit({UNHAPPY!r})"
    kept = sweeps.cache.outcome(reference.spec)
    assert kept is not None
    assert kept.fact("dtype_noise_not_measured") == fact
    assert not kept.is_interrupted


def test_the_next_sweep_measures_the_floor_that_an_interrupted_one_had_not(
    sweeps: Any, tiny: Path, ended: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record says how the run ended, only the cache that it did not measure everything."""

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseBegan) and event.name == "hanging":
            os.kill(os.getpid(), signal.SIGINT)

    ended(HANGING)
    planned = plan(load_recipe(sweeps.recipe(content(tiny, ["none"]))))
    with pytest.raises(KeyboardInterrupt):
        sweeps.make(planned, on_event)
    (reference,) = [run.spec for run in planned if run.spec.kind == "reference"]
    kept = sweeps.cache.outcome(reference)
    assert kept is not None
    assert kept.is_interrupted
    states = (sweeps.cache.folder("reference", reference.run_id) / "window-00000.safetensors").read_bytes()
    monkeypatch.undo()
    records = swept(sweeps, tiny, ["none"])
    assert made(sweeps) == ["reference tiny", "quality none"]
    assert changes(records["reference tiny"]) == {"batch size", "dtype"}
    again = sweeps.cache.outcome(reference)
    assert again is not None
    assert not again.is_interrupted
    assert (sweeps.cache.folder("reference", reference.run_id) / "window-00000.safetensors").read_bytes() == states
    swept(sweeps, tiny, ["none"])
    assert made(sweeps) == []


def test_the_floor_is_in_the_record_and_in_the_cache_where_it_was_measured(sweeps: Any, tiny: Path) -> None:
    reference = swept(sweeps, tiny, ["none"])["reference tiny"]
    kept = sweeps.cache.outcome(reference.spec)
    assert kept is not None
    for outcome in (reference.outcome, kept):
        assert outcome.fact("dtype_noise_not_measured") is None
        assert len(outcome.measured("kl_noise_floor")) == 2
    assert changes(reference) == {"batch size", "dtype"}
    assert not list(sweeps.cache.faults(read_data=True))
