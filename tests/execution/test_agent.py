"""What a sweep and the agents on its nodes tell each other through a spool folder. These workers import no library."""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hub_data import keep_data_set
from run_specs import run_spec

from harness.core.inputs import Input, InputFile
from harness.core.model import ModelRef
from harness.core.record import Measurement, Outcome
from harness.core.site import MAIN, Machine, Node, Speeds
from harness.core.workload import PerplexityWorkload, TaskWorkload, TextRef
from harness.errors import ResultsError, UsageError
from harness.execution import agent, fetch, local
from harness.execution.agent import AgentSettings, Heartbeat, RemoteAgent
from harness.execution.cluster import (
    ClusterSite,
    NodeReport,
    StackReport,
    paths_read,
    refuse_absent,
    refuse_unreadable,
    report_node,
)
from harness.execution.executor import RunLost
from harness.execution.fetch import HubContent
from harness.execution.local import local_site
from harness.storage.evidence import FEW_VALUES
from harness.storage.json_codec import decode, encode

LONG = Measurement("kl", 2, "nat", "lower", "paired", tuple(n / 7 for n in range(FEW_VALUES + 1)))
OK = Outcome("ok", measurements=(LONG,))
WORKER = f"""
import json, os, sys, time
spec, inputs, outcome, cache, events = sys.argv[1:]
os.write(int(events), b"load\\nmeasure\\n")
print(json.load(open(inputs))[0]["folder"], flush=True)
if json.load(open(spec))["job"]["kind"] == "prepare":
    time.sleep(600)
open(outcome, "w").write({encode(OK)!r})
"""


class Spool:
    """A spool with one agent in a thread of this process, started by ``begin``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "node-1").mkdir(parents=True)
        settings = AgentSettings(str(folder / "cache"), {}, "cpu")
        (folder / agent.SETTINGS).write_text(encode(settings), encoding="utf-8")
        self.ends: list[str] = []
        self.ending = threading.Event()
        self.job_end: str | None = None
        self.remote = RemoteAgent(folder / "node-1", lambda: self.job_end)
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        self.ends.append(agent._Agent(self.folder, "node-1", self.ending).serve())
        (self.folder / "node-1" / agent.GONE).write_text(self.ends[0])

    def begin(self) -> NodeReport:
        self.thread.start()
        while (report := self.remote.read_report()) is None:
            time.sleep(0.01)
        return report


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    monkeypatch.setattr(local, "WORKER", "odd_worker")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(agent, "POLL_S", 0.01)
    (tmp_path / "odd_worker.py").write_text(WORKER, encoding="utf-8")
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.remote.stop()
    if spool.thread.ident is not None:
        spool.thread.join()


def inputs(name: str) -> list[Input]:
    return [Input((InputFile("/a", 1, 2, 3, 4),), name)]


def test_runs_come_back_with_outcome_log_and_phases_and_leave_no_file(spool: Spool) -> None:
    report = spool.begin()
    assert report.machine == local_site(spool.folder / "cache").machine("cpu")
    for number in range(2):
        phases: list[str] = []
        outcome, log = spool.remote.run(run_spec("quality"), inputs(f"/input-{number}"), phases.append)
        assert (outcome, log.decode(), phases) == (OK, f"/input-{number}\n", ["load", "measure"])
    assert {path.name for path in spool.remote.folder.iterdir()} == {agent.REPORT}
    spool.remote.stop()
    spool.thread.join()
    assert spool.ends == ["the sweep has ended"]
    with pytest.raises(RunLost, match="the sweep has ended"):
        spool.remote.run(run_spec("quality"), inputs("/late"), lambda phase: None)


def test_an_agent_says_which_paths_lead_nowhere_on_its_node(spool: Spool) -> None:
    spool.begin()
    there, gone, astray = (spool.folder / name for name in ("there", "gone", "astray"))
    there.touch()
    astray.symlink_to(gone)
    for paths in ([there, gone, astray], [there]):
        spool.remote.ask_for(list(map(str, paths)))
        while (absent := spool.remote.read_absent()) is None:
            time.sleep(0.01)
        assert absent == tuple(str(path) for path in paths if path != there)
    assert spool.remote.run(run_spec("quality"), inputs("/a"), lambda phase: None)[0] == OK


def test_an_agent_times_its_node(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    own, asked = Speeds(0.1, 1e9, {"float32": 2e9}, 3e9), list[object]()
    monkeypatch.setattr(local, "machine_speeds", lambda machine, cache: [asked.append((machine, cache)), own][1])
    report = spool.begin()
    assert spool.remote.time() == own
    assert asked == [(report.machine, spool.folder / "cache")]


DATA = HubContent(texts=(TextRef("who/text", hub="who/text", split="test", revision="a" * 40),))


@pytest.mark.parametrize("problem", [None, "who/text: cannot read the data set"])
def test_an_agent_says_whether_its_node_can_read_data_sets(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, problem: str | None
) -> None:
    asked: list[HubContent] = []
    monkeypatch.setattr(fetch, "find_unreadable", lambda data: asked.append(data) or problem)
    spool.begin()
    spool.remote.ask_to_read(DATA)
    while (answer := spool.remote.read_problem()) is None:
        time.sleep(0.01)
    assert (answer, asked) == (problem or "", [DATA])


def test_a_question_to_an_agent_that_ends_has_an_end(spool: Spool) -> None:
    spool.job_end = "its job has ended (timeout)"
    with pytest.raises(RunLost, match=r"its job has ended \(timeout\)"):
        spool.remote.time()
    spool.remote.ask_for(["/a"])
    with pytest.raises(RunLost, match=r"its job has ended \(timeout\)"):
        spool.remote.read_absent()


def lost(spool: Spool, end: Callable[[], None]) -> RunLost:
    """How a run is lost that would last ten minutes, if something ends its agent once it has begun."""

    def on_phase(phase: str) -> None:
        if phase == "measure":
            end()

    with pytest.raises(RunLost) as caught:
        spool.remote.run(run_spec("prepare"), inputs("/a"), on_phase)
    return caught.value


def test_a_run_is_lost_when_the_job_of_its_agent_ends(spool: Spool) -> None:
    spool.begin()
    error = lost(spool, lambda: setattr(spool, "job_end", "its job has ended (timeout)"))
    assert (str(error), error.for_good) == ("its job has ended (timeout)", True)


def test_a_run_whose_worker_is_ended_with_the_job_is_lost_not_failed(spool: Spool) -> None:
    """Clusters send the signal that ends a job to all of its processes, so a worker may end before its agent does."""

    def end() -> None:
        for each in psutil.Process().children(recursive=True):
            if "odd_worker" in each.cmdline():
                each.terminate()
        spool.ending.set()
        threading.Timer(1.0, lambda: setattr(spool, "job_end", "its job has ended (cancelled)")).start()

    spool.begin()
    assert str(lost(spool, end)) == "its job has ended (cancelled)"


def test_a_run_is_lost_when_its_agent_shows_no_life(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing beats here: after the silence each side takes the other for dead."""
    spool.begin()
    error = lost(spool, lambda: monkeypatch.setattr(agent, "SILENCE_S", 0.0))
    assert "no sign of life" in str(error)
    spool.thread.join()
    assert spool.ends == ["the sweep has shown no sign of life for 0 s"]


