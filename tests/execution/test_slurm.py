"""The Slurm executor: real agents in jobs of submitit's local executor, and what sbatch is given."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import submitit
from hub_data import keep_data_set
from other_files import seeing
from typer.testing import CliRunner

from harness.api.plan import PlanSettings, plan_with_state
from harness.api.run import RunSettings, run_part
from harness.api.workplace import Workplace
from harness.cli.app import app
from harness.core.record import RunRecord
from harness.errors import UsageError
from harness.execution import agent, slurm, starter
from harness.execution.events import Event, Lost, PhaseBegan, Started
from harness.execution.executors import ExecutorChoice, open_executor
from harness.execution.local import local_site
from harness.execution.slurm import SlurmExecutor, parse_options
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe

pytestmark = pytest.mark.heavy(minutes=0.5)


def jobs(folder: Path) -> submitit.LocalExecutor:
    """Jobs that are processes of this machine."""
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=60)
    return executor


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    running = [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    assert [each.cmdline() for each in running if "submitit" in " ".join(each.cmdline())] == []
    assert not list(tmp_path.glob("cache/.spool-*"))


def figures(records: tuple[RunRecord, ...]) -> dict[str, object]:
    """The quality of every variant, to the last bit."""
    return {
        record.spec.title: [(each.metric, list(each.values)) for each in record.outcome.measurements]
        for record in records
        if record.spec.kind == "quality"
    }


def event_is_load_of_the_baseline(event: Event) -> bool:
    return isinstance(event, PhaseBegan) and (event.spec.title, event.name) == ("quality none", "load")


@pytest.mark.thorough
def test_a_sweep_survives_the_death_of_a_node(sweeps, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(starter.VARIABLE, starter.FORK)  # of the nodes: each imports once
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": ["none", {"rtn": {"group_size": 32}}],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}},
            "device": "cpu",
            "threads": 1,
        }
    )
    events: list[Event] = []
    killed: list[str] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if event_is_load_of_the_baseline(event) and not killed:
            (begun,) = [each for each in events if isinstance(each, Started) and each.spec.title == "quality none"]
            killed.append(begun.node)
            job = executor._jobs[begun.node].job
            (serving,) = psutil.Process(int(job.job_id)).children()  # type: ignore[attr-defined]
            serving.kill()

    with closing(SlurmExecutor(local_site(sweeps.cache.root, device="cpu"), 2, jobs)) as executor:
        planned = plan(load_recipe(recipe), executor.site)
        records = sweep(planned, sweeps.store, executor, on_event)
    assert [record.status for record in records] == ["ok"] * 3, [record.outcome.failure for record in records]
    (loss,) = [event for event in events if isinstance(event, Lost)]
    assert (loss.spec.title, [loss.node], loss.for_good, loss.again) == ("quality none", killed, True, True)
    (again,) = [record for record in records if any(fact.code == "node_lost" for fact in record.outcome.facts)]
    assert again.spec.title == "quality none"
    assert {again.node, *killed} == {"node-1", "node-2"}
    kept = sweeps.store.read("sweep").records
    assert sorted(each.spec.run_id for each in kept) == sorted(each.spec.run_id for each in records)
    sweeps.cache.remove(planned[0].spec)
    monkeypatch.setenv(starter.VARIABLE, starter.SPAWN)
    with closing(sweeps.executor()) as local:
        here = sweep(planned, type(sweeps.store)(sweeps.folder / "local"), local, lambda event: None)
    assert figures(records) == figures(here)


def test_a_job_that_ends_before_its_node_reports_is_told_with_its_last_words(tmp_path: Path) -> None:
    def failing(folder: Path) -> submitit.LocalExecutor:
        executor = jobs(folder)
        executor.python = "/bin/sh -c 'echo no room on this node >&2'"
        return executor

    with pytest.raises(UsageError, match=r"node-1 does not serve: its job has ended .*no room on this node"):
        SlurmExecutor(local_site(tmp_path / "cache", device="cpu"), 1, failing)


def test_a_cache_that_takes_no_files_ends_the_command_before_a_job_is_submitted(tmp_path: Path) -> None:
    """Whatever the reason; here it is a file. Nothing catches an OSError on its way to the user."""
    recipe = "name: sweep\nmodels: [x]\nmethods: [none]\nmeasure: {memory: {}}\ndevice: cpu\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "file").touch()
    options = ["--executor", "slurm", "--cache", str(tmp_path / "file"), "--results", str(tmp_path / "results")]
    ended = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), *options])
    assert isinstance(ended.exception, UsageError)
    assert re.search(r"--cache .*/file: takes no files \(Not a directory\); ", str(ended.exception))


def test_a_cache_whose_quota_is_used_up_meanwhile_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    with closing(SlurmExecutor(local_site(tmp_path / "cache", device="cpu"), 1, jobs)) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(agent, "_write", full)
            with pytest.raises(UsageError, match=r"--cache .*/cache: takes no files \(Disk quota exceeded\)"):
                executor.refuse_unseen([])
        executor.refuse_unseen([])


def test_nodes_without_the_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="node-1: device: cuda, but"):
        SlurmExecutor(local_site(tmp_path / "cache", device="cuda"), 1, jobs)


@pytest.mark.thorough
def test_a_plan_names_the_node_and_leaves_no_job(sweeps, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_submitter", lambda options, folder: jobs(folder))
    recipe = sweeps.recipe({"models": [str(tiny)], "methods": ["none"], "measure": {"memory": {}}, "device": "cpu"})
    place = Workplace(sweeps.store.root, sweeps.cache.root)
    state = plan_with_state(recipe, PlanSettings(place, executor=ExecutorChoice("slurm", slurm=("time=60",))))
    (node,) = state.nodes
    assert node.name == "node-1"
    assert node.lent_s is not None
    assert 3000 < node.lent_s <= 3600
    assert [run.spec.run_id for run in state.planned] == list(state.forecast.runs)


def submitter_whose_second_node_lacks(shared: Path) -> Callable[[Mapping[str, object], Path], SimpleNamespace]:
    """Submits jobs of this machine; that of node-2 sees an empty folder in the place of ``shared``."""
    empty = shared.with_name("empty")
    empty.mkdir()

    def submitter(options: Mapping[str, object], folder: Path) -> SimpleNamespace:
        one, other = jobs(folder), jobs(folder)
        other.python = shlex.join([*seeing({shared: empty}), sys.executable])
        return SimpleNamespace(
            submit=lambda serve, spool, name: (other if name == "node-2" else one).submit(serve, spool, name)
        )

    return submitter


@pytest.mark.thorough
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_model_that_one_node_does_not_see_is_named_before_the_first_run(
    command: str, sweeps, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    model = shutil.copytree(tiny, models / "tiny")
    monkeypatch.setattr(slurm, "_submitter", submitter_whose_second_node_lacks(models))
    recipe = sweeps.recipe({"models": [str(model)], "methods": ["none"], "measure": {"memory": {}}, "device": "cpu"})
    place, executor = Workplace(sweeps.store.root, sweeps.cache.root), ExecutorChoice("slurm", nodes=2)
    ask: dict[str, Callable[[], object]] = {
        "plan": lambda: plan_with_state(recipe, PlanSettings(place, executor=executor)),
        "run": lambda: run_part(load_recipe(recipe), RunSettings(place, executor=executor)),
    }
    with pytest.raises(UsageError, match=f"node-2 does not see {re.escape(str(model))}: put it into a folder that all"):
        ask[command]()
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.thorough
def test_a_data_set_that_one_node_cannot_read_is_named_before_the_first_run(
    sweeps, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    keep_data_set(data, "who/text", "test", ["One sentence of a text. " * 40] * 8)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # of this machine: there is no hub
    monkeypatch.setattr(slurm, "_submitter", submitter_whose_second_node_lacks(data))
    text = {"hub": "who/text", "split": "test", "revision": "a" * 40}
    measured = {"perplexity": {"text": text, "context": 64, "windows": 2}}
    recipe = sweeps.recipe({"models": [str(tiny)], "methods": ["none"], "measure": measured, "device": "cpu"})
    place = Workplace(sweeps.store.root, sweeps.cache.root)
    settings = RunSettings(place, executor=ExecutorChoice("slurm", nodes=2))
    with pytest.raises(UsageError, match=r"node-2 cannot read a data set .*: who/text/test: .*all nodes share"):
        run_part(load_recipe(recipe), settings)
    assert not list(tmp_path.rglob("record.json"))


def test_options_of_sbatch_are_taken_by_their_long_names() -> None:
    given = ["account=00421", "--gpus-per-node=4", "time=1-2:30", "exclusive=false", "constraint=a100&ib"]
    assert parse_options(given) == {
        "account": "00421",
        "gpus_per_node": "4",
        "time": 26 * 60 + 30,
        "exclusive": False,
        "constraint": "a100&ib",
    }


@pytest.mark.parametrize(
    ("time", "minutes"), [("90", 90), ("90:30", 91), ("2:00:00", 120), ("1-0", 1440), ("0-1:2:3", 63)]
)
def test_times_are_read_as_sbatch_reads_them(time: str, minutes: int) -> None:
    """https://slurm.schedmd.com/sbatch.html, --time"""
    assert parse_options([f"time={time}"]) == {"time": minutes}


