"""What generating takes, worked out from parts that are known, and held against a process with a limit of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.tradeoff import tradeoff
from harness.core.record import Measurement, RunRecord
from harness.figures.derived.footprint import Footprint, Workspace, _PhasePoint, fitted, footprint
from harness.figures.derived.peaks import peak_of_use

SMALL = Footprint(1000, 10.0, Workspace(50, 2.0), Workspace(80, 0.5), 64, 4096, on_gpu=False)
whole = st.integers(min_value=0, max_value=10**6)


def test_parts_that_are_a_line_come_back(bench: Any, none: Any) -> None:
    found = footprint([bench.performance(none, repetition=n, prompts=(128, 512)) for n in range(3)])
    assert found is not None
    assert found.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4
    assert found.base_bytes == 600 * 2**20
    assert found.prefill.per_token == pytest.approx(40_000)
    assert found.prefill.constant == pytest.approx(2**20 + 2, rel=1e-6)  # the largest repetition counts
    assert found.decode.bytes(1, 8000) == pytest.approx(2**20 + 2, rel=1e-6)
    assert (found.context_limit, found.measured_tokens, found.on_gpu) == (8192, 512, False)


def test_a_token_of_the_cache_is_told_at_the_longest_prompt(bench: Any, none: Any) -> None:
    """In a packed cache the newest tokens are not packed yet: they weigh less the longer the prompt is."""
    run = bench.performance(none, prompts=(128, 512))
    where = {"batch_size": 1, "prompt_tokens": 64, "new_tokens": 32, "decode_mode": "eager", "after": "decode"}
    told = {**where, "tokens": 96}
    more = Measurement("kv_cache_bytes_per_token", 1, "byte/token", "lower", "exact", (1e6,), told)
    found = footprint([replace(run, outcome=replace(run.outcome, measurements=(*run.outcome.measurements, more)))])
    assert found is not None
    assert found.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4


def test_a_run_that_did_not_watch_them_has_no_parts(bench: Any, none: Any) -> None:
    run = bench.performance(none)
    for metric in ("memory_before_bytes", "peak_memory_bytes", "kv_cache_bytes_per_token"):
        assert footprint([without(run, metric)]) is None
    unset = [replace(m, protocol={**m.protocol, "source": "VmHWM since the start"}) for m in peaks(run)]
    assert footprint([with_measured(without(run, "peak_memory_bytes"), unset)]) is None
    assert footprint([]) is None


@pytest.mark.parametrize("source", ["NVML process", "NVML since the start"])
def test_on_a_gpu_the_context_counts_and_the_resident_set_does_not(bench: Any, none: Any, source: str) -> None:
    """The driver counts 500 MiB more to the process, or to the GPU since the process began, than torch has reserved."""
    run = bench.performance(none)
    device = [
        replace(m, values=(m.values[0] / 2,), protocol={**m.protocol, "source": "cuda allocated"})
        for m in run.outcome.measurements
        if m.metric in ("memory_before_bytes", "peak_memory_bytes")
    ]
    reserved = [replace(m, protocol={**m.protocol, "source": "cuda reserved"}) for m in peaks(run)]
    whole = [after(m, 900 * 2**20, "NVML device") for m in peaks(run)]
    driver = [after(m, 500 * 2**20, source) for m in peaks(run)]
    found = footprint([with_measured(run, [*device, *reserved, *whole, *driver])])
    assert found is not None
    assert found.on_gpu
    assert found.base_bytes == (300 + 500) * 2**20


@pytest.mark.parametrize("source", ["NVML process", "NVML since the start"])
def test_a_model_outside_torch_takes_what_the_driver_counts(bench: Any, none: Any, source: str) -> None:
    """Half of its resident set lies on the GPU, beside a context of 400 MiB that was there before it was loaded."""
    run = bench.performance(none, prompts=(128, 512))
    device = [
        replace(m, values=(m.values[0] / 2,), protocol={**m.protocol, "source": "NVML since loading"})
        for m in run.outcome.measurements
        if m.metric in ("memory_before_bytes", "peak_memory_bytes")
    ]
    held = [after(m, 400 * 2**20, source) for m in device if m.metric == "peak_memory_bytes"]
    protocol = {"phase": "import", "source": source}
    context = Measurement("memory_after_bytes", 2, "byte", "lower", "exact", (400.0 * 2**20,), protocol)
    changed = with_measured(run, [*device, *held, context])
    found = footprint([changed])
    assert found is not None
    assert found.on_gpu
    assert found.base_bytes == (300 + 400) * 2**20
    (row,) = tradeoff([changed])[0].rows
    assert {peak.source for peak in row.peaks} >= {"VmHWM", "NVML since loading"}
    assert peak_of_use(row.peaks) == max(m.values[0] for m in device if m.metric == "peak_memory_bytes")


def test_a_cache_allocated_beforehand_is_counted_once(bench: Any, none: Any) -> None:
    """The same use on an engine with a pool of 1 GiB: its peaks hold the pool in place of the cache that grows."""
    run = bench.performance(none, prompts=(128, 512))
    pool = 2**30

    def held(metric: str, phase: Any, protocol: Any) -> float:
        """The bytes of a growing cache, which the peak of a phase, or what is in use before it, counts."""
        after = phase if metric == "peak_memory_bytes" else {"decode": "prefill"}.get(phase)
        for m in run.outcome.measurements:
            same = all(m.protocol.get(name) == protocol.get(name) for name in ("batch_size", "prompt_tokens"))
            if m.metric == "kv_cache_bytes_per_token" and same and m.protocol["after"] == after:
                return float(m.values[0] * int(protocol["batch_size"]) * int(m.protocol["tokens"]))
        return 0.0

    changed = [
        replace(m, values=(m.values[0] + pool - held(m.metric, m.protocol["phase"], m.protocol),))
        for m in run.outcome.measurements
        if m.metric in ("peak_memory_bytes", "memory_before_bytes")
    ]
    given = Measurement("kv_cache_pool_bytes", 2, "byte", "lower", "exact", (float(pool),), {"blocks": 9})
    plain = footprint([run])
    bare = without(without(run, "peak_memory_bytes"), "memory_before_bytes")
    pooled = footprint([with_measured(bare, [*changed, given])])
    assert plain is not None
    assert pooled is not None
    assert pooled.pool_bytes == pool
    for batch, tokens in ((1, 128), (8, 512), (3, 4000)):
        assert pooled.bytes(batch, tokens) == pytest.approx(plain.bytes(batch, tokens), rel=1e-9)


def test_a_cache_allocated_with_its_decoder_is_counted_once(bench: Any, none: Any) -> None:
    """The same use on llama.cpp: room for prompt and new tokens, and its workspace, are there before the prompt."""
    run = bench.performance(none, prompts=(128, 512))
    plain = footprint([run])
    assert plain is not None
    work, per_token = 50 * 2**20, 2 * 30 * 3 * 64 * 4
    changed = []
    for m in run.outcome.measurements:
        if m.metric == "memory_before_bytes" and m.protocol["phase"] == "prefill":
            point = {name: m.protocol[name] for name in ("batch_size", "prompt_tokens", "new_tokens")}
            room = point["batch_size"] * (point["prompt_tokens"] + point["new_tokens"]) * per_token
            changed.append(Measurement("allocated_kv_cache_bytes", 2, "byte", "lower", "exact", (float(room),), point))
            level = (m.values[0] + room + work,)
            for phase in ("prefill", "decode"):
                protocol = {**m.protocol, "phase": phase}
                changed.append(replace(m, values=level, protocol=protocol))
                peak = {**protocol, "source": "VmHWM"}
                changed.append(replace(m, metric="peak_memory_bytes", values=level, protocol=peak))
    bare = without(without(run, "peak_memory_bytes"), "memory_before_bytes")
    found = footprint([with_measured(bare, changed)])
    assert found is not None
    assert found.base_bytes == plain.base_bytes + work
    assert found.kv_bytes_per_token == per_token
    assert found.bytes(3, 4000) == pytest.approx(found.base_bytes + 1.05 * per_token * 3 * 4000)


def after(m: Measurement, more_bytes: float, source: str) -> Measurement:
    """What the driver counts at the end of a peak's phase."""
    values = (m.values[0] + more_bytes,)
    return replace(m, metric="memory_after_bytes", values=values, protocol={**m.protocol, "source": source})


