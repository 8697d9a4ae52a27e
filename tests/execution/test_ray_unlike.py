"""What is wrong with the nodes of a real Ray cluster is told by a plan, and by a run before the first one begins.

A stack may be on one of them only.

There are two nodes. One has a mount namespace of its own, in which files of this machine have another content.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from command_line import qharness
from ray_nodes import RealCluster

from harness.storage.folder_seal import with_seal
from harness.storage.reading import read_records

pytest.importorskip("ray", reason="needs Ray: make setup-all, or pip install ray")
pytestmark = [pytest.mark.heavy(minutes=2), pytest.mark.thorough]

PATIENCE_S = 900.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with closing(RealCluster(1)) as made:
        yield made


class Refused:
    """Plans or runs a recipe on a cluster, and returns the message it ends with."""

    def __init__(self, cluster: RealCluster, folder: Path, sweeps: Any, tiny: Path) -> None:
        self.cluster, self.folder, self.sweeps, self.tiny = cluster, folder, sweeps, tiny
        self.cache = folder / "shared"
        self.cache.mkdir()

    def end(self, command: str, **changes: object) -> subprocess.CompletedProcess[str]:
        recipe = self.sweeps.recipe(
            {
                "models": [{"id": str(self.tiny), "dtype": "float32", "label": "tiny"}],
                "methods": ["none"],
                "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}},
                "device": "cpu",
                **changes,
            }
        )
        where = ["--results", str(self.folder / "results"), "--cache", str(self.cache)]
        on_cluster = ["--executor", "ray", "--address", self.cluster.address]
        return qharness(command, recipe, *on_cluster, *where, timeout=PATIENCE_S)

    def __call__(self, command: str, **changes: object) -> str:
        ended = self.end(command, **changes)
        assert ended.returncode == 2, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        assert not list(self.folder.rglob("record.json")), "it is told before the first run"
        return ended.stderr


@pytest.fixture
def refused(cluster: RealCluster, tmp_path: Path, sweeps: Any, tiny: Path) -> Refused:
    return Refused(cluster, tmp_path, sweeps, tiny)


def test_nodes_with_other_processors(refused: Refused, tmp_path: Path) -> None:
    other = tmp_path / "cpuinfo"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    other.write_text("\n".join("model name\t: An older CPU" if "model name" in line else line for line in lines))
    with refused.cluster.another({Path("/proc/cpuinfo"): other}):
        message = refused("plan")
    assert "the nodes are unlike, so their figures could not be compared: hardware is " in message
    assert "An older CPU" in message


def test_nodes_with_other_versions(refused: Refused, tmp_path: Path) -> None:
    (metadata,) = [path for path in distribution("transformers").files or () if path.name == "METADATA"]
    real = Path(str(distribution("transformers").locate_file(metadata)))
    other = tmp_path / "METADATA"
    version = distribution("transformers").version
    other.write_text(real.read_text(encoding="utf-8").replace(f"\nVersion: {version}\n", "\nVersion: 4.0.0\n"))
    with refused.cluster.another({real: other}):
        message = refused("run")
    assert f"transformers is {version} on this machine and 4.0.0 on " in message


def test_a_node_without_the_cache_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused.cluster.another({refused.cache: tmp_path / "empty"}):
        message = refused("run")
    assert f"does not see the cache folder {refused.cache} of this machine" in message


def test_a_node_without_the_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    models = tmp_path / "models"
    model = shutil.copytree(refused.tiny, models / "tiny")
    with refused.cluster.another({models: tmp_path / "empty"}):
        for command in ("plan", "run"):
            message = refused(command, models=[{"id": str(model), "dtype": "float32"}])
            assert f"does not see {model}: put it into a folder that all nodes share" in message


def test_runs_in_a_stack_that_one_node_has_begin_there(refused: Refused, tmp_path: Path) -> None:
    """It looks ready: its folder has an interpreter and the manifest of a build. Its runs fail once they have begun."""
    from harness.execution.local import local_site

    (tmp_path / "empty").mkdir()
    stack = local_site(refused.cache).stacks.find("llamacpp")
    folder = stack.folder
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    versions = {"llama-cpp-python": "0.3.36", "gguf": "0.1", "torch": "2", "transformers": "5", "tokenizers": "0.22"}
    manifest = with_seal({"versions": versions, "compiler_flags": list(stack.definition.compiler_flags())})
    (folder / "stack.json").write_text(json.dumps(manifest), encoding="utf-8")
    with refused.cluster.another({folder: tmp_path / "empty"}):
        planned, ended = (refused.end(command, engines=["transformers", "llamacpp"]) for command in ("plan", "run"))
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "stacks: llamacpp, main" in planned.stdout
    assert "stacks: main" in planned.stdout
    assert ended.returncode == 3, ended.stdout + ended.stderr
    records = read_records(tmp_path / "results")
    begun = [record for record in records if record.spec.stack == "llamacpp" and record.node]
    assert begun
    assert len({record.node for record in begun}) == 1
    assert "NoInterpreter" not in {record.outcome.failure.type for record in records if record.outcome.failure}


@pytest.mark.parametrize("command", ["plan", "run"])
def test_an_address_where_no_cluster_listens(command: str, tmp_path: Path, sweeps: Any, tiny: Path) -> None:
    recipe = sweeps.recipe({"models": [str(tiny)], "methods": ["none"], "measure": {"memory": {}}, "device": "cpu"})
    nowhere = ["--executor", "ray", "--address", "127.0.0.1:1"]
    ended = qharness(command, recipe, *nowhere, "--results", tmp_path / "r", timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert "127.0.0.1:1: no Ray cluster can be reached there" in ended.stderr
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").rglob("record.json"))