@pytest.mark.parametrize(
    ("given", "limit_s"),
    [([], 14_400.0), (["time=90"], 5400.0), (["time=0"], None), (["time=false"], None), (["qos=long"], 14_400.0)],
)
def test_a_job_s_limit_is_known_where_the_options_set_one(given: list[str], limit_s: float | None) -> None:
    assert slurm._limit_s(parse_options(given)) == limit_s


@pytest.mark.parametrize(
    "wrong",
    ["partition", "=gpu", "time=soon", "nodes=3", "a b=c", "array=0-3", "requeue=true", "use-srun=true", "gres=gpu\n#"],
)
def test_other_options_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="--slurm"):
        parse_options([wrong])


def test_where_no_jobs_can_be_submitted_the_sweep_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sbatch here"):
        open_executor(ExecutorChoice("slurm"), local_site(tmp_path / "cache"))


def test_options_belong_to_their_executor(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nodes: --executor local has no such option, but --executor slurm has"):
        open_executor(ExecutorChoice(nodes=2), local_site(tmp_path))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts programs with the names of Slurm's on the path; all but those that a test writes do nothing."""

    def write(name: str, script: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o700)

    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel"):
        write(name, "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return write


def test_sbatch_gets_the_options_and_a_script_that_starts_the_agent(
    tmp_path: Path, commands: Callable[[str, str], None]
) -> None:
    commands("sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 7')
    given = parse_options(["partition=gpu", "gres=gpu:8", "cpus-per-task=4", "time=2:00:00", "reservation=007"])
    job = slurm._submitter(given, tmp_path / "jobs").submit(agent.serve, str(tmp_path), "node-1")
    assert job.job_id == "7"  # type: ignore[attr-defined]
    lines = (tmp_path / "script").read_text().splitlines()
    for wanted in (
        "partition=gpu",
        "gres=gpu:8",
        "cpus-per-task=4",
        "time=120",
        "reservation=007",
        "job-name=qharness",
        "exclusive",
        "no-requeue",
    ):
        assert f"#SBATCH --{wanted}" in lines
    (command,) = [line for line in lines if "submitit.core._submit" in line]
    assert " -P -u -m submitit.core._submit " in command
    assert "srun" not in command


def test_a_refusal_of_sbatch_is_told(tmp_path: Path, commands: Callable[[str, str], None]) -> None:
    commands("sbatch", "echo 'sbatch: error: invalid partition specified: gpus' >&2; exit 1")
    with pytest.raises(UsageError, match=r"the job of node-1 was not accepted: .*invalid partition"):
        open_executor(ExecutorChoice("slurm", slurm=("partition=gpus",)), local_site(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("number", "state", "has_ended"),
    [
        ("101", "PENDING", False),
        ("102", "CONFIGURING", False),
        ("103", "COMPLETING", False),
        ("104", "PREEMPTED", True),
        ("105", "NODE_FAIL", True),
    ],
)
def test_a_job_has_ended_if_slurm_says_that_it_will_not_run_again(
    tmp_path: Path, commands: Callable[[str, str], None], number: str, state: str, has_ended: bool
) -> None:
    commands("sbatch", f"echo Submitted batch job {number}")
    commands("squeue", f"echo '{number}|{state}'")
    job = slurm._submitter({}, tmp_path / "jobs").submit(agent.serve, str(tmp_path), "node-1")
    assert (job.done(), job.state) == (has_ended, state)
