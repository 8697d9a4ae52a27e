"""Which runs execute at the same time on a machine with several GPUs, and on which of them. No worker is started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_specs import changed, run_spec

from harness.core.inputs import Input
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome
from harness.core.run import RunLimits, RunSpec, compared_within
from harness.core.site import MAIN, Machine, Node
from harness.errors import UsageError
from harness.execution.events import Ended, Event, PhaseBegan, Started
from harness.execution.local import LocalExecutor, LocalSite, local_site
from harness.execution.schedule import Schedule, stacks_needed
from harness.execution.sweep import sweep
from harness.models.shapes import ModelSize
from harness.planning.plan import PlannedRun
from harness.stacks import Stacks
from harness.storage.cache import Cache
from harness.storage.store import Store

GPUS = ("GPU-a", "GPU-b", "GPU-c")
WAIT_S = 300.0
"""How long a test waits for what must happen; far longer than it takes."""
NLL = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.0), {"context": 8}, (1.0, 1.0), ("0", "1"))


def method(number: int) -> MethodRef:
    return MethodRef("rtn", 1, {"bits": number}, f"rtn bits={number}", "offline")


@st.composite
def plans(draw: st.DrawFn) -> list[RunSpec]:
    """Plans as the planner orders them: by turn, then by variant."""
    prepare = run_spec("prepare", device="cuda")
    reference = replace(run_spec("reference", device="cuda"), needs={"prepare": prepare.run_id})
    found = [run_spec("machine", device="cuda"), prepare, reference]
    for number in range(draw(st.integers(1, 4))):
        gpus = draw(st.integers(1, 3))
        on = {"method": method(number), "device": "cuda"}
        quantize = replace(run_spec("quantize", **on), needs={"prepare": prepare.run_id})
        needs = {"prepare": prepare.run_id, "quantize": quantize.run_id}
        quality = replace(run_spec("quality", gpus=gpus, **on), needs={**needs, "reference": reference.run_id})
        tasks = [
            replace(run_spec("task", gpus=gpus, seed=seed, **on), needs=needs)
            for seed in [number] * draw(st.integers(0, 3))
        ]
        tasks = [
            replace(task, job=replace(task.job, task=replace(task.job.task, name=f"task {count}")))  # type: ignore[union-attr]
            for count, task in enumerate(tasks)
        ]
        speeds = [replace(run_spec("performance", gpus=gpus, repetition=each, **on), needs=needs) for each in range(2)]
        found += [quantize, quality, *tasks, *speeds]
    return sorted(found, key=lambda spec: spec.job.turn + spec.repetition)


def of_another_model(spec: RunSpec) -> RunSpec:
    return changed(spec, model=ModelRef("n", "N", "1" * 64, "directory", "/n"))


def lose_node(schedule: Schedule, running: dict[int, str], index: int) -> str:
    """The node of a run that executes, after it was lost with all that it executed."""
    gone = running[index]
    schedule.remove(gone)
    for each in [each for each, where in running.items() if where == gone]:
        schedule.retry(each)
        del running[each]
    return gone


@given(plans(), plans(), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans(), st.data())
def test_every_run_begins_once_and_shares_only_what_it_may(
    specs: list[RunSpec], others: list[RunSpec], gpus: list[int], two_models: bool, data: st.DataObject
) -> None:
    """On one to three nodes with so many GPUs, of which any but the last may be lost."""
    if two_models:
        specs = [*specs, *(of_another_model(spec) for spec in others if spec.kind == "performance")]
        specs = sorted(specs, key=lambda spec: spec.job.turn + spec.repetition)
    nodes = [Node(f"node-{number}", count) for number, count in enumerate(gpus, 1)]
    schedule = Schedule(specs, nodes)
    running: dict[int, Node] = {}
    ended: dict[int, Node] = {}
    begun: list[int] = []
    lost: set[Node] = set()
    while len(ended) < len(specs):
        while (placed := schedule.begin()) is not None:
            index, node = placed.index, placed.node
            now = specs[index]
            assert node not in lost
            assert index not in running.keys() | ended.keys()
            together = [now, *(specs[each] for each, where in running.items() if where == node)]
            assert len(together) == 1 or not any(spec.job.alone for spec in together)
            assert len(together) == 1 or sum(spec.job.conditions.gpus for spec in together) <= node.gpus
            assert index - 1 not in running or not now.may_share_process(specs[index - 1])
            planned_ids = {spec.run_id for spec in specs}
            assert planned_ids & set(now.needs.values()) <= {specs[each].run_id for each in ended}
            if now.job.repeated:
                homes = {ended[each] for each in ended if compared_within(specs[each]) == compared_within(now)}
                assert homes <= lost | {node}, "speeds of one model are measured on one node"
            running[index] = node
            begun.append(index)
        assert schedule.running == len(running) > 0, "nothing runs, and something is left"
        index = data.draw(st.sampled_from(sorted(running)))
        if len(nodes) - len(lost) > 1 and data.draw(st.integers(0, 9)) == 0:
            lost.add(lose_node(schedule, running, index))
        else:
            ended[index] = running.pop(index)
            schedule.end(index)
    assert schedule.begin() is None
    assert schedule.waiting == ()
    if not lost:
        assert sorted(begun) == list(range(len(specs)))
    if gpus == [1]:
        assert begun == list(range(len(specs)))


@st.composite
def plans_in_stacks(draw: st.DrawFn) -> list[RunSpec]:
    """Plans of one or two models, of which some runs are in stacks of their own."""
    stacks = st.sampled_from([MAIN, MAIN, "llamacpp", "vllm"])
    found: list[RunSpec] = []
    for each in range(draw(st.integers(1, 2))):
        for spec in draw(plans()):
            if spec.kind in ("quality", "performance"):  # nothing in the plan needs them
                own = changed(spec, stack=draw(stacks))
                found.append(of_another_model(own) if each else own)
            elif not each:
                found.append(spec)
    return sorted(found, key=lambda spec: spec.job.turn + spec.repetition)


@given(plans_in_stacks(), st.lists(st.sets(st.sampled_from(["llamacpp", "vllm"])), min_size=1, max_size=3), st.data())
def test_runs_begin_only_where_their_stacks_are(
    specs: list[RunSpec], ready: list[set[str]], data: st.DataObject
) -> None:
    """Also after nodes were lost. What cannot begin any more is left when nothing is running."""
    nodes = [Node(f"node-{number}", 3, stacks=frozenset(each)) for number, each in enumerate(ready, 1)]
    stacks = [stacks_needed(PlannedRun(spec)) for spec in specs]

    def needed(spec: RunSpec) -> set[str]:
        """The stacks that one node must have."""
        beside = [each for each in specs if spec.job.repeated and each.job.repeated]
        together = [each for each in beside if compared_within(each) == compared_within(spec)]
        return {each.stack for each in (spec, *together)} - {MAIN}

    def homes(left: Sequence[Node], spec: RunSpec) -> list[Node]:
        return [node for node in left if needed(spec) <= (node.stacks or set())]

    if not all(homes(nodes, spec) for spec in specs):
        with pytest.raises(UsageError, match="no node has the stacks that "):
            Schedule(specs, nodes, needed_stacks=stacks)
        return
    schedule, left = Schedule(specs, nodes, needed_stacks=stacks), list(nodes)
    running: dict[int, Node] = {}
    ended: set[int] = set()
    while True:
        while (placed := schedule.begin()) is not None:
            assert placed.node in homes(left, specs[placed.index])
            running[placed.index] = placed.node
        if not running:
            break
        index = data.draw(st.sampled_from(sorted(running)))
        if len(left) > 1 and data.draw(st.integers(0, 4)) == 0:
            left.remove(lose_node(schedule, running, index))
        else:
            del running[index]
            schedule.end(index)
            ended.add(index)
    assert ended | set(schedule.waiting) == set(range(len(specs)))
    assert [index for index in schedule.waiting if homes(left, specs[index])] == []


def test_quality_in_a_stack_waits_for_the_one_node_that_has_it_and_others_go_on() -> None:
    specs = [run_spec("quality", method=method(number), device="cuda", stack="llamacpp") for number in range(2)]
    specs += [run_spec("quality", method=method(number), device="cuda") for number in range(2)]
    with_stack = Node("node-2", stacks=frozenset({"llamacpp"}))
    needed = [stacks_needed(PlannedRun(spec)) for spec in specs]
    schedule = Schedule(specs, [Node("node-1", stacks=frozenset()), with_stack], needed_stacks=needed)
    first, second = schedule.begin(), schedule.begin()
    assert first is not None
    assert (first.index, first.node) == (0, with_stack)
    assert second is not None
    assert (second.index, second.node.name) == (2, "node-1")


@given(plans(), st.integers(1, 9), st.sampled_from([None, 1, 2, 3, 4]), st.data())
def test_runs_share_a_cpu_by_their_threads_and_its_memory(
    specs: list[RunSpec], cores: int, threads: int | None, data: st.DataObject
) -> None:
    specs = [changed(spec, device="cpu", threads=threads) for spec in specs]
    needed = data.draw(st.lists(st.integers(1, 5), min_size=len(specs), max_size=len(specs)))
    node = Node(cores=cores, memory_bytes=data.draw(st.integers(1, 12)))
    schedule = Schedule(specs, [node], needed)
    running: list[int] = []
    begun: list[int] = []
    most = 0
    while len(begun) < len(specs) or running:
        while (placed := schedule.begin()) is not None:
            running.append(placed.index)
            begun.append(placed.index)
            most = max(most, len(running))
            if len(running) > 1:
                assert threads is not None
                assert not any(specs[each].job.alone for each in running)
                assert len(running) * threads <= cores
                assert sum(needed[each] for each in running) <= node.memory_bytes
        index = data.draw(st.sampled_from(running))
        running.remove(index)
        schedule.end(index)
    assert sorted(begun) == list(range(len(specs)))
    assert most <= schedule.width
    if threads is None or cores < 2 * threads:
        assert begun == list(range(len(specs))), "the plan's order"


def test_quality_fills_the_cores_that_its_threads_leave() -> None:
    specs = [run_spec("quality", method=method(number), threads=2) for number in range(4)]
    schedule = Schedule(specs, [Node(cores=7, memory_bytes=1)])
    assert [begin(schedule) for _ in range(4)] == [0, 1, 2, None]
    assert schedule.width == 3


def test_a_run_in_a_stack_shares_no_cpu() -> None:
    specs = [run_spec("quality", method=method(number), threads=1, stack="llamacpp") for number in range(2)]
    schedule = Schedule(specs, [Node(cores=8, memory_bytes=1)])
    assert [begin(schedule) for _ in range(2)] == [0, None]


def test_the_memory_of_a_run_is_its_limit_or_what_its_model_takes() -> None:
    spec = run_spec("quality", limits=RunLimits(memory_bytes=7))
    assert PlannedRun(spec).needed_bytes == 7
    unlimited = run_spec("quality")
    assert PlannedRun(unlimited).needed_bytes > 2**60, "the size of its model is not known"
    size = ModelSize(10**9, 10**9, 10**9, 10**9, hidden=10, vocabulary=1000)
    assert PlannedRun(unlimited, size=size).needed_bytes == 8 * 10**9 + 2**30 + 12 * 64 * 1000


def begin(schedule: Schedule) -> int | None:
    placed = schedule.begin()
    return None if placed is None else placed.index


def test_quality_fills_the_gpus_while_speed_has_the_machine_alone() -> None:
    on = {"device": "cuda"}
    specs = [run_spec("quality", method=method(number), **on) for number in range(3)]
    specs += [run_spec("performance", method=method(number), **on) for number in range(2)]
    schedule = Schedule(specs, [Node(gpus=2)])
    assert [begin(schedule) for _ in range(3)] == [0, 1, None]
    schedule.end(1)
    assert [begin(schedule), begin(schedule)] == [2, None]
    schedule.end(0)
    assert begin(schedule) is None, "a run of speed waits for the last one of quality"
    schedule.end(2)
    assert [begin(schedule), begin(schedule)] == [3, None]


def test_quantizing_comes_first_where_others_would_wait_for_it() -> None:
    specs = []
    for number in range(2):
        quantize = run_spec("quantize", method=method(number), device="cuda")
        quality = replace(
            run_spec("quality", method=method(number), device="cuda"), needs={"quantize": quantize.run_id}
        )
        specs += [quantize, quality]
    many = Schedule(specs, [Node(gpus=2)])
    assert begin(many) == 0
    assert begin(many) is None
    many.end(0)
    assert begin(many) == 2
    many.end(2)
    assert [begin(many), begin(many)] == [1, 3]


@dataclass(frozen=True)
class Workplace:
    """A site with so many GPUs. ``machine`` may be replaced."""

    artifacts: Cache
    names: tuple[str, ...] = GPUS

    def machine(self, device: str) -> Machine:
        return Machine("cuda", "a machine with GPUs", (9, 0), self.names)

    def version(self, package: str, stack: str = "main") -> str | None:
        return "1"

    def obstacle(self, stack: str) -> str | None:
        return None


@dataclass
class Threaded:
    """Runs nothing, in whatever thread calls it. ``during`` waits, or raises."""

    site: Workplace
    during: Callable[[RunSpec], None] = lambda spec: None
    stopped: threading.Event = field(default_factory=threading.Event)
    threads: dict[str, int] = field(default_factory=dict)

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return False

    def nodes(self, device: str) -> tuple[Node, ...]:
        return (Node(gpus=len(self.site.names)),)

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        self.threads[spec.run_id] = threading.get_ident()
        on_phase("forward")
        self.during(spec)
        return Outcome("ok", measurements=(NLL,)), b"log"

    def stop(self) -> None:
        self.stopped.set()


def qualities(count: int) -> list[PlannedRun]:
    return [PlannedRun(run_spec("quality", method=method(number), device="cuda")) for number in range(count)]


def test_as_many_runs_execute_at_once_as_there_are_gpus(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=WAIT_S)
    executor = Threaded(Workplace(Cache(tmp_path / "cache")), lambda spec: together.wait() and None)
    planned, events = qualities(6), []
    records = sweep(planned, Store(tmp_path / "results"), executor, events.append)
    assert [record.status for record in records] == ["ok"] * 6
    assert [record.spec for record in records] == [run.spec for run in planned]
    assert threading.get_ident() not in executor.threads.values()
    assert len(set(executor.threads.values())) == 3, "the processes of a thread end with it: it must not end before"
    for kind in (Started, Ended, PhaseBegan):
        assert len([event for event in events if isinstance(event, kind)]) == 6
    assert sweep(planned, Store(tmp_path / "results"), executor, events.append) == records


def test_one_gpu_is_used_by_the_main_thread(tmp_path: Path) -> None:
    executor = Threaded(Workplace(Cache(tmp_path / "cache"), GPUS[:1]))
    sweep(qualities(2), Store(tmp_path / "results"), executor, lambda event: None)
    assert set(executor.threads.values()) == {threading.get_ident()}


def test_a_display_that_fails_ends_what_executes(tmp_path: Path) -> None:
    executor = Threaded(Workplace(Cache(tmp_path / "cache")))
    executor.during = lambda spec: executor.stopped.wait(WAIT_S) and None

    def show(event: Event) -> None:
        if isinstance(event, PhaseBegan):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        sweep(qualities(1), Store(tmp_path / "results"), executor, show)
    assert executor.stopped.is_set()


def test_an_interrupt_ends_what_executes_and_keeps_what_had_ended(tmp_path: Path) -> None:
    """Of three runs that execute two end, and the interrupt comes while the first of them is shown."""
    planned = qualities(3)
    executor = Threaded(Workplace(Cache(tmp_path / "cache")))
    ends = threading.Barrier(2, timeout=WAIT_S)

    def during(spec: RunSpec) -> None:
        if spec == planned[2].spec:
            assert executor.stopped.wait(WAIT_S)
        else:
            ends.wait()

    def show(event: Event) -> None:
        if isinstance(event, Ended):
            raise KeyboardInterrupt

    executor.during = during
    store = Store(tmp_path / "results")
    with pytest.raises(KeyboardInterrupt):
        sweep(planned, store, executor, show)
    assert executor.stopped.is_set()
    kept = [record.spec for record in store.read("sweep").records]
    assert 1 <= len(kept) <= 2
    assert planned[2].spec not in kept, "a run that was ended has no record"


def local(folder: Path, names: tuple[str, ...]) -> tuple[LocalExecutor, LocalSite]:
    site = LocalSite(Cache(folder), Stacks(folder / "stacks"), Machine("cuda", "GPUs", (9, 0), names))
    return LocalExecutor(site), site


def test_each_worker_has_gpus_of_its_own(tmp_path: Path) -> None:
    executor, site = local(tmp_path, GPUS)
    one, two = (
        run_spec("quality", device="cuda", hardware="GPUs"),
        run_spec("quality", device="cuda", hardware="GPUs", gpus=2, seed=1),
    )
    first, second = executor._workers.take(one, site), executor._workers.take(two, site)
    assert (first.gpus, second.gpus) == (("GPU-a",), ("GPU-b", "GPU-c"))
    assert (executor.device_of(one), executor.device_of(two)) == ("GPU 0", "GPU 1, 2")
    executor._workers.give_back(first)
    assert executor._workers.take(one, site).gpus == ("GPU-a",), "speeds are all measured on the first GPU"
    assert executor._workers.take(run_spec("quality"), site).gpus == ()
    assert executor.device_of(run_spec("quality")) == ""
    single, site = local(tmp_path, GPUS[:1])
    single._workers.take(one, site)
    assert single.device_of(one) == "", "there is no other"


def test_each_worker_on_a_cpu_has_cores_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.execution.local.physical_cores", lambda: (0, 2, 4, 6, 8))
    monkeypatch.setattr("harness.execution.local.core_limit", lambda: float("inf"))
    executor = LocalExecutor(local_site(tmp_path, device="cpu"))
    two, alone = run_spec("quality", threads=2), run_spec("performance", threads=2)
    first, second = executor._workers.take(two, executor.site), executor._workers.take(two, executor.site)
    assert (first.cores, second.cores) == ((0, 2), (4, 6))
    assert executor.device_of(two) == "cores 0, 2"
    executor._workers.give_back(first)
    assert executor._workers.take(two, executor.site).cores == (0, 2)
    assert executor._workers.take(alone, executor.site).cores == ()
    assert executor._workers.take(run_spec("quality", threads=3), executor.site).cores == (), "none has room beside it"
    assert executor._workers.take(run_spec("quality"), executor.site).cores == ()


def test_runs_are_confined_to_no_core_where_others_have_some_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five cores of two processors each: a node that counts five processors has half of the machine."""
    monkeypatch.setattr("harness.execution.local.physical_cores", lambda: (0, 2, 4, 6, 8))
    monkeypatch.setattr("harness.execution.local.cores", lambda: 10)
    half, whole = (LocalExecutor(local_site(tmp_path, device="cpu", cores=count)) for count in (5, 10))
    node = LocalExecutor(local_site(tmp_path, device="cpu", cores=4))
    limited = LocalExecutor(local_site(tmp_path, device="cpu"))
    monkeypatch.setattr("harness.execution.local.core_limit", lambda: 2.5)
    assert [executor.nodes("cpu")[0].cores for executor in (node, limited)] == [2, 2]
    monkeypatch.setattr("harness.execution.local.core_limit", lambda: float("inf"))
    assert [executor.nodes("cpu")[0].cores for executor in (node, limited)] == [4, 5]
    one = run_spec("quality", threads=1)
    assert node._workers.take(one, node.site).cores == ()
    assert half._workers.take(one, half.site).cores == ()
    assert whole._workers.take(one, whole.site).cores == (0,)
    assert limited._workers.take(one, limited.site).cores == (0,)
    monkeypatch.setattr("harness.execution.local.core_limit", lambda: 5.0)
    assert limited._workers.take(one, limited.site).cores == ()


