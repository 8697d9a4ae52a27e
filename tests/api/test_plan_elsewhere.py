"""A plan for the nodes of a cluster: what it shows, and that it refuses what ``run`` refuses before its first run.

The nodes are reports of this machine. Nothing is executed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from harness.api import plan as api_plan
from harness.api import run as api_run
from harness.api.plan import PlanSettings, plan_with_state
from harness.api.run import RunSettings, run_part
from harness.api.workplace import Workplace
from harness.cli.app import app
from harness.core.run import RunSpec
from harness.core.site import Node, Speeds
from harness.errors import UsageError
from harness.execution.cluster import ClusterSite, NodeReport, report_node
from harness.execution.executors import ExecutorChoice
from harness.execution.local import LocalSite, local_site
from harness.recipe import load_recipe
from harness.stacks import Stacks

SPEEDS = Speeds(0.1, 40e9, {"float32": 900e9}, 2e9)
"""The nodes', which this machine has not."""
ELSEWHERE = ExecutorChoice("slurm", nodes=2)


@dataclass
class Elsewhere:
    """An executor on nodes that reported so; ``absent`` is a path that one of them lacks, and ``arriving`` what is
    fetched, which it lacks too."""

    here: LocalSite
    reports: dict[str, NodeReport]
    absent: str | None = None
    arriving: str | None = None
    lent_s: float | None = None
    is_closed: bool = field(default=False, init=False)

    @property
    def site(self) -> ClusterSite:
        return ClusterSite(self.here, self.reports, lambda: self.reports, lambda: SPEEDS)

    @property
    def stacks(self) -> Stacks:
        return self.here.stacks

    def nodes(self, device: str) -> tuple[Node, ...]:
        return tuple(replace(node, lent_s=self.lent_s) for node in self.site.nodes())

    def refuse_unseen(self, specs: Sequence[RunSpec]) -> None:
        if self.absent is not None:
            raise UsageError(f"node-2 does not see {self.absent}")

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        self.absent = self.arriving
        return self.arriving is not None

    def run(self, *anything: object) -> NoReturn:
        pytest.fail("nothing may be executed")

    def device_of(self, spec: RunSpec) -> str:
        return ""

    def stop(self) -> None:
        """Nothing executes."""

    def close(self) -> None:
        self.is_closed = True


class Cluster:
    """Opens the executor whose nodes ``change`` makes of two that are like this machine."""

    def __init__(self, folder: Path) -> None:
        self.own = report_node(local_site(folder / "cache", device="cpu"))
        self.change: Callable[[Elsewhere], object] = lambda opened: None
        self.opened: list[Elsewhere] = []

    def open(self, choice: ExecutorChoice, site: LocalSite, report: Callable[[str], None]) -> Elsewhere:
        assert choice == ELSEWHERE
        report("waiting for 2 of 2 nodes")
        self.opened.append(Elsewhere(site, {"node-1": self.own, "node-2": self.own}))
        self.change(self.opened[-1])
        return self.opened[-1]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    for module in (api_plan, api_run):
        monkeypatch.setattr(module, "open_executor", made.open)
    monkeypatch.setattr("harness.execution.local.machine_speeds", lambda *machine: pytest.fail("a login node's"))
    return made


def recipe(folder: Path, tiny: Path, engine: str = "transformers") -> Path:
    path = folder / "recipe.yaml"
    models = f"models: [{{id: {tiny}, dtype: float32, label: tiny}}]"
    path.write_text(
        f"{{name: r, {models}, methods: [none], engines: [{engine}], measure: {{memory: {{}}}}, device: cpu}}"
    )
    return path


def test_it_shows_the_runs_and_the_nodes_that_would_execute_them(cluster: Cluster, tmp_path: Path, tiny: Path) -> None:
    words = ["plan", str(recipe(tmp_path, tiny)), "--executor", "slurm", "--nodes", "2"]
    ended = CliRunner().invoke(app, [*words, "--results", str(tmp_path / "r"), "--cache", str(tmp_path / "cache")])
    assert ended.exit_code == 0, ended.output
    assert ended.stderr == "waiting for 2 of 2 nodes\n"
    assert cluster.own.machine is not None
    assert cluster.own.node is not None
    shown = " ".join(ended.stdout.split())
    assert f"on 2 nodes, each {cluster.own.machine.hardware} (cpu)" in shown
    cores = cluster.own.node.cores
    assert f"node-1, node-2: {cores} core{'s' * (cores != 1)}; stacks: main" in shown
    assert "expected: " in shown
    assert "; the first node copies 40 GB/s and does 900·10⁹ operations per second" in shown
    assert not (tmp_path / "cache" / "speeds").exists(), "this machine's are not theirs"
    assert [each.is_closed for each in cluster.opened] == [True]
    assert not (tmp_path / "r").exists(), "a plan writes no results"


