"""Nodes of a real Ray cluster with cache folders of their own, which exchange artifacts through a real S3 server.

One of the two has a mount namespace of its own, in which the cache folder of the machine that plans is empty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import qharness
from object_store import served
from ray_nodes import RealCluster

from harness.core.record import RunRecord
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe
from harness.storage.objects import Objects
from harness.storage.reading import read_records

pytest.importorskip("ray", reason="needs Ray: make setup-all, or pip install ray")
pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

PATIENCE_S = 900.0


@dataclass(frozen=True)
class Apart:
    """A cluster with a node whose cache is the folder ``one``; ``planning`` is that of the machine that plans."""

    cluster: RealCluster
    url: str
    folder: Path

    def run(self, recipe: Path, results: Path, **other: str) -> Any:
        """Runs a recipe with a second node, whose cache is the folder ``other``."""
        (self.folder / "empty").mkdir(exist_ok=True)
        seen = {self.folder / "planning": self.folder / "empty"}
        on_cluster = ["--executor", "ray", "--address", self.cluster.address]
        where = ["--results", results, "--cache", self.url]
        with self.cluster.another(seen, QHARNESS_CACHE=str(self.folder / "other"), **other):
            return qharness("run", recipe, *on_cluster, *where, timeout=PATIENCE_S)

    def artifacts(self, name: str, kind: str) -> set[str]:
        return {path.parent.name for path in (self.folder / name / kind).glob("*/outcome.json")}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("caches")
    for name in ("planning", "one", "other"):
        (folder / name).mkdir()
    with served() as server, pytest.MonkeyPatch.context() as patch:
        url = server.bucket("between-nodes") + "/cache"
        patch.setenv("QHARNESS_CACHE", str(folder / "one"))
        with closing(RealCluster(1)) as cluster:
            patch.setenv("QHARNESS_CACHE", str(folder / "planning"))
            yield Apart(cluster, url, folder)


def recipe(sweeps: Any, tiny: Path) -> Path:
    found: Path = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": ["none", {"rtn": {"group_size": 32}}],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}},
            "device": "cpu",
            "threads": 1,
        }
    )
    return found


def figures(records: tuple[RunRecord, ...]) -> dict[str, object]:
    """The quality of every variant, to the last bit."""
    return {
        record.spec.title: [(each.metric, list(each.values)) for each in record.outcome.measurements]
        for record in records
        if record.spec.kind == "quality"
    }


def test_nodes_that_share_only_a_bucket_give_the_figures_of_a_local_sweep(
    apart: Apart, sweeps: Any, tiny: Path, tmp_path: Path
) -> None:
    ended = apart.run(recipe(sweeps, tiny), tmp_path / "results")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    records = read_records(tmp_path / "results")
    assert {record.status for record in records} == {"ok"}
    assert {record.node for record in records} == {"node-1", "node-2"}
    using = {
        "reference": {record.node for record in records if record.spec.kind in ("reference", "quality")},
        "quantize": {record.node for record in records if record.spec.method.name == "rtn"},
    }
    names = Objects(apart.url).list()
    for kind, nodes in using.items():
        made = {record.spec.run_id for record in records if record.spec.kind == kind}
        assert len(made) == 1
        held = [apart.artifacts(name, kind) for name in ("one", "other")]
        assert sorted(map(len, held)) == [len(nodes) - 1, 1], "each node has what its runs need"
        assert set().union(*held) == {name.split("/")[1] for name in names if name.startswith(f"{kind}/")} == made
        assert apart.artifacts("planning", kind) == set(), "it only plans"
    assert max(map(len, using.values())) == 2, "what was made on one node was used on the other"
    with closing(sweeps.executor()) as here:
        planned = plan(load_recipe(recipe(sweeps, tiny)), here.site)
        local = sweep(planned, replace(sweeps.store, root=tmp_path / "local"), here, lambda event: None)
    assert figures(records) == figures(local) != {}


def test_a_node_without_keys_is_told_before_the_first_run(
    apart: Apart, sweeps: Any, tiny: Path, tmp_path: Path
) -> None:
    assert os.environ["AWS_ACCESS_KEY_ID"]
    ended = apart.run(recipe(sweeps, tiny), tmp_path / "results", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "cannot use the cache that nodes share: --cache: s3://between-nodes/cache" in ended.stderr
    assert "start Ray there with" in ended.stderr
    assert not list(tmp_path.rglob("record.json"))
