"""Finds runs that may have used host memory as the GPU's.

Under WSL2 it is Windows that manages the memory of the GPU. It moves what does not fit to the host, so that a model too
large for the GPU runs, slowly, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.core.label import Label
from harness.core.protocols import DRIVER_WHOLE, TORCH_RESERVED
from harness.core.record import Fingerprint, Measurement
from harness.host.machine import is_wsl

NEARLY_FULL = 0.9
"""Fraction of the GPU's memory from which a run is labelled: Windows keeps a part for itself and for other programs."""
IN_USE = {("peak_memory_bytes", TORCH_RESERVED), ("memory_after_bytes", DRIVER_WHOLE)}
"""Metrics and their sources."""


def spill(machine: Fingerprint, measurements: Iterable[Measurement]) -> tuple[Label, ...]:
    """A label if the GPU's memory was nearly full in some phase of the run, on a machine that then uses the host's."""
    size = machine.hardware.get("gpu_memory_bytes")
    if not isinstance(size, int) or not size or not is_wsl():
        return ()
    in_use = (m.values[0] for m in measurements if (m.metric, m.protocol.get("source")) in IN_USE)
    gpus = machine.hardware.get("gpus", 1)
    fraction = max(in_use, default=0.0) / (size * (gpus if isinstance(gpus, int) else 1))
    return (Label("may_have_spilled", {"fraction": round(fraction, 3)}),) if fraction >= NEARLY_FULL else ()