def test_what_showing_a_phase_raises_ends_the_run_and_its_agent(spool: Spool) -> None:
    def show(phase: str) -> None:
        raise BrokenPipeError

    spool.begin()
    with pytest.raises(BrokenPipeError):
        spool.remote.run(run_spec("prepare"), inputs("/a"), show)
    assert spool.ends == ["the sweep has ended"]


def test_a_damaged_outcome_is_a_lost_run_on_a_node_that_stays(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.begin()
    monkeypatch.setattr(agent, "MAX_LOG_BYTES", 1)
    with pytest.raises(RunLost, match="arrived damaged") as caught:
        spool.remote.run(run_spec("quality"), inputs("/a"), lambda phase: None)
    assert not caught.value.for_good


def test_a_folder_that_takes_no_request_is_a_lost_run_on_a_node_that_stays(spool: Spool) -> None:
    spool.remote.folder.rename(spool.folder / "away")
    with pytest.raises(RunLost, match="could not be given the run: No such file") as caught:
        spool.remote.run(run_spec("quality"), inputs("/a"), lambda phase: None)
    assert not caught.value.for_good
    spool.remote.stop()


def test_a_file_system_that_fails_for_a_moment_loses_no_run(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    real = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        here = threading.current_thread() is threading.main_thread()
        if here and path.is_relative_to(spool.remote.folder) and next(calls) % 2:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, follow_symlinks=follow_symlinks)

    spool.begin()
    monkeypatch.setattr(Path, "stat", stat)
    assert spool.remote.run(run_spec("quality"), inputs("/a"), lambda phase: None)[0] == OK


def test_a_node_sends_neither_its_name_nor_its_secrets(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "gpu-node-17")
    spool.begin()
    _, log = spool.remote.run(run_spec("quality"), inputs("/a of gpu-node-17"), lambda phase: None)
    assert log == b"/a of $HOST\n"


def test_an_agent_ends_at_a_request_that_it_cannot_read(spool: Spool) -> None:
    (spool.remote.folder / f"9{agent.REQUEST}").write_text("{}")
    with pytest.raises(ResultsError, match=r"9.run.json"):
        agent._Agent(spool.folder, "node-1", spool.ending).serve()


def test_a_heart_that_beats_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(agent, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    heart = Heartbeat(tmp_path / "beat")
    assert heart.silent_s() == 10
    assert heart.silent_s() == 20
    (tmp_path / "beat").write_text("1")
    assert heart.silent_s() == 10
    assert heart.silent_s() == 20


def test_nodes_must_see_the_users_files_and_what_they_do_not_fetch_themselves() -> None:
    own = ModelRef("/shared/m.gguf", "m", "0", "gguf", "/shared/m.gguf")
    fetched = ModelRef("who/m/m.gguf", "m", "1", "gguf", "/hub/m.gguf", revision="a" * 40)
    absent = ModelRef("who/n", "n", "2", "hub", "", revision="b" * 40)
    text = PerplexityWorkload(TextRef("t", "/shared/t.txt"), "gptq", 64, None)
    of_hub = PerplexityWorkload(TextRef("h", "/hub/h.txt", hub="who/h"), "gptq", 64, None)
    task = TaskWorkload("mine", "/shared/mine.yaml", own="3", data=TextRef("d", "/shared/d.jsonl"))
    specs = [
        *(run_spec("prepare", model=each) for each in (own, fetched, absent)),
        *(run_spec("quality", model=own, perplexity=each) for each in (text, of_hub)),
        *(run_spec("task", model=own, task=each) for each in (task, TaskWorkload("arc_easy", "/lib/arc_easy.yaml"))),
    ]
    users = ("/shared/d.jsonl", own.path, "/shared/mine.yaml", "/shared/t.txt")
    assert paths_read(specs, shared_downloads=False) == users
    assert paths_read(specs, shared_downloads=True) == (fetched.path, *users)


def test_the_first_node_that_lacks_a_file_is_named_with_it() -> None:
    refuse_absent({"node-1": (), "node-2": ()})
    with pytest.raises(UsageError, match=r"node-2 does not see /a: put it into"):
        refuse_absent({"node-1": (), "node-2": ("/a", "/b"), "node-3": ("/c",)})


def test_the_first_node_that_cannot_read_a_data_set_is_named_with_it() -> None:
    refuse_unreadable({"node-1": "", "node-2": ""})
    with pytest.raises(
        UsageError, match=r"node-2 cannot read a data set .*: who/text: not cached; put the hub's cache"
    ):
        refuse_unreadable({"node-1": "", "node-2": "who/text: not cached", "node-3": "who/text: not cached"})


def test_nodes_read_the_data_sets_of_a_hub_and_nothing_that_is_a_file() -> None:
    text = PerplexityWorkload(DATA.texts[0], "gptq", 64, None)
    own_data = TaskWorkload("mine", "/shared/mine.yaml", own="3", data=TextRef("d", "/shared/d.jsonl"))
    of_hub, with_code = (
        TaskWorkload("arc_easy", "/lib/arc_easy.yaml"),
        TaskWorkload("x", "/x.yaml", trust_task_code=True),
    )
    specs = [
        *(run_spec("quality", perplexity=each) for each in (text, text, replace(text, text=TextRef("t", "/t.txt")))),
        *(run_spec("task", task=each) for each in (own_data, of_hub, with_code)),
    ]
    data = HubContent.data_of(specs)
    assert data == replace(DATA, tasks=(of_hub, with_code))
    assert data.by_trust() == (replace(DATA, tasks=(of_hub,)), HubContent(tasks=(with_code,)))
    assert HubContent.data_of(specs[2:4]).is_empty


@pytest.mark.slow
def test_a_machine_reads_a_data_set_that_lies_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    problem = fetch.find_unreadable(DATA)
    assert problem is not None
    assert problem.startswith("who/text: cannot read the data set: ")
    keep_data_set(tmp_path, "who/text", "test", ["One.", "Two."])
    assert fetch.find_unreadable(DATA) is None


def test_reports_survive_their_way(tmp_path: Path) -> None:
    report = report_node(local_site(tmp_path, device="cpu"))
    assert decode(NodeReport, json.loads(encode(report)), "report") == report
    assert report.stacks[MAIN].versions["pydantic"]
    assert "missing" in (report.stacks["llamacpp"].obstacle or "")


CPU = Machine("cpu", "a CPU, 8 cores")


def cluster(folder: Path, *machines: Machine, **versions: str) -> ClusterSite:
    """A site of nodes with what is installed here, or other versions."""
    here = local_site(folder, device="cpu")
    main = report_node(here).stacks[MAIN]
    others = {MAIN: replace(main, versions={**main.versions, **versions}), "llamacpp": StackReport("it is missing")}
    reports = {
        f"node-{number}": NodeReport(each, Node(cores=4), None, others) for number, each in enumerate(machines, 1)
    }
    return ClusterSite(here, reports, lambda: reports, lambda: None)


def test_planning_sees_the_nodes_hardware_and_what_is_installed(tmp_path: Path) -> None:
    site = cluster(tmp_path, CPU, CPU)
    assert site.machine("auto") == CPU
    assert site.version("torch") == local_site(tmp_path).version("torch")
    assert site.nodes() == tuple(Node(name, cores=4, stacks=frozenset({MAIN})) for name in ("node-1", "node-2"))
    assert site.obstacle(MAIN) is None
    assert "missing" in (site.obstacle("llamacpp") or "")  # here and there: its runs are unsupported


def test_planning_counts_on_what_every_node_has(tmp_path: Path) -> None:
    """Processors of one name may have unlike memory, and a virtual machine may hide instructions."""
    large = replace(CPU, memory_bytes=512 * 10**9, instructions=frozenset({"avx2", "amx_tile"}))
    small = replace(CPU, memory_bytes=256 * 10**9, instructions=frozenset({"avx2"}), absent_compilers=("nvcc",))
    for machines in ((large, small), (small, large)):
        assert cluster(tmp_path, *machines).machine("auto") == small
    gpus = Machine("cuda", "a GPU", uuids=("GPU-1", "GPU-2"), driver="570.1")
    one = replace(gpus, uuids=("GPU-3",))
    assert cluster(tmp_path, gpus, one).machine("cuda") == one


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            lambda folder: cluster(folder, CPU, replace(CPU, hardware="a CPU, 4 cores")).machine("cpu"),
            "hardware is a CPU, 8 cores on node-1 and a CPU, 4 cores on node-2; choose alike nodes",
        ),
        (
            lambda folder: cluster(folder, *(Machine("cuda", "a GPU", driver=each) for each in "12")).machine("cuda"),
            "the GPU driver is 1 on node-1 and 2 on node-2; give all of them one version",
        ),
        (lambda folder: cluster(folder, CPU).machine("cuda"), "device: cuda, but the nodes run on cpu"),
        (lambda folder: cluster(folder, CPU, torch="1.0").version("torch"), "1.0 on node-1; give all of them one env"),
        (lambda folder: cluster(folder, CPU, qharness="0.0.1").machine("cpu"), "qharness is .* and 0.0.1 on node-1"),
        (
            lambda folder: ClusterSite(
                local_site(folder), {"node-1": NodeReport(None, None, "no GPU", {})}, lambda: {}, lambda: None
            ).machine("cpu"),
            "node-1: no GPU",
        ),
    ],
)
def test_unlike_nodes_are_refused(tmp_path: Path, site: Callable[[Path], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        site(tmp_path)


def test_a_stack_that_some_nodes_have_is_ready_and_the_schedule_knows_where(tmp_path: Path) -> None:
    site = cluster(tmp_path, CPU, CPU)
    report = site.reports["node-2"]
    made = StackReport(None, {"llama-cpp-python": "1"})
    site.reports["node-2"] = replace(report, stacks={**report.stacks, "llamacpp": made})
    stack = site.here.stacks.find("llamacpp")
    folder, flags = stack.folder, stack.definition.compiler_flags()
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    manifest = {"versions": {"llama-cpp-python": "1"}, "compiler_flags": flags}
    (folder / "stack.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert site.obstacle("llamacpp") is None
    assert site.version("llama-cpp-python", "llamacpp") == "1", "the node without the stack has no version of it"
    one, two = site.nodes()
    assert [node.has({MAIN, "llamacpp"}) for node in (one, two)] == [False, True]
    assert one.has({MAIN})


def test_a_stack_that_no_node_has_is_refused_unless_it_was_created_meanwhile(tmp_path: Path) -> None:
    site = cluster(tmp_path, CPU)
    own = replace(site.here, stacks=replace(site.here.stacks, pythons={"llamacpp": Path(__file__)}))
    ready = ClusterSite(own, dict(site.reports), lambda: later, lambda: None)
    later = site.reports
    with pytest.raises(UsageError, match="'llamacpp' is ready on this machine and on no node; node-1: it is missing"):
        ready.obstacle("llamacpp")
    made = StackReport(None, {"llama-cpp-python": "1"})
    report = site.reports["node-1"]
    later = {"node-1": replace(report, stacks={**report.stacks, "llamacpp": made})}
    assert ready.obstacle("llamacpp") is None
