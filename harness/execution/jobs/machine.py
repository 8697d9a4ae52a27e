"""Measures the machine itself, once for all models and recipes."""

from __future__ import annotations

from pathlib import Path

from harness.core.job import MeasureMachine
from harness.execution.checks.drift import drift
from harness.execution.context import Context
from harness.host.machine import available_memory_bytes
from harness.metrics.machine import measure, warm_up


def run(job: MeasureMachine, context: Context, out: Path) -> None:
    """Measures memory bandwidth and matrix multiplication rates. The folder holds only the outcome.

    Like any timing, figures from a busy machine are labelled suspect: bounds derived from them do not hold.
    """
    import torch

    with context.phase("measure"), torch.inference_mode():
        warm_up(job.conditions.device)  # or the clock that is read first would be an idle GPU's
        context.moment("begin")
        context.add(measure(job.conditions.device, _free_bytes(context), context.keep))
        warm_up(job.conditions.device)  # large products lower the clock at a power limit: compare it under one load
        context.moment("end")
    context.labels += drift(context.moments, context.measurements, of="machine")
    context.fact("cpu_threads", threads=torch.get_num_threads())


def _free_bytes(context: Context) -> int:
    """The device's free memory, capped by the recipe's limit on a CPU."""
    import torch

    device, limit = context.spec.device, context.spec.limits.memory_bytes
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    return min(available_memory_bytes(), limit) if limit else available_memory_bytes()
