"""A sweep on several nodes, of which some are lost. No worker is started: the executor answers at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from run_specs import changed, run_spec

from harness.core.inputs import Input
from harness.core.label import Fact
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.site import Machine, Node
from harness.errors import ResultsError
from harness.execution.events import Ended, Event, Lost, Started
from harness.execution.executor import RunLost
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.storage.cache import Cache
from harness.storage.json_codec import decode, encode
from harness.storage.store import Store, record_file

NODES = (Node("node-1"), Node("node-2"), Node("node-3"))
RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn bits=4", "offline")
NLL = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.0), {"context": 8}, (1.0, 1.0), ("0", "1"))
GONE = "it does not answer any more"


@dataclass(frozen=True)
class Cluster:
    """A site of several alike machines."""

    artifacts: Cache

    def machine(self, device: str) -> Machine:
        return Machine("cpu", "a node")

    def version(self, package: str, stack: str = "main") -> str | None:
        return "1"

    def obstacle(self, stack: str) -> str | None:
        return None


@dataclass
class Machines:
    """An executor of several nodes. ``fail`` says with what a run fails there, if it does."""

    site: Cluster
    names: Sequence[Node] = NODES
    fail: Callable[[RunSpec, Node], RunLost | None] = lambda spec, node: None
    ran: list[tuple[str, str]] = field(default_factory=list)

    def nodes(self, device: str) -> Sequence[Node]:
        return self.names

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return False

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        error = self.fail(spec, node)
        if error is not None:
            raise error
        self.ran.append((spec.title, node.name))
        return Outcome("ok", measurements=(NLL,)), b"log"

    def stop(self) -> None:
        """Its runs have ended as soon as they began."""


def speeds(repetitions: int = 2, models: int = 1) -> list[PlannedRun]:
    """The performance runs of a baseline and a variant of each model, in the planner's order."""
    found = []
    for model in range(models):
        reference = ModelRef("m", f"M{model}", f"{model}" * 64, "directory", "/m")
        found += [
            changed(run_spec("performance", repetition=each), model=reference, **own)
            for each in range(repetitions)
            for own in ({}, {"method": RTN})
        ]
    return [PlannedRun(spec) for spec in sorted(found, key=lambda spec: spec.repetition)]


