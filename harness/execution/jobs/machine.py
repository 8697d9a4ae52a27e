"""Measures the machine itself, once for all models and recipes."""

from __future__ import annotations

from pathlib import Path

from harness.core.job import MeasureMachine
from harness.execution.checks.drift import drift
from harness.execution.context import Context
from harness.execution.room import free_bytes
from harness.metrics.machine import measure, warm_up


def run(job: MeasureMachine, context: Context, out: Path) -> None:
    """Measures memory bandwidth and matrix multiplication rates. The folder holds only the outcome.

    Like any timing, figures from a busy machine are labelled suspect: bounds derived from them do not hold.
    """
    import torch

    free = free_bytes(context.spec.device, limit_bytes=context.spec.limits.memory_bytes)
    with context.phase("measure"), torch.inference_mode():
        warm_up(job.conditions.device)  # or the clock that is read first would be an idle GPU's
        context.moment("begin")
        context.add(measure(job.conditions.device, free or 0, context.keep))
        warm_up(job.conditions.device)  # large products lower the clock at a power limit: compare it under one load
        context.moment("end")
    context.labels += drift(context.moments, context.measurements, of="machine")
    context.fact("cpu_threads", threads=torch.get_num_threads())
