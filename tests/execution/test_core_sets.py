"""Quality runs side by side on cores of their own have the figures of runs one after another, to the last bit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from harness.core.record import RunRecord
from harness.execution import local
from harness.execution.events import Ended, Event, Started
from harness.execution.sweep import sweep
from harness.host.processor import physical_cores
from harness.planning.plan import plan
from harness.recipe import load_recipe
from harness.storage.cache import Cache
from harness.storage.store import Store

pytestmark = pytest.mark.heavy


def figures(records: tuple[RunRecord, ...]) -> dict[str, object]:
    return {
        record.spec.title: [(each.metric, list(each.values)) for each in record.outcome.measurements]
        for record in records
        if record.spec.kind == "quality"
    }


def test_quality_on_core_sets_is_quality_one_after_another(
    sweeps, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(physical_cores()) < 2:
        pytest.skip("needs two cores")
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": ["none", "int8"],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 4}},
            "device": "cpu",
            "threads": 1,
        }
    )
    events: list[Event] = []
    with closing(sweeps.executor()) as executor:
        planned = plan(load_recipe(recipe), executor.site)
        together = sweep(planned, sweeps.store, executor, events.append)
    both = [type(event) for event in events if isinstance(event, Started | Ended) and event_kind(event) == "quality"]
    assert both == [Started, Started, Ended, Ended]
    assert [record.outcome.before.hardware["cores"] for record in together if record.spec.kind == "quality"] == [1, 1]  # type: ignore[union-attr]

    monkeypatch.setattr(local, "physical_cores", lambda: ())
    sweeps.store, sweeps.cache, events = Store(tmp_path / "again"), Cache(tmp_path / "new"), []
    with closing(sweeps.executor()) as executor:
        apart = sweep(planned, sweeps.store, executor, events.append)
    assert [type(event) for event in events if isinstance(event, Started | Ended)] == [Started, Ended] * len(planned)
    assert figures(together) == figures(apart)


def event_kind(event: Started | Ended) -> str:
    return event.spec.kind if isinstance(event, Started) else event.record.spec.kind