def test_it_says_that_the_jobs_end_before_the_runs(cluster: Cluster, tmp_path: Path, tiny: Path) -> None:
    def shown(lent_s: float | None) -> str:
        cluster.change = lambda opened: setattr(opened, "lent_s", lent_s)
        words = ["plan", str(recipe(tmp_path, tiny)), "--executor", "slurm", "--nodes", "2"]
        ended = CliRunner().invoke(app, [*words, "--results", str(tmp_path / "r"), "--cache", str(tmp_path / "cache")])
        assert ended.exit_code == 0, ended.output
        return " ".join(ended.stdout.split())

    assert "longer than the nodes are there: their jobs end in 0.10 s" in shown(0.1)
    for enough in (None, 14_400.0):
        assert "longer than the nodes" not in shown(enough)


def test_its_runs_and_its_forecast_are_those_of_the_sweep(
    cluster: Cluster, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, place = recipe(tmp_path, tiny), Workplace(tmp_path / "r", tmp_path / "cache")
    state = plan_with_state(path, PlanSettings(place, executor=ELSEWHERE))
    assert [node.name for node in state.nodes] == ["node-1", "node-2"]
    begun: list[object] = []

    def sweep(planned: Sequence[object], *rest: object) -> tuple[()]:
        expect: Callable[..., object] = rest[-1]  # type: ignore[assignment]
        begun.extend((planned, expect(planned, ())))
        return ()

    monkeypatch.setattr(api_run, "sweep", sweep)
    run_part(load_recipe(path), RunSettings(place, executor=ELSEWHERE))
    assert begun == [state.planned, state.forecast]
    assert state.forecast.lanes == (1, 1)


def unlike(opened: Elsewhere) -> None:
    report = opened.reports["node-2"]
    assert report.machine is not None
    opened.reports["node-2"] = replace(report, machine=replace(report.machine, hardware="another CPU"))


def without_a_file(opened: Elsewhere) -> None:
    opened.absent = "/models/tiny"


@pytest.mark.parametrize(
    ("engine", "change", "message"),
    [
        ("transformers", unlike, "the nodes are unlike.* and another CPU on node-2"),
        ("transformers", without_a_file, "node-2 does not see /models/tiny"),
        ("llamacpp", lambda opened: None, "stack 'llamacpp' is ready on this machine and on no node"),
    ],
)
def test_it_refuses_what_run_refuses_before_its_first_run(
    cluster: Cluster, tmp_path: Path, tiny: Path, engine: str, change: Callable[[Elsewhere], object], message: str
) -> None:
    """The interpreter of the stack is one that only this machine has."""
    cluster.change = change
    path = recipe(tmp_path, tiny, engine)
    place = Workplace(tmp_path / "r", tmp_path / "cache", {"llamacpp": Path(sys.executable)})
    for ask in (
        lambda: plan_with_state(path, PlanSettings(place, executor=ELSEWHERE)),
        lambda: run_part(load_recipe(path), RunSettings(place, executor=ELSEWHERE)),
    ):
        with pytest.raises(UsageError, match=message):
            ask()
    assert [each.is_closed for each in cluster.opened] == [True, True]
    assert not (tmp_path / "r").exists()


def test_a_run_refuses_nodes_that_do_not_see_the_model_that_it_has_fetched(
    cluster: Cluster, tmp_path: Path, tiny: Path
) -> None:
    cluster.change = lambda opened: setattr(opened, "arriving", "/hub/model")
    settings = RunSettings(Workplace(tmp_path / "r", tmp_path / "cache"), executor=ELSEWHERE)
    with pytest.raises(UsageError, match="node-2 does not see /hub/model"):
        run_part(load_recipe(recipe(tmp_path, tiny)), settings)
    assert not (tmp_path / "r").exists()
