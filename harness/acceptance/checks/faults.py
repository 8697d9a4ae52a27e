"""Runs that must end badly or be marked: memory that is too small, and another process on the same device."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import IO

from harness.acceptance import recipes
from harness.acceptance.bench import Bench, CheckResult, failed, judged, passed, skipped, suspicion, why
from harness.core.job import MeasurePerformance
from harness.core.record import RunRecord, Status
from harness.host.machine import cores
from harness.planning.plan import PlannedRun

PROCESSOR_LIMIT_BYTES = 4 * 10**9
"""The private memory of a run on a processor, far more than its small model needs."""
_READY = "ready"
_SPIN = f"""
import sys, threading
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
print("{_READY}", flush=True)
sys.stdin.read()
"""
_HOLD = f"""
import sys, torch
held = torch.ones(2**20, device="cuda")
torch.cuda.synchronize()
print("{_READY}", flush=True)
sys.stdin.read()
"""
"""Each ends when its input does, as when whoever started it ends."""


def memory(bench: Bench) -> Iterator[CheckResult]:
    """A batch that is too large ends as ``out_of_memory``, and the next run is as if nothing had been."""
    limit_bytes = bench.machine.memory_bytes if bench.on_gpu else PROCESSOR_LIMIT_BYTES
    if not limit_bytes:
        yield skipped("batch too large", "the GPU's memory is not known")
        return
    large = _timed(bench.measure(recipes.too_large(bench.on_gpu, limit_bytes), _try_anyway))
    yield _expected(bench, "batch too large", large, "out_of_memory")
    next_one = _timed(bench.measure(recipes.after(bench.on_gpu, limit_bytes)))
    yield _expected(bench, "run after out of memory", next_one, "ok")


def sharing(bench: Bench) -> Iterator[CheckResult]:
    """A run beside another process on the same device is labelled ``suspect``."""
    about = "another process"
    with ExitStack() as started:
        starts = [_HOLD] if bench.on_gpu else [_SPIN] * cores()
        others = [started.enter_context(_process(each, bench)) for each in starts]
        if any(_line(other) != _READY for other in others):
            yield skipped(about, "the other process could not use the GPU")
            return
        record = _timed(bench.measure(recipes.disturbed(bench.on_gpu)))
    if record.status != "ok":
        yield bench.fault(about, record)
        return
    labels = suspicion(record)
    counted = [moment.state["gpu_processes"] for moment in record.outcome.moments if "gpu_processes" in moment.state]
    if bench.on_gpu and max(counted, default=0) == 0:
        yield skipped(about, "the driver lists no process here, as in some containers")
        return
    expected = "gpu_shared" if bench.on_gpu else "cpu_shared"
    marked = any(label.arguments.get("reason") == expected for label in record.outcome.suspicions)
    yield judged(about, marked, labels or "the run is not labelled suspect")


def _timed(records: Sequence[RunRecord]) -> RunRecord:
    """The one performance run of a recipe."""
    (record,) = [each for each in records if isinstance(each.spec.job, MeasurePerformance)]
    return record


def _expected(bench: Bench, about: str, record: RunRecord, status: Status) -> CheckResult:
    """Whether a run ended with this status."""
    if record.status == status:
        return passed(about, status if status == "ok" else f"{status}, {why(record)}")
    return failed(about, "the run succeeded") if record.status == "ok" else bench.fault(about, record)


def _try_anyway(planned: PlannedRun) -> PlannedRun:
    """The run even where planning knows that it cannot fit: what is checked is how it ends."""
    return replace(planned, reason=None)


@contextmanager
def _process(code: str, bench: Bench) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the code on the bench's GPU, if it has one, until the context or the check's time ends."""
    uuids = bench.machine.uuids[:1]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **({"CUDA_VISIBLE_DEVICES": uuids[0]} if uuids else {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    timer = threading.Timer(max(bench.left_s, 0.0), process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    """What it says first; empty if it ended before."""
    output: IO[str] | None = process.stdout
    return output.readline().strip() if output else ""