def peaks(run: RunRecord) -> list[Measurement]:
    return [m for m in run.outcome.measurements if m.metric == "peak_memory_bytes"]


def without(run: RunRecord, metric: str) -> RunRecord:
    kept = tuple(m for m in run.outcome.measurements if m.metric != metric)
    return replace(run, outcome=replace(run.outcome, measurements=kept))


def with_measured(run: RunRecord, more: list[Measurement]) -> RunRecord:
    return replace(run, outcome=replace(run.outcome, measurements=(*run.outcome.measurements, *more)))


@given(constant=whole, per_token=whole, per_square=whole)
def test_a_workspace_is_found_from_two_prompts(constant: int, per_token: int, per_square: int) -> None:
    line, curve = Workspace(constant, per_token), Workspace(0, per_token, per_square)
    for shape, square in ((line, False), (curve, True)):
        points = [_PhasePoint(batch, n, 0, shape.bytes(batch, n)) for batch, n in ((1, 64), (1, 128), (4, 128))]
        found = fitted(points, square)
        assert found.bytes(2, 1000) == pytest.approx(shape.bytes(2, 1000), rel=1e-6, abs=1e-3)


@given(work=st.lists(st.tuples(st.integers(1, 512), whole), min_size=1, max_size=5), square=st.booleans())
def test_no_noise_makes_a_longer_prompt_take_less(work: list[tuple[int, int]], square: bool) -> None:
    found = fitted([_PhasePoint(1, tokens, 0, taken - 100) for tokens, taken in work], square)
    assert min(found.constant, found.per_token, found.per_square) >= 0


