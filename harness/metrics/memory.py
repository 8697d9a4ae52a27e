"""Memory: what the weights take by role, and the highest use of each phase of a run."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.contracts import Metric, StoredTensor
from harness.models.stored import StoredLayer
from harness.record import Measurement

VERSION = 1
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Writing this to clear_refs sets VmHWM back to the present resident set (proc(5))."""


class PeakMemory:
    """The peak of each phase: resident set on a CPU; allocated and reserved bytes on a GPU.

    The resident set's high-water mark is the kernel's own (VmHWM), set back before each phase;
    ``ru_maxrss`` cannot be, and a child process inherits it. Where there is no /proc it is all there
    is, and the source says so.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._source = "VmHWM since the start"
        self._peaks: list[tuple[str, str, int]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._reset()
        try:
            yield
        finally:
            self._peaks += [(name, source, peak) for source, peak in self._read()]

    def finish(self) -> Sequence[Measurement]:
        return [
            _exact("peak_memory_bytes", "byte", float(peak), phase=phase, source=source)
            for phase, source, peak in self._peaks
        ]

    def _reset(self) -> None:
        self._source = _reset_resident_peak()
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # or "reserved" would count blocks that an earlier phase left free
            torch.cuda.reset_peak_memory_stats()

    def _read(self) -> Iterator[tuple[str, int]]:
        if _STATUS.exists():
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            yield self._source, int(line.split()[1]) * 1024
        else:
            yield "ru_maxrss since the start", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
            yield "cuda allocated", torch.cuda.max_memory_allocated()
            yield "cuda reserved", torch.cuda.max_memory_reserved()


def _reset_resident_peak() -> str:
    """Sets the kernel's mark back, and names the figure by whether that could be done."""
    try:
        _CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return "VmHWM since the start"
    return "VmHWM"


def weights(ledger: Sequence[StoredTensor]) -> Sequence[Measurement]:
    """``stored_bytes`` by role and part, and ``parameters`` by role, tied ones counted once."""
    stored: Counter[tuple[str, str]] = Counter()
    parameters: Counter[str] = Counter()
    for entry in ledger:
        stored[entry.role, "values"] += entry.value_bytes
        stored[entry.role, "scales"] += entry.scale_bytes
        parameters[entry.role] += 0 if entry.tied else entry.parameters
    return [
        *(_exact("stored_bytes", "byte", size, role=role, part=part) for (role, part), size in stored.items()),
        *(_exact("parameters", "parameter", count, role=role) for role, count in parameters.items()),
    ]


def checkpoint(layers: Sequence[StoredLayer]) -> Sequence[Measurement]:
    """``checkpoint_bytes`` of the decoder's matrices by part, as they lie on disk, and the parameters behind them."""
    return [
        _exact("checkpoint_bytes", "byte", sum(layer.value_bytes for layer in layers), role="linear", part="values"),
        _exact("checkpoint_bytes", "byte", sum(layer.scale_bytes for layer in layers), role="linear", part="scales"),
        _exact("checkpoint_parameters", "parameter", sum(layer.parameters for layer in layers), role="linear"),
    ]


def coverage(fraction: float) -> Measurement:
    """Quantized over eligible parameters of the scope."""
    return Measurement("coverage", VERSION, "fraction", "higher", "exact", (fraction,))


def _exact(metric: str, unit: str, value: float, **protocol: str) -> Measurement:
    direction = "lower" if unit == "byte" else "neither"
    return Measurement(metric, VERSION, unit, direction, "exact", (float(value),), protocol)  # type: ignore[arg-type]


MEMORY = Metric(
    name="memory",
    version=VERSION,
    kind="instrument",
    summary="stored weights by role, and the peak of each phase",
    make=PeakMemory,
)