class Sweep:
    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "results")
        self.executor = Machines(Cluster(Cache(folder / "cache")))
        self.events: list[Event] = []

    def run(self, planned: Sequence[PlannedRun]) -> tuple[RunRecord, ...]:
        return sweep(planned, self.store, self.executor, self.events.append)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def here(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_a_record_names_its_node_and_all_speeds_of_a_model_are_of_one(here: Sweep) -> None:
    records = here.run(speeds(models=2))
    of_model: dict[str, set[str]] = {}
    for record in records:
        of_model.setdefault(record.spec.model.label, set()).add(record.node)
    assert sorted(map(sorted, of_model.values())) == [["node-1"], ["node-2"]]
    assert here.store.read("sweep").records == tuple(sorted(records, key=lambda record: record.started_at))
    assert {event.node for event in here.of(Started)} == {"node-1", "node-2"}


def test_a_record_of_one_machine_is_written_as_before(here: Sweep) -> None:
    here.executor.names = (Node(),)
    (record, *_) = here.run(speeds())
    assert record.node == ""
    assert b'"node"' not in record_file(record, {})
    assert b'"node": "node-7"' in record_file(replace(record, node="node-7"), {})


@pytest.mark.parametrize("name", ["a b", "/etc", "n" * 65, "node-1\n"])
def test_a_node_s_name_is_a_plain_word(here: Sweep, name: str) -> None:
    (record,) = here.run(speeds(repetitions=1)[:1])
    raw = json.loads(encode(record))
    assert decode(RunRecord, raw, "record.json") == record
    with pytest.raises(ResultsError, match=r"record\.json: node"):
        decode(RunRecord, {**raw, "node": name}, "record.json")


def test_a_lost_run_is_made_once_more_elsewhere_and_its_record_says_so(here: Sweep) -> None:
    planned = [PlannedRun(run_spec("quality", seed=seed)) for seed in range(3)]
    here.executor.fail = lambda spec, node: RunLost(GONE, True) if node.name == "node-2" else None
    records = here.run(planned)
    assert [record.status for record in records] == ["ok"] * 3
    assert {record.node for record in records} == {"node-1", "node-3"}
    (loss,) = here.of(Lost)
    assert (loss.node, loss.reason, loss.for_good, loss.again) == ("node-2", GONE, True, True)
    (again,) = [record for record in records if record.spec == loss.spec]
    assert again.outcome.facts == (Fact("node_lost", {"node": "node-2", "reason": GONE}),)
    assert [record.outcome.facts for record in records if record is not again] == [(), ()]
    assert len(here.store.read("sweep").records) == len(here.executor.ran) == 3, "nothing is lost, nothing is doubled"


def test_once_the_only_node_with_a_stack_is_lost_its_runs_fail_and_the_others_go_on(here: Sweep) -> None:
    """A run that no node has the stack of, because it is unsupported anyway, stops nothing."""
    here.executor.names = (Node("node-1", stacks=frozenset()), Node("node-2", stacks=frozenset({"llamacpp"})))
    here.executor.fail = lambda spec, node: RunLost(GONE, True) if spec.stack == "llamacpp" else None
    there = [PlannedRun(run_spec("quality", seed=seed, stack="llamacpp")) for seed in range(2)]
    absent = PlannedRun(run_spec("quality", seed=2, stack="vllm"), reason="stack 'vllm' is missing")
    records = here.run([*there, absent, *(PlannedRun(run_spec("quality", seed=seed)) for seed in range(3, 6))])
    assert [record.status for record in records] == ["failed"] * 2 + ["unsupported"] + ["ok"] * 3
    messages = [record.outcome.failure.message for record in records[:2] if record.outcome.failure]
    assert messages == ["every node that has its stack was lost; run the recipe again"] * 2


def test_a_baseline_keeps_its_figures_if_no_node_is_left_to_measure_it_beside_the_rest(here: Sweep) -> None:
    here.executor.names = (Node("node-1", stacks=frozenset({"llamacpp"})), Node("node-2", stacks=frozenset()))
    here.executor.fail = lambda spec, node: None if spec.is_baseline else RunLost(GONE, True)
    base = run_spec("performance", stack="llamacpp")
    records = here.run([PlannedRun(base), PlannedRun(changed(base, method=RTN))])
    assert [record.status for record in records] == ["ok", "failed"]
    assert records[0].node == "node-1"
    assert [event.record.status for event in here.of(Ended) if isinstance(event, Ended)] == ["ok", "failed"]
    assert len(here.store.read("sweep").records) == 2, "no second attempt at the baseline is recorded"


def test_a_run_that_takes_two_nodes_with_it_has_failed(here: Sweep) -> None:
    bad = run_spec("quality", seed=1)
    planned = [PlannedRun(run_spec("quality", seed=seed)) for seed in range(4)]
    here.executor.fail = lambda spec, node: RunLost(GONE, True) if spec == bad else None
    records = here.run(planned)
    assert [record.status for record in records] == ["ok", "failed", "ok", "ok"]
    failure = records[1].outcome.failure
    assert failure is not None
    (first, second) = (event.node for event in here.of(Lost) if isinstance(event, Lost))
    assert failure.type == "NodeLost"
    assert failure.message == f"it was lost on {second}, and before on {first}: {GONE}"
    assert [event.again for event in here.of(Lost)] == [True, False]
    assert len(here.of(Ended)) == 4


def test_a_run_that_is_lost_while_its_node_lives_may_go_on_there(here: Sweep) -> None:
    lost: list[str] = []

    def once(spec: RunSpec, node: Node) -> RunLost | None:
        if lost:
            return None
        lost.append(node.name)
        return RunLost("its process was ended", False)

    here.executor.fail = once
    records = here.run(speeds())
    assert {record.node for record in records} == {"node-1"}, "a speed stays on the node of its model"
    assert [len(record.outcome.facts) for record in records] == [1, 0, 0, 0]


def test_without_any_node_what_is_left_has_failed_and_the_next_sweep_makes_it(here: Sweep) -> None:
    planned = [PlannedRun(run_spec("quality", seed=seed)) for seed in range(4)]
    here.executor.names = NODES[:1]
    ended: list[RunSpec] = []

    def after_one(spec: RunSpec, node: Node) -> RunLost | None:
        ended.append(spec)
        return RunLost(GONE, True) if len(ended) > 1 else None

    here.executor.fail = after_one
    records = here.run(planned)
    assert [record.status for record in records] == ["ok", "failed", "failed", "failed"]
    assert all(record.outcome.failure.type == "NodeLost" for record in records[1:] if record.outcome.failure)
    here.executor.fail = lambda spec, node: None
    assert [record.status for record in here.run(planned)] == ["ok"] * 4
    assert len(here.executor.ran) == 4, "what had ended is not made again"


def test_speeds_go_on_beside_a_baseline_that_is_measured_again_where_they_are(here: Sweep) -> None:
    """The node is lost after the first repetition: the second is compared with a baseline on the other node."""
    planned = speeds(repetitions=2)
    here.executor.fail = lambda spec, node: (
        RunLost(GONE, True) if node.name == "node-1" and spec.repetition == 1 else None
    )
    records = here.run(planned)
    assert [record.status for record in records] == ["ok"] * 4
    kept = here.store.read("sweep").records
    on = {
        node: [(record.spec.is_baseline, record.spec.repetition) for record in kept if record.node == node]
        for node in ("node-1", "node-2", "node-3")
    }
    assert on.pop("node-1") == [(True, 0), (False, 0)]
    second = next(found for found in on.values() if found)
    assert sorted(second) == [(False, 1), (True, 0), (True, 1)], "only the baseline is measured twice"
    assert len(kept) == 5


def test_a_baseline_of_an_earlier_session_is_measured_again_while_a_variant_is_still_quantized(here: Sweep) -> None:
    """The baseline's turn comes on one node while the new variant is quantized on another."""
    base, variant = (run.spec for run in speeds(repetitions=1))
    here.run([PlannedRun(base)])
    quantize = changed(run_spec("quantize", method=RTN), model=base.model)
    planned = [
        PlannedRun(quantize),
        PlannedRun(base),
        PlannedRun(replace(variant, needs={"quantize": quantize.run_id})),
    ]
    records = here.run(planned)
    assert records[1].session == records[2].session
    assert records[1].node == records[2].node
