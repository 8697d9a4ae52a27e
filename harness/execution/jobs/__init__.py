"""What each kind of run does in its worker process, one file per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from harness.execution.context import Bench
from harness.execution.jobs import machine as gauging
from harness.execution.jobs import making, measuring
from harness.execution.jobs import task as asking

JOBS: Mapping[str, Callable[[Bench, Path], None]] = {
    "machine": gauging.machine,
    "prepare": making.prepare,
    "calibrate": making.calibrate,
    "probe": making.keep_probe,
    "convert": making.convert,
    "quantize": making.quantize,
    "reference": measuring.reference,
    "quality": measuring.quality,
    "task": asking.task,
    "performance": measuring.performance,
}
