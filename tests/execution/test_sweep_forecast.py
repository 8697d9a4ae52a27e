"""A sweep with a forecast: what it says while it runs, and what its records keep. No worker is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import pytest
from run_specs import run_spec

from harness.cli.render import sweep as render
from harness.cli.render.forecast import about_s, forecast_and_fact
from harness.cli.render.sweep import display
from harness.core.inputs import Input
from harness.core.model import MethodRef
from harness.core.record import Failure, Outcome, Phase, RunRecord
from harness.core.run import RunSpec
from harness.core.site import HERE, Machine, Node, Speeds
from harness.execution.events import Expected, Forecasted, Remaining
from harness.execution.sweep import sweep
from harness.planning.forecast.forecast import SweepForecast, forecast
from harness.planning.plan import PlannedRun
from harness.storage.cache import Cache
from harness.storage.json_codec import decode, encode
from harness.storage.store import Store, record_file

SPEEDS = Speeds(0.2, 10e9, {"float32": 50e9}, 1e9)
METHODS = [MethodRef("rtn", 1, {"bits": bits, "group_size": 32}, f"rtn bits={bits}", "offline") for bits in (8, 4, 3)]
RUNS = tuple(PlannedRun(run_spec("quality", method=method)) for method in METHODS)


@dataclass(frozen=True)
class Site:
    artifacts: Cache

    def machine(self, device: str) -> Machine:
        return Machine("cpu", "")

    def speeds(self, device: str) -> Speeds:
        return SPEEDS

    def version(self, package: str, stack: str = "main") -> str | None:
        return "1"

    def obstacle(self, stack: str) -> str | None:
        return None


@dataclass
class Instant:
    """An executor whose runs end at once."""

    site: Site
    fails: Callable[[RunSpec], bool] = lambda spec: False
    ran: list[str] = field(default_factory=list)

    def nodes(self, device: str) -> Sequence[Node]:
        return (HERE,)

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return False

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        self.ran.append(spec.run_id)
        if self.fails(spec):
            return Outcome("failed", Failure("forward", "ValueError", "no")), b""
        return Outcome("ok", phases=(Phase("forward", 0.0),)), b""

    def stop(self) -> None: ...


def expect(left: Sequence[PlannedRun], records: Sequence[RunRecord]) -> SweepForecast:
    return forecast(left, RUNS, SPEEDS, records)


@pytest.fixture
def swept(tmp_path: Path):
    def swept(fails: Callable[[RunSpec], bool] = lambda spec: False) -> tuple[tuple[RunRecord, ...], list[object]]:
        events: list[object] = []
        executor = Instant(Site(Cache(tmp_path / "cache")), fails)
        records = sweep(RUNS, Store(tmp_path / "results"), executor, events.append, expect=expect)
        return records, events

    return swept


def of(kind: type, events: Sequence[object]) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_it_says_what_is_left_after_each_run_and_how_good_the_forecast_was(swept) -> None:
    records, events = swept()
    (expected,) = of(Expected, events)
    assert list(expected.forecast.runs) == [run.spec.run_id for run in RUNS]
    left = [event.left_s for event in of(Remaining, events)]
    assert astuple(left[0]) == pytest.approx(astuple(expected.forecast.total_s))
    assert [span.expected for span in left] == sorted((span.expected for span in left), reverse=True)
    assert len(left) == 1 + len(RUNS)
    assert left[-1].expected == 0
    (fact,) = of(Forecasted, events)
    assert (fact.expected_s, fact.runs, fact.others) == (expected.forecast.total_s, 3, 0)
    assert fact.within == sum(r.forecast.low_s <= r.wall_s <= r.forecast.high_s for r in records)
    assert fact.took_s == pytest.approx(sum(record.wall_s for record in records))


def test_a_record_keeps_what_was_expected_of_it(swept, tmp_path: Path) -> None:
    records, events = swept()
    (expected,) = of(Expected, events)
    assert [r.forecast for r in records] == [run.time for run in expected.forecast.runs.values()]
    read = Store(tmp_path / "results").read("sweep").records
    assert {r.key: r.forecast for r in read} == {r.key: r.forecast for r in records}
    bare = sweep_without(tmp_path)
    assert all(record.forecast is None for record in bare)
    assert b'"forecast"' not in record_file(bare[0], {})
    assert decode(RunRecord, json.loads(encode(bare[0])), "record") == bare[0]


def sweep_without(tmp_path: Path) -> tuple[RunRecord, ...]:
    """The same sweep, elsewhere, without a forecast."""
    return sweep(
        RUNS, Store(tmp_path / "others"), Instant(Site(Cache(tmp_path / "other"))), on_event=lambda event: None
    )


def test_earlier_runs_are_learned_from_and_a_finished_sweep_forecasts_nothing(swept) -> None:
    _, first = swept(fails=lambda spec: spec == RUNS[-1].spec)
    assert of(Expected, first)[0].forecast.bases == {"arithmetic": 3}
    (fact,) = of(Forecasted, first)
    assert (fact.runs, fact.others) == (2, 1), "a failure's time says nothing"
    expected = of(Expected, first)[0].forecast
    made = {run.spec.run_id: expected.runs[run.spec.run_id] for run in RUNS[:-1]}
    assert fact.expected_s == replace(expected, runs=made).total_s, "compared with that of the runs that succeeded"
    assert forecast_and_fact(fact).endswith("; not counted: 1 that failed or were not made")
    records, second = swept()
    (expected,) = of(Expected, second)
    assert expected.forecast.bases == {"alike": 1}
    assert expected.forecast.total_s.expected < of(Expected, first)[0].forecast.runs[RUNS[-1].spec.run_id].time.low_s
    assert records[-1].forecast == expected.forecast.runs[RUNS[-1].spec.run_id].time
    _, third = swept()
    assert not of(Expected, third)
    assert not of(Remaining, third)
    assert not of(Forecasted, third)


def test_programs_read_the_same(swept, capsys: pytest.CaptureFixture[str]) -> None:
    _, events = swept()
    with display(as_json=True) as show:
        for event in (*of(Expected, events), *of(Remaining, events), *of(Forecasted, events)):
            show(event)
    first, *rest, last = map(json.loads, capsys.readouterr().out.splitlines())
    total = of(Expected, events)[0].forecast.total_s
    assert (first["event"], first["expected_s"], first["low_s"], first["high_s"], first["runs"], first["cost"]) == (
        "expected",
        total.expected,
        total.low,
        total.high,
        3,
        None,
    )
    assert [line["expected_s"] for line in rest] == [event.left_s.expected for event in of(Remaining, events)]
    assert (last["event"], last["runs"]) == ("forecast_and_fact", 3)


def test_people_read_it_too(swept, capsys: pytest.CaptureFixture[str]) -> None:
    _, events = swept()
    with display(as_json=False) as show:
        for event in (*of(Expected, events), *of(Remaining, events), *of(Forecasted, events)):
            show(event)
    first, last = capsys.readouterr().out.splitlines()  # the remaining time at most once a minute
    assert first.startswith("expected: ")
    assert first.endswith(" on disk")
    assert "of 3 runs were within their ranges" in last


def test_plain_lines_say_the_remaining_time_at_most_once_a_minute(
    swept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, events = swept()
    whole, *left = of(Remaining, events)
    clock = iter([0.0, 59.0, 60.0, 60.0, 100.0, 120.0, 120.0, 180.0])  # the last event is of nothing left
    monkeypatch.setattr(render.time, "monotonic", lambda: next(clock))
    with display(as_json=False) as show:
        for event in (whole, left[0], left[1], left[1], left[-1]):
            show(event)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"remaining: {about_s(left[0].left_s)}", f"remaining: {about_s(left[1].left_s)}"]
