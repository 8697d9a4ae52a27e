"""How long runs take side by side: never less than any of them, and never more than all in turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.planning.forecast.side_by_side import Constraints, TimedRun, makespan_s

Runs = dict[str, TimedRun]


@st.composite
def sweeps(draw: st.DrawFn) -> Runs:
    """Runs that may need any earlier ones."""
    runs: Runs = {}
    for number in range(draw(st.integers(1, 12))):
        needs = draw(st.sets(st.sampled_from(sorted(runs)), max_size=2)) if runs else set()
        constraints = Constraints(
            draw(st.booleans()),
            draw(st.sampled_from([1, 2, 3, None])),
            draw(st.integers(0, 2)),
            frozenset(needs),
            draw(st.sampled_from([None, "a", "b"])),
        )
        runs[str(number)] = TimedRun(draw(st.floats(0.1, 100)), constraints)
    return runs


@given(sweeps(), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_it_lies_between_what_no_schedule_can_beat_and_one_run_after_the_other(runs: Runs, lanes: list[int]) -> None:
    found = makespan_s(runs, lanes)
    ends: dict[str, float] = {}
    for run_id, run in runs.items():
        ends[run_id] = run.seconds + max((ends[need] for need in run.constraints.needs), default=0.0)
    together = [
        sum(run.seconds for run in runs.values() if run.constraints.together == name and run.constraints.alone)
        for name in ("a", "b")
    ]
    alone = sum(run.seconds for run in runs.values() if run.constraints.alone) / len(lanes)
    total = sum(run.seconds for run in runs.values())
    assert max(*ends.values(), *together, alone, total / sum(lanes)) <= found * (1 + 1e-9)
    assert found <= total * (1 + 1e-9)


@given(sweeps())
def test_one_lane_executes_one_run_after_the_other(runs: Runs) -> None:
    assert makespan_s(runs, [1]) == pytest.approx(sum(run.seconds for run in runs.values()))


def test_what_needs_a_run_waits_for_it_and_others_do_not() -> None:
    reference = TimedRun(100, Constraints())
    quality = TimedRun(10, Constraints(turn=1, needs=frozenset({"reference"})))
    other = TimedRun(60, Constraints(turn=1))
    assert makespan_s({"reference": reference, "quality": quality, "other": other}, [8]) == 110


def test_runs_that_belong_together_execute_on_one_machine() -> None:
    speeds = {str(number): TimedRun(10, Constraints(alone=True, together="speeds")) for number in range(4)}
    assert makespan_s(speeds, [1, 1, 1, 1]) == 40
    quantize = {str(number): TimedRun(10, Constraints(alone=True)) for number in range(4)}
    assert makespan_s(quantize, [1, 1, 1, 1]) == 10


def test_a_run_takes_as_many_gpus_as_it_needs() -> None:
    runs = {str(number): TimedRun(10, Constraints(devices=2)) for number in range(4)}
    assert makespan_s(runs, [4]) == 20


def test_a_run_that_takes_a_whole_machine_waits_for_its_place_there() -> None:
    whole, other = TimedRun(10, Constraints(devices=None)), TimedRun(10, Constraints())
    assert makespan_s({"a": whole, "b": whole}, [4]) == 20
    assert makespan_s({"a": whole, "b": other, "c": other}, [4]) == 20
    assert makespan_s({"a": whole, "b": other, "c": other}, [4, 4]) == 10


def test_a_need_that_is_made_already_is_not_waited_for() -> None:
    assert makespan_s({"a": TimedRun(10, Constraints(needs=frozenset({"gone"})))}, [2]) == 10


def test_runs_that_memory_does_not_hold_together_wait_for_one_another() -> None:
    """As in a sweep's schedule, one that is alone on its machine may need more than there is."""
    runs = {str(number): TimedRun(10, Constraints(memory_bytes=56)) for number in range(4)}
    assert makespan_s(runs, [16]) == makespan_s(runs, [16], [None]) == 10
    assert makespan_s(runs, [16], [128]) == 20
    assert makespan_s(runs, [16], [100]) == makespan_s(runs, [16], [1]) == 40
    assert makespan_s(runs, [16, 16], [128, 100]) == 20
