"""A node of a real Ray cluster with a hub cache of its own: it downloads the model that the planning machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import qharness
from hub_cache import fill_hub_cache
from hub_server import hub_server, repository
from ray_nodes import RealCluster

from harness.storage.reading import read_records

pytest.importorskip("ray", reason="needs Ray: make setup-all, or pip install ray")
pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

PATIENCE_S = 900.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with closing(RealCluster(0)) as made:
        yield made


def test_it_downloads_and_measures_its_own_copy(cluster: RealCluster, sweeps: Any, tiny: Path, tmp_path: Path) -> None:
    published = repository(tiny)
    fill_hub_cache(tmp_path / "planning" / "hub", "who/tiny", published.commit, tiny)
    (tmp_path / "empty").mkdir()
    recipe = sweeps.recipe(
        {
            "models": [{"id": "who/tiny", "revision": published.commit, "dtype": "float32"}],
            "methods": ["none", {"rtn": {"group_size": 32}}],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}},
            "device": "cpu",
            "threads": 1,
        }
    )
    where = ["--results", tmp_path / "results", "--cache", tmp_path / "shared"]
    on_cluster = ["--executor", "ray", "--address", cluster.address]
    with hub_server({"who/tiny": published}) as hub:
        own = {"HF_HOME": str(tmp_path / "own"), "HF_ENDPOINT": hub.endpoint}
        with cluster.another({tmp_path / "planning": tmp_path / "empty"}, **own):
            ended = qharness(
                "run",
                recipe,
                *on_cluster,
                *where,
                env={**os.environ, "HF_HOME": str(tmp_path / "planning")},
                timeout=PATIENCE_S,
            )
        downloaded = hub.downloaded("who/tiny")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    records = read_records(tmp_path / "results")
    assert {record.status for record in records} == {"ok"}
    ends = f"planning/hub/models--who--tiny/snapshots/{published.commit}"
    assert all(record.spec.model.path.endswith(ends) for record in records), "records say what was planned"
    assert "model.safetensors" in downloaded
