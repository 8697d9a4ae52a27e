"""What a node fetches before a run and sends after it, where artifacts are shared at a URL. No worker is started."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from instant_executor import LOG, InstantExecutor
from object_store import ObjectStore, served
from run_specs import run_spec

from harness.core.inputs import Input
from harness.core.label import Fact
from harness.core.model import MethodRef
from harness.core.owner import Owner, owner_of
from harness.core.record import UNFINISHED, Outcome, Phase
from harness.core.run import RunSpec
from harness.core.site import HERE, Node
from harness.execution.events import Event, Waiting
from harness.execution.exchange import Exchange
from harness.execution.executor import RunLost
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.storage.cache import OUTCOME, Cache
from harness.storage.objects import Objects
from harness.storage.shared_cache import SharedCache
from harness.storage.store import Store

NUMBERS = count()
RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn", "offline")
QUANTIZE = run_spec("quantize", method=RTN)
QUALITY = replace(run_spec("quality", method=RTN), needs={"quantize": QUANTIZE.run_id})


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with served() as store:
        yield store


class Machines:
    """Nodes, and a machine that plans, which share nothing but a bucket."""

    def __init__(self, url: str, folder: Path) -> None:
        self.objects, self.folder = Objects(url), folder
        self.node = cache(lambda name: InstantExecutor(self.cache(name)))

    def cache(self, name: str) -> Cache:
        return Cache(self.folder / name, shared=SharedCache(self.objects))

    def run(self, name: str, spec: RunSpec) -> Outcome:
        node = self.node(name)
        return Exchange(node.artifacts).around(spec, lambda: node.run(spec, (), lambda phase: None, HERE))[0]

    def weights(self, name: str) -> Path:
        return self.cache(name).folder("quantize", QUANTIZE.run_id) / "model.safetensors"


@pytest.fixture
def machines(server: ObjectStore, tmp_path: Path) -> Machines:
    return Machines(server.bucket(f"exchange-{next(NUMBERS)}") + "/cache", tmp_path)


def test_a_node_measures_what_another_made(machines: Machines) -> None:
    assert machines.run("a", QUANTIZE).status == "ok"
    assert machines.run("b", QUALITY).status == "ok"
    assert machines.weights("b").read_bytes() == machines.weights("a").read_bytes() == b"weights"
    machines.cache("b").verify(QUALITY)
    assert machines.cache("a").outcome(QUANTIZE) == machines.cache("planning").outcome(QUANTIZE)


def test_what_a_node_has_counts_only_while_it_is_what_is_shared(machines: Machines) -> None:
    """Another machine's copy was first, or what this one made earlier was withdrawn and removed there."""
    machines.run("a", QUANTIZE)
    machines.cache("planning").remove(QUANTIZE)
    assert machines.objects.list() == {}, "also by a machine that never had it"
    failure = machines.run("a", QUALITY).failure
    assert failure is not None
    assert "missing from the cache; run the recipe again" in failure.message
    machines.weights("a").write_bytes(b"of before")
    machines.run("a", QUANTIZE)
    assert machines.weights("a").read_bytes() == b"weights", "it is not sent instead of what the run made now"
    (machines.weights("b").parent).mkdir(parents=True)
    (machines.weights("b").parent / OUTCOME).write_text("{}")
    machines.run("b", QUALITY)
    assert machines.weights("b").read_bytes() == b"weights"


def test_a_damaged_copy_on_a_node_is_fetched_again_and_a_damaged_shared_one_fails_the_run(machines: Machines) -> None:
    machines.run("a", QUANTIZE)
    machines.weights("a").write_bytes(b"cut")
    assert machines.run("a", QUALITY).status == "ok"
    assert machines.weights("a").read_bytes() == b"weights"
    shared = next(name for name in machines.objects.list() if name.endswith("safetensors"))
    machines.objects.write(shared, b"WEIGHTS")
    outcome = machines.run("b", QUALITY)
    assert outcome.failure is not None
    assert (outcome.status, outcome.failure.phase, outcome.failure.type) == ("failed", "fetch", "DamagedError")
    assert machines.node("b").ran == []
    assert machines.cache("planning").outcome(QUANTIZE) is None, "it is deleted, so the next sweep makes it again"


def test_a_store_that_goes_away_loses_the_run_and_not_the_node(machines: Machines, server: ObjectStore) -> None:
    for spec, method, reason in ((QUALITY, "GET", "could not fetch what the run needs"), (QUANTIZE, "PUT", "not send")):
        with server.failing(lambda asked, path, number, method=method: "500" if asked == method else None):  # type: ignore[misc]
            with pytest.raises(RunLost, match=reason) as caught:
                machines.run("a", spec)
            assert "s3://" in str(caught.value)
            assert Exchange(machines.cache("a")).find_problem() is not None
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.for_good) == (str(caught.value), False)
    assert Exchange(machines.cache("a")).find_problem() is None
    assert machines.objects.list() == {} or all(OUTCOME not in name for name in machines.objects.list())


