"""What each kind of run does, inside its own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from harness.execution import asking, gauging, making, measuring
from harness.execution.bench import Bench
from harness.spec import Kind

JOBS: Mapping[Kind, Callable[[Bench, Path], None]] = {
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
