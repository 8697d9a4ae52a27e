"""Sweeps on a real Ray cluster: a head that runs nothing, and nodes in processes of their own, one of them killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.core.record import RunRecord
from harness.execution.events import Event, Lost, PhaseBegan, Started
from harness.execution.executors import ExecutorChoice, open_executor
from harness.execution.local import local_site
from harness.execution.ray_cluster import ENVIRONMENT, RayExecutor
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe

pytest.importorskip("ray")
pytestmark = [pytest.mark.heavy, pytest.mark.slow]

OBJECT_STORE_BYTES = 80 * 2**20
MEASURE = {
    "perplexity": {"text": "demo", "context": 64, "windows": 2},
    "throughput": {"batch_sizes": [1], "prompt_tokens": [8], "new_tokens": 2, "iterations": 1},
}


class RealCluster:
    """A Ray cluster of this test: its address, and its nodes by Ray's id."""

    def __init__(self, nodes: int) -> None:
        os.environ.update(ENVIRONMENT)
        from ray.cluster_utils import Cluster

        own = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **own})
        self._nodes = {node.node_id: node for node in (self._cluster.add_node(num_cpus=1, **own) for _ in range(nodes))}
        self.address: str = self._cluster.address

    def kill(self, ray_id: str) -> None:
        """Ends a node with all that runs there, as a crash of its machine does."""
        node = self._nodes.pop(ray_id)
        (raylet,) = node.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


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