@given(budget=st.integers(0, 10**6), tokens=st.integers(1, 4096), batch=st.integers(1, 100))
def test_what_fits_fits_and_one_more_does_not(budget: int, tokens: int, batch: int) -> None:
    longest, rows = SMALL.longest_context(budget, batch), SMALL.largest_batch(budget, tokens)
    assert longest == 0 or SMALL.bytes(batch, longest) <= budget
    assert longest == 4096 or SMALL.bytes(batch, longest + 1) > budget
    assert rows == 0 or SMALL.bytes(rows, tokens) <= budget < SMALL.bytes(rows + 1, tokens)


def test_worked_by_hand() -> None:
    """Up to 20 tokens decoding takes more (80 + 0.5 a token), from there on prefill (50 + 2)."""
    assert SMALL.bytes(1, 10) == pytest.approx(1000 + 1.05 * (100 + 85))
    assert SMALL.bytes(2, 100) == pytest.approx(1000 + 1.05 * (2000 + 450))
    assert SMALL.longest_context(1090) == 0
    assert SMALL.longest_context(1001 + int(1.05 * (50 + 12 * 500))) == 500


def test_the_table_takes_budget_and_price_of_the_newest_run(bench: Any, none: Any) -> None:
    later = replace(bench, budget_bytes=2**31, price=None)
    (table,) = tradeoff([bench.performance(none), later.performance(none, repetition=1)])
    assert (table.budget_bytes, table.price) == (2**31, None)
    (table,) = tradeoff([later.performance(none), bench.performance(none, repetition=1)])
    assert (table.budget_bytes, table.price) == (2**30, bench.price)


LIMITED = Path(__file__).with_name("limited_memory.py")


@pytest.mark.heavy
@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="the limit and the peaks are Linux's")
def test_what_was_worked_out_runs_within_its_budget_and_a_quarter_more_is_refused() -> None:
    """In a process of its own, whose memory is limited to what the budget leaves beside what it holds already."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    ended = subprocess.run([sys.executable, str(LIMITED)], capture_output=True, text=True, env=alone, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["within"] == "ran"
    assert found["beyond"] == "out_of_memory"
    assert found["longest"] > 7 * found["measured"]  # far from where the parts were measured
