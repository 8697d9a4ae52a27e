"""Sweeps on a real Ray cluster: a head that runs nothing, and nodes in processes of their own, one of them killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import RealCluster

from harness.core.record import RunRecord
from harness.core.site import Node
from harness.execution.events import Event, Lost, PhaseBegan, Started
from harness.execution.executors import ExecutorChoice, open_executor
from harness.execution.local import local_site
from harness.execution.ray_cluster import RayExecutor
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe

pytest.importorskip("ray", reason="needs Ray: make setup-all, or pip install ray")
pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

MEASURE = {
    "perplexity": {"text": "demo", "context": 64, "windows": 2},
    "throughput": {"batch_sizes": [1], "prompt_tokens": [8], "new_tokens": 2, "iterations": 1},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with closing(RealCluster(2)) as made:
        yield made


def nll(records: tuple[RunRecord, ...]) -> dict[str, tuple[float, ...]]:
    """The figures of quality by run id, to the last bit."""
    return {
        record.spec.run_id: tuple(each.values)
        for record in records
        for each in record.outcome.measurements
        if each.metric == "nll"
    }


def test_an_agent_that_is_killed_is_started_again_and_its_run_repeated(
    cluster: RealCluster, sweeps: Any, tiny: Path, tmp_path: Path
) -> None:
    """As the kernel does when a node's memory runs out. The node lives and goes on."""
    import ray

    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": ["none"],
            "measure": {"perplexity": MEASURE["perplexity"]},
            "device": "cpu",
            "threads": 1,
        }
    )
    events: list[Event] = []
    killed: dict[str, int] = {}
    site = local_site(tmp_path / "shared", device="cpu")

    def pid(name: str) -> int:
        number: int = ray.get(executor._agents[name].__ray_call__.remote(lambda agent: os.getpid()))
        return number

    def show(event: Event) -> None:
        events.append(event)
        if isinstance(event, PhaseBegan) and event.spec.kind == "quality" and not killed:
            (began,) = [each.node for each in events if isinstance(each, Started) and each.spec == event.spec]
            killed[began] = pid(began)
            os.kill(killed[began], signal.SIGKILL)

    with closing(open_executor(ExecutorChoice("ray", address=cluster.address), site)) as executor:
        assert isinstance(executor, RayExecutor)
        planned = plan(load_recipe(recipe), executor.site)
        records = sweep(planned, sweeps.store, executor, show)
        ((node, before),) = killed.items()
        assert pid(node) != before, "another process has taken its place"
        assert executor.run(planned[-1].spec, planned[-1].inputs, lambda phase: None, Node(node))[0].status == "ok"
    assert [record.status for record in records] == ["ok"] * len(planned), [r.outcome.failure for r in records]
    (loss,) = [event for event in events if isinstance(event, Lost)]
    assert (loss.node, loss.for_good, loss.again) == (node, False, True)
    assert loss.reason == "the process that had started it was ended"
    (again,) = [record for record in records if any(fact.code == "node_lost" for fact in record.outcome.facts)]
    assert again.spec.run_id == loss.spec.run_id
    assert len(sweeps.store.read("sweep").records) == len(planned), "nothing is lost, nothing is doubled"


def test_a_sweep_on_nodes_of_which_one_is_killed_gives_the_figures_of_a_local_one(
    cluster: RealCluster, sweeps: Any, tiny: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(
        sweeps.recipe(
            {
                "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
                "methods": [{"rtn": {"group_size": 32}}],
                "measure": MEASURE,
                "device": "cpu",
                "threads": 1,
                "repetitions": 1,
            }
        )
    )
    events: list[Event] = []
    site = local_site(tmp_path / "shared", device="cpu")
    with closing(open_executor(ExecutorChoice("ray", address=cluster.address), site)) as executor:
        assert isinstance(executor, RayExecutor)
        planned = plan(recipe, executor.site)
        assert not executor.fetch([run.spec for run in planned])
        ray_ids = dict(executor._ray_ids)
        killed: list[str] = []

        def show(event: Event) -> None:
            events.append(event)
            if isinstance(event, PhaseBegan) and event.spec.kind == "quality" and not killed:
                began = [each.node for each in events if isinstance(each, Started) and each.spec == event.spec]
                killed.append(began[-1])
                cluster.kill(ray_ids[killed[0]])

        records = sweep(planned, sweeps.store, executor, show)
    assert [record.status for record in records] == ["ok"] * len(planned), [r.outcome.failure for r in records]
    (loss,) = [event for event in events if isinstance(event, Lost)]
    assert (loss.node, loss.for_good, loss.again) == (killed[0], True, True)
    (again,) = [record for record in records if record.spec.run_id == loss.spec.run_id]
    assert again.node != killed[0]
    assert [fact.arguments["node"] for fact in again.outcome.facts if fact.code == "node_lost"] == [killed[0]]
    assert len(sweeps.store.read("sweep").records) == len(planned), "nothing is lost, nothing is doubled"
    speeds = [record for record in records if record.spec.job.repeated]
    assert len({record.node for record in speeds}) == 1
    with closing(sweeps.executor()) as here:
        quality = [run for run in plan(recipe, here.site) if not run.spec.job.repeated and run.spec.kind != "machine"]
        local = sweep(quality, replace(sweeps.store, root=tmp_path / "local"), here, lambda event: None)
    assert nll(records) == nll(local) != {}
