"""Sweeps on a real Slurm: sbatch, scancel, squeue, and nodes that are slurmd of this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND
from slurm_cluster import Slurm, slurm

from harness.core.record import RunRecord
from harness.execution import starter
from harness.storage.store import Store

pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

PATIENCE_S = 900.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


class Sweep:
    """A ``qharness run --json`` of the tiny recipe, on Slurm's nodes or, without any, on this machine.

    Its nodes start workers as users' do: each forks them from a server.
    """

    def __init__(self, folder: Path, recipe: Path, cluster: Slurm, *options: str) -> None:
        self.results, self.cache = folder / "results", folder / "cache"
        where = ["--results", str(self.results), "--cache", str(self.cache)]
        self.process = subprocess.Popen(
            [*COMMAND, "run", str(recipe), "--json", *where, *options],
            env={**cluster.variables, starter.VARIABLE: starter.FORK},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def events(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"event"'):
                yield json.loads(line)

    def end(self) -> tuple[int, str]:
        """The exit code, and what was printed as an error."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        assert not list(self.cache.glob(".spool-*"))
        return self.process.returncode, errors

    def records(self) -> tuple[RunRecord, ...]:
        return Store(self.results).read("sweep").records


def quality(records: tuple[RunRecord, ...]) -> dict[str, object]:
    """The figures of quality of every run, to the last bit."""
    return {
        record.spec.run_id: [(each.metric, each.values) for each in record.outcome.measurements]
        for record in records
        if record.spec.kind == "quality"
    }


@pytest.fixture
def recipe(sweeps: Any, tiny: Path) -> Path:
    path: Path = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": ["none", {"rtn": {"group_size": 32}}],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}},
            "device": "cpu",
            "threads": 1,
        }
    )
    return path


def test_a_sweep_of_which_a_job_is_cancelled_gives_the_figures_of_a_local_one(
    cluster: Slurm, recipe: Path, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path, recipe, cluster, "--executor", "slurm", "--nodes", "2")
    nodes: dict[str, str] = {}
    lost: list[dict[str, Any]] = []
    cancelled = ""
    for event in sweep.events():
        if event["event"] == "started":
            nodes[event["run_id"]] = event["node"]
        if event["event"] == "phase" and not cancelled:  # the first one: libraries are imported for seconds
            cancelled = nodes[event["run_id"]]
            cluster.ask("scancel", cluster.jobs()[int(cancelled.removeprefix("node-")) - 1])
        if event["event"] == "lost":
            lost.append(event)
    records = sweep.records()
    assert [record.status for record in records] == ["ok"] * 3, [record.outcome.failure for record in records]
    assert sweep.end() == (0, "")
    assert [(each["node"], each["for_good"], each["again"]) for each in lost] == [(cancelled, True, True)]
    assert len({record.spec.run_id for record in records}) == 3, "nothing is lost, nothing is doubled"
    (again,) = [each for each in records if any(fact.code == "node_lost" for fact in each.outcome.facts)]
    assert {again.node, cancelled} == {"node-1", "node-2"}
    assert cluster.jobs() == []
    local = Sweep(tmp_path / "local", recipe, cluster)
    list(local.events())
    assert local.end() == (0, "")
    assert quality(records) == quality(local.records()) != {}


def test_a_job_that_is_cancelled_in_the_queue_ends_the_command(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    """Also where sacct cannot tell its state. The first job holds the node that both ask for."""
    sweep = Sweep(tmp_path, recipe, cluster, "--executor", "slurm", "--nodes", "2", "--slurm", "nodelist=n1")
    for event in sweep.events():
        if event == {"event": "waiting", "message": "waiting for 1 of 2 nodes"}:
            cluster.ask("scancel", cluster.jobs()[1])
    code, errors = sweep.end()
    assert code == 2
    assert "node-2 does not serve: its job has ended (cancelled)" in errors
    assert cluster.jobs() == []


def test_what_slurm_refuses_is_told(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    code, errors = Sweep(tmp_path, recipe, cluster, "--executor", "slurm", "--slurm", "partition=none").end()
    assert code == 2
    assert "invalid partition specified: none" in errors