def test_nodes_that_share_a_folder_exchange_nothing(tmp_path: Path) -> None:
    """A folder that another sweep made meanwhile stays, and what is missing is the worker's to say."""
    node = InstantExecutor(Cache(tmp_path))
    exchange = Exchange(node.artifacts)
    assert exchange.find_problem() is None
    for spec in (QUANTIZE, QUANTIZE, QUALITY):
        assert exchange.around(spec, lambda spec=spec: node.run(spec, (), lambda phase: None, HERE))[1] == LOG  # type: ignore[misc]


class OfNodes(InstantExecutor):
    """An executor whose nodes have caches of their own, as on a cluster."""

    def __init__(self, machines: Machines) -> None:
        super().__init__(machines.cache("planning"))
        self.machines = machines

    def nodes(self, device: str) -> tuple[Node, ...]:
        return (Node("node-1"), Node("node-2"))

    def run(self, spec: RunSpec, inputs: Sequence[Input], on_phase: object, node: Node) -> tuple[Outcome, bytes]:
        self.artifacts.offer(spec)
        self.ran.append(spec)
        return self.machines.run(node.name, spec), LOG


def test_a_sweep_of_nodes_goes_on_with_what_the_planning_machine_made_alone(machines: Machines, tmp_path: Path) -> None:
    alone = InstantExecutor(Cache(machines.folder / "planning"))
    planned = [PlannedRun(QUANTIZE), PlannedRun(QUALITY)]
    sweep(planned[:1], Store(tmp_path / "results"), alone, lambda event: None)  # type: ignore[arg-type]
    nodes = OfNodes(machines)
    records = sweep(planned, Store(tmp_path / "results"), nodes, lambda event: None)  # type: ignore[arg-type]
    assert [record.status for record in records] == ["ok", "ok"]
    assert nodes.ran == [QUALITY]
    assert machines.weights(records[1].node).read_bytes() == b"weights"


class EndedLate(InstantExecutor):
    """Its allocation ends twice while the last of a run is measured, once its artifact is published."""

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        outcome, log = super().run(spec, inputs, on_phase, node)
        if len(self.ran) > 2:
            return outcome, log
        if len(self.ran) == 1:  # a later folder of the run gives way to the first
            missing = Fact("dtype_noise_not_measured", {"dtype": "bfloat16", "reason": UNFINISHED})
            self.artifacts.amend(spec, replace(outcome, facts=(missing,)))
        raise KeyboardInterrupt


def test_a_run_that_outlives_its_allocation_is_made_again_once(tmp_path: Path) -> None:
    planned, cache = [PlannedRun(QUANTIZE)], Cache(tmp_path / "cache")
    executor = EndedLate(cache)
    for attempts in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            sweep(planned, Store(tmp_path / "results"), executor, lambda event: None)  # type: ignore[arg-type]
        assert len(executor.ran) == attempts
    (record,) = sweep(planned, Store(tmp_path / "results"), executor, lambda event: None)  # type: ignore[arg-type]
    assert len(executor.ran) == 2
    assert record.status == "ok"
    fact = record.outcome.fact("dtype_noise_not_measured")
    assert fact is not None
    assert fact.arguments["reason"] == f"{UNFINISHED}: its sweep was ended"
    sweep(planned, Store(tmp_path / "results"), executor, lambda event: None)  # type: ignore[arg-type]
    assert len(executor.ran) == 2


MISSING = Fact("dtype_noise_not_measured", {"dtype": "bfloat16", "reason": UNFINISHED})
DEAD: dict[str, Any] = {"start": 1}
ELSEWHERE: dict[str, Any] = {"machine": "ffffff"}


@pytest.fixture
def living() -> Iterator[Owner]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield owner_of(process.pid)
        process.kill()


@pytest.mark.parametrize(
    ("changes", "took_s", "made_again"),
    [({}, 0.0, False), (ELSEWHERE, 60.0, False), (ELSEWHERE, 0.0, True), (DEAD, 60.0, True)],
    ids=["living", "elsewhere", "elsewhere for long", "dead"],
)
def test_what_another_sweep_still_measures_is_waited_for_and_not_made_twice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    living: Owner,
    changes: dict[str, Any],
    took_s: float,
    made_again: bool,
) -> None:
    """One of another machine cannot be seen to end, so a sweep waits for it no longer than its run has taken."""
    maker = replace(living, **changes)
    monkeypatch.setattr("harness.execution.sweep.LOOK_AGAIN_S", 0.0)
    cache = Cache(tmp_path / "cache")
    whole, _ = InstantExecutor(cache).run(QUANTIZE, (), lambda phase: None, HERE)
    with monkeypatch.context() as patch:
        patch.setattr("harness.storage.cache.current_owner", lambda: maker)
        cache.amend(QUANTIZE, replace(whole, facts=(MISSING,), phases=(Phase("forward", took_s),)))
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Waiting) and not made_again:
            cache.amend(QUANTIZE, whole)  # the other sweep has measured the rest

    executor = InstantExecutor(cache)
    (record,) = sweep([PlannedRun(QUANTIZE)], Store(tmp_path / "results"), executor, on_event)  # type: ignore[arg-type]
    assert executor.ran == [QUANTIZE] * made_again
    assert record.outcome == whole
    assert cache.maker(QUANTIZE) is None
    waited = [event.message for event in seen if isinstance(event, Waiting)]
    said = f"waiting for another sweep, which still measures the last of {QUANTIZE.title}"
    assert waited == [said] * (not made_again)
