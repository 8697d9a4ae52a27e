"""Bounds of made-up traffic on a made-up machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from run_specs import changed

from harness.analysis.tradeoff import tradeoff
from harness.core.record import RunRecord
from harness.figures.derived.roofline import bandwidth_byte_per_s, bounds, machine_of, rate_op_per_s, rates
from harness.figures.table import GridPoint, Rates, Speed
from harness.stats.estimate import Estimate

RATES = Rates(((1000, 90.0), (2000, 100.0), (4000, 20.0)), (("float32", 50.0), ("bfloat16", 40.0), ("int8", 400.0)))
POINT = GridPoint(2, 10, 5)


@pytest.mark.parametrize(
    ("read_bytes", "expected"),
    [(1, 100.0), (1000, 100.0), (1999, 100.0), (2000, 100.0), (3999, 100.0), (4000, 20.0), (10**9, 20.0)],
)
def test_bytes_are_read_from_the_cache_that_may_hold_a_part_of_them(read_bytes: float, expected: float) -> None:
    """3999 bytes do not fit what holds 2000, but half of them may stay there: at 20 the bound would be none."""
    assert bandwidth_byte_per_s(RATES, read_bytes) == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", 50.0), ("bfloat16", 50.0), ("float16", 400.0), ("int8", 400.0), ("packed", 400.0)],
)
def test_a_dtype_is_multiplied_no_more_slowly_than_its_wider_one(dtype: str, expected: float) -> None:
    assert rate_op_per_s(RATES, dtype) == expected


def test_the_best_burst_counts(bench: Any) -> None:
    found = rates(bench.machine())
    assert found is not None
    assert found.bandwidth == ((2**20, 60e9), (2**27, 22e9), (2**30, 20e9))
    assert dict(found.matmul) == {"float32": 200e9, "int8": 400e9}
    assert rates(bench.prepare()) is None


def run_of(bench: Any, method: Any, **steps: Any) -> RunRecord:
    """A performance run that counted traffic at POINT, and timed nothing."""
    outcome = replace(bench.prepare().outcome, measurements=bench.traffic(POINT, **steps))
    made: RunRecord = replace(bench.performance(method), outcome=outcome)
    return made


def speed(prefill: float | None, decode: float | None) -> Speed:
    made = [Estimate(each, 0.9 * each, 1.1 * each, 2, "range") if each else None for each in (prefill, decode)]
    return Speed(POINT, *made, None, None)


def test_the_longer_of_reading_and_multiplying_binds(bench: Any, none: Any) -> None:
    run = run_of(bench, none, decode=(3000, 0, {"float32": 500, "packed": 2000}), prefill=(8000, 70, {}))
    prefill, decode = bounds([run], [speed(0.01, 0.04)], RATES)
    assert (prefill.phase, prefill.binds, prefill.dequantize_bytes) == ("prefill", "bytes", 70)
    assert prefill.tok_per_s == pytest.approx(2 * 10 / (8000 / 20))
    assert prefill.share is not None
    assert prefill.share.value == pytest.approx(0.01 * (8000 / 20) / 20)
    assert decode.tok_per_s == pytest.approx(2 / 30)  # reading takes 3000 / 100, multiplying 500 / 50 + 2000 / 400
    slow = replace(RATES, matmul=(("float32", 5.0),))
    assert bounds([run], [speed(0.01, 0.04)], slow)[1].binds == "operations"
    assert bounds([run], [speed(0.01, 0.04)], slow)[1].tok_per_s == pytest.approx(2 / (2500 / 5))


def test_gpus_that_compute_at_once_share_the_work(bench: Any, none: Any) -> None:
    """Each of four reads 1000 bytes, which its cache may hold. GPUs that take turns are no faster than one."""
    run = run_of(bench, none, decode=(4000, 0, {}), prefill=(8000, 0, {"int8": 400_000}))
    divided = replace(run, spec=changed(run.spec, engine="vllm", gpus=4))
    prefill, decode = bounds([divided], [speed(None, None)], RATES)
    assert decode.tok_per_s == pytest.approx(2 / (1000 / 100))
    assert prefill.tok_per_s == pytest.approx(2 * 10 / (400_000 / 4 / 400))
    assert (decode.read_bytes, prefill.operations) == (4000, 400_000)
    in_turn = replace(run, spec=changed(run.spec, gpus=4, devices=4))
    assert bounds([in_turn], [speed(None, None)], RATES) == bounds([run], [speed(None, None)], RATES)


def test_more_than_the_bound_is_not_hidden(bench: Any, none: Any) -> None:
    run = run_of(bench, none, decode=(4000, 0, {}), prefill=(4000, 0, {}))
    _, decode = bounds([run], [speed(None, 1.0)], RATES)
    assert decode.share is not None
    assert (decode.share.value, decode.share.high) == pytest.approx((100.0, 110.0))


def test_without_the_machine_or_the_traffic_there_is_no_bound(bench: Any, none: Any) -> None:
    run = replace(bench.performance(none), outcome=bench.prepare().outcome)
    assert bounds([run], [speed(1.0, 1.0)], RATES) == ()
    assert bounds([bench.performance(none)], [speed(1.0, 1.0)], None) == ()


def test_the_machine_is_that_of_the_session_with_the_same_hardware_and_torch(bench: Any, none: Any) -> None:
    first, own, last = bench.machine(), replace(bench, session="s2").machine(), replace(bench, session="s3").machine()
    other, older = replace(bench, hardware="another").machine(), replace(bench, torch="2.10.0").machine()
    machines = [first, own, last, other, older]
    run = replace(bench, session="s2").performance(none)
    assert machine_of(run, machines) is own
    assert machine_of(replace(run, session="s9"), machines) is last
    newer = tuple(replace(entry, version=entry.version + 1) for entry in last.outcome.measurements)
    measured_anew = replace(last, outcome=replace(last.outcome, measurements=newer))
    assert machine_of(run, [own, measured_anew]) is measured_anew, "as it is measured now"
    assert machine_of(run, [other, older]) is None
    assert machine_of(None, machines) is None


def test_a_table_says_how_near_each_variant_comes(bench: Any) -> None:
    (table,) = tradeoff(bench.sweep())
    assert table.rates is not None
    baseline = table.rows[0]
    decode = baseline.bound_at(table.grid[0], "decode")
    speed = baseline.speed_at(table.grid[0])
    assert decode is not None
    assert decode.share is not None
    assert speed is not None
    assert speed.decode_tok_per_s is not None
    assert decode.binds == "bytes"
    assert decode.tok_per_s == pytest.approx(22e9 / decode.read_bytes)
    assert decode.share.value == pytest.approx(speed.decode_tok_per_s.value / decode.tok_per_s)


def test_a_run_that_could_not_be_made_hides_no_machine(bench: Any, none: Any) -> None:
    late = bench.failed(
        replace(bench, kv_cache="fp8").spec("performance", none), "unsupported", "no such cache", "plan"
    )
    (table,) = tradeoff([*bench.sweep(), replace(late, outcome=replace(late.outcome, before=None))])
    assert table.rates is not None


def test_a_machine_run_is_no_row(bench: Any) -> None:
    records = bench.sweep()
    without = [record for record in records if record.spec.kind != "machine"]
    (table,), (other,) = tradeoff(records), tradeoff(without)
    assert [row.label for row in table.rows] == [row.label for row in other.rows]
    assert other.rates is None
    assert not any(row.bounds for row in other.rows)
