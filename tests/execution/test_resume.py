"""Which runs of a plan a resumed sweep makes, when its results are those of an earlier version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from instant_executor import InstantExecutor
from run_specs import NONE, SCORED, run_spec

from harness.core.model import MethodRef
from harness.core.run import RunSpec
from harness.execution.resume import needed, resume_point
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.storage.cache import Cache
from harness.storage.store import Store

NF4 = MethodRef("bnb-nf4", 1, {}, "nf4", "on_load")
SAVING = run_spec("quantize", method=NF4, residency="streamed")


def quality(context: int = 64, saved: bool = True) -> RunSpec:
    """A streamed run that reads what was quantized and saved, or as earlier versions did, that quantizes itself."""
    spec = run_spec("quality", method=NF4, residency="streamed", perplexity=replace(SCORED, context=context))
    return replace(spec, needs={"quantize": SAVING.run_id}) if saved else spec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def executor(tmp_path: Path) -> InstantExecutor:
    return InstantExecutor(Cache(tmp_path / "cache"))


def run(store: Store, executor: InstantExecutor, *specs: RunSpec) -> list[str]:
    """The kinds of the runs that a sweep of these made, in order. All have a record afterwards, or are not needed."""
    executor.ran.clear()
    planned = [PlannedRun(spec) for spec in specs]
    records = sweep(planned, store, executor, lambda event: None)  # type: ignore[arg-type]
    assert all(record.status == "ok" for record in records)
    assert [record.spec.run_id for record in records] == [
        each.spec.run_id for each in needed(planned, store.read().records)
    ]
    return [spec.kind for spec in executor.ran]


def test_what_would_be_saved_for_runs_that_are_done_is_not_quantized(store: Store, executor: InstantExecutor) -> None:
    none = run_spec("quality", method=NONE, residency="streamed")
    assert run(store, executor, none, quality(saved=False)) == ["quality", "quality"]
    specs = (none, SAVING, quality())
    resumed = resume_point([PlannedRun(spec) for spec in specs], store, (), executor.artifacts)
    assert [each.spec for each in resumed.planned] == [none, quality()]
    assert resumed.left == ()
    assert run(store, executor, *specs) == []


def test_for_one_run_that_is_left_it_is_quantized(store: Store, executor: InstantExecutor) -> None:
    run(store, executor, quality(saved=False))
    assert run(store, executor, SAVING, quality(), quality(context=32)) == ["quantize", "quality"]
    assert run(store, executor, SAVING, quality(), quality(context=32)) == []
    assert len(needed([PlannedRun(SAVING), PlannedRun(quality())], store.read().records)) == 2, "it has a record"


def test_a_run_that_quantizes_for_no_other_of_the_plan_is_made(store: Store, executor: InstantExecutor) -> None:
    assert run(store, executor, SAVING) == ["quantize"]