def test_a_run_gets_no_gpu_of_a_process_that_is_still_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, site = local(tmp_path, GPUS)
    spec = run_spec("quality", device="cuda", hardware="GPUs")
    ending = executor._workers.take(spec, site)
    meanwhile: list[tuple[str, ...] | None] = []
    monkeypatch.setattr(ending, "end", lambda: meanwhile.append(executor._workers.take(spec, site).gpus))
    executor._workers.give_back(ending)
    assert meanwhile == [("GPU-b",)]
    assert executor._workers.take(spec, site).gpus == ("GPU-a",)


def test_a_gpu_that_vanished_is_a_failed_run_and_the_sweep_goes_on(tmp_path: Path) -> None:
    executor, _ = local(tmp_path, GPUS[:1])
    outcome, log = executor.run(run_spec("quality", device="cuda", hardware="GPUs", gpus=2), (), lambda phase: None)
    assert (outcome.status, log) == ("failed", b"")
    assert outcome.failure is not None
    assert outcome.failure.message == "the run gets 2 GPUs, and 1 can be used now; see 'qharness doctor'"

    outcome, _ = executor.run(run_spec("quality", device="cuda", hardware="other GPUs"), (), lambda phase: None)
    assert outcome.failure is not None
    assert outcome.failure.message == "the run was planned for other GPUs, and here is GPUs now; run the recipe again"

    class Gone(LocalSite):
        def machine(self, device: str) -> Machine:
            raise UsageError("device: cuda, but no NVIDIA GPU or driver was found; see 'qharness doctor'")

    gone = LocalExecutor(Gone(Cache(tmp_path), Stacks(tmp_path / "stacks")))
    outcome, _ = gone.run(run_spec("quality", device="cuda", hardware="GPUs"), (), lambda phase: None)
    assert outcome.status == "failed"
    assert outcome.failure is not None
    assert "no NVIDIA GPU" in outcome.failure.message


def test_once_a_gpu_has_vanished_runs_wait_for_those_that_are_left(tmp_path: Path) -> None:
    executor, site = local(tmp_path, GPUS[:1])
    spec = run_spec("quality", device="cuda", hardware="GPUs")
    first = executor._workers.take(spec, site)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(executor._workers.take, spec, site)
        assert not second.done()
        executor._workers.give_back(first)
        assert second.result(WAIT_S).gpus == ("GPU-a",)
        third = pool.submit(executor._workers.take, spec, site)
        executor.stop()
        with pytest.raises(UsageError, match="0 can be used now"):
            third.result(WAIT_S)


def test_a_stopped_executor_begins_nothing(tmp_path: Path) -> None:
    executor, _ = local(tmp_path, GPUS)
    executor.stop()
    outcome, _ = executor.run(run_spec("quality", device="cuda", hardware="GPUs"), (), lambda phase: None)
    assert outcome.failure is not None
    assert outcome.failure.type == "Stopped"
