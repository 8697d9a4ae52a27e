"""Money and joules per token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.analysis.tradeoff import tradeoff
from harness.figures.derived.energies import per_million_tokens
from harness.stats.estimate import Estimate


def test_a_million_tokens_at_a_thousand_a_second_take_a_thousand_seconds() -> None:
    """3.60 an hour is 0.001 a second: a million tokens cost 1.00, and the fastest process makes them cheapest."""
    found = per_million_tokens(Estimate(1000.0, 800.0, 2000.0, 3, "range of processes", "range"), 3.60)
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(1.25))
    assert (found.n, found.method) == (3, "range of processes")


def test_what_has_no_interval_gets_none() -> None:
    found = per_million_tokens(Estimate(50.0, None, None, 1, "range of processes"), 1.0)
    assert (found.low, found.high) == (None, None)


def test_energy_is_the_median_over_processes_with_their_range(bench: Any, none: Any) -> None:
    runs = [bench.performance(none, speed, n) for n, speed in enumerate((1.0, 2.0, 4.0))]
    (table,) = tradeoff(runs)
    point = table.grid[0]
    energy = table.rows[0].energy_at(point, "RAPL")
    assert energy is not None
    assert table.rows[0].energy_at(point, "NVML") is None
    each = sorted(run.find("decode_j_per_tok", idle="subtracted").values[0] for run in runs)
    assert energy.decode_j_per_tok == Estimate(each[1], each[0], each[2], 3, "range of processes", "range")
    assert energy.decode_with_idle_j_per_tok is not None
    assert energy.decode_with_idle_j_per_tok.value == pytest.approx(each[1] * 80 / 50)
    assert energy.idle_power_w == Estimate(30.0, 30.0, 30.0, 3, "range of processes", "range")


def test_runs_without_a_counter_have_no_energy(bench: Any, none: Any) -> None:
    run = bench.performance(none)
    kept = tuple(m for m in run.outcome.measurements if "_j_per_tok" not in m.metric)
    (table,) = tradeoff([replace(run, outcome=replace(run.outcome, measurements=kept))])
    assert table.rows[0].energies == ()
