"""The run that measures the machine itself, once, for all models and recipes."""

from __future__ import annotations

from pathlib import Path

from harness.execution.checks.drift import drift
from harness.execution.context import Bench
from harness.host.machine import available_memory_bytes
from harness.metrics.machine import measure


def machine(bench: Bench, out: Path) -> None:
    """The bandwidth of the memory and the rates of products, as its outcome; the folder holds nothing else.

    What was measured on a busy machine is suspect as any timing is: its bounds are no bounds.
    """
    import torch

    spec = bench.spec
    with bench.phase("measure"), torch.inference_mode():
        bench.moment("begin")
        bench.add(measure(spec.device, _free_bytes(bench), bench.keep))
        bench.moment("end")
    bench.labels += drift(bench.moments, bench.measurements, of="machine")
    bench.fact("cpu_threads", threads=torch.get_num_threads())


def _free_bytes(bench: Bench) -> int:
    """What could be taken of the device's memory, and may be by the recipe's limit."""
    import torch

    device, limit = bench.spec.device, bench.spec.limits.memory_bytes
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    return min(available_memory_bytes(), limit) if limit else available_memory_bytes()
