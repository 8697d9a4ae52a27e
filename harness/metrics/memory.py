"""Memory: what weights and the key-value cache take, and the use before, in and after each phase of a run."""

from __future__ import annotations

import ctypes
import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.core.capability import StoredTensor
from harness.core.identity import Scalar
from harness.core.metric import Metric
from harness.core.record import Measurement
from harness.host.gpu import gpu
from harness.models.stored import StoredLayer

VERSION = 2
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Writing this to clear_refs sets VmHWM back to the present resident set (proc(5))."""


class PeakMemory:
    """Each phase's peak, what was in use before it and what is after it: resident set, and on a GPU torch's bytes.

    The resident set's high-water mark is the kernel's own (VmHWM), set back before each phase;
    ``ru_maxrss`` cannot be, and a child process inherits it. Where there is no /proc it is all there
    is, and the source says so. What a phase leaves resident is told in two parts, ``RssAnon`` (the process's own)
    and ``RssFile`` (pages of mapped files, which the kernel can drop and read again). On a GPU it is the driver's
    figure: of this process, or of the whole GPU where the driver does not list the process.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._found: list[Measurement] = []

    @contextmanager
    def phase(self, name: str, **where: Scalar) -> Iterator[None]:
        """Watches what happens inside; ``where`` tells phases of one name apart."""
        marked = self._reset()
        self._keep("memory_before_bytes", self._before(), name, where)
        try:
            yield
        finally:
            self._keep("peak_memory_bytes", self._peaks(marked), name, where)
            self._keep("memory_after_bytes", self._after(), name, where)

    def finish(self) -> Sequence[Measurement]:
        return self._found

    def _keep(self, metric: str, sizes: Iterator[tuple[str, int]], phase: str, where: Mapping[str, Scalar]) -> None:
        for source, size in sizes:
            self._found.append(_exact(metric, "byte", size, phase=phase, source=source, **where))

    def _reset(self) -> str:
        """Sets all marks back; how the resident set's peak is to be called."""
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # or "reserved" would count blocks that an earlier phase left free
            torch.cuda.reset_peak_memory_stats()
        _trim_heap()
        return _reset_resident_peak()

    def _before(self) -> Iterator[tuple[str, int]]:
        yield from _status("VmRSS")
        if self._on_gpu:
            import torch

            yield "cuda allocated", torch.cuda.memory_allocated()

    def _peaks(self, marked: str) -> Iterator[tuple[str, int]]:
        if _STATUS.exists():
            yield from ((marked, size) for _, size in _status("VmHWM"))
        else:
            yield "ru_maxrss since the start", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
            yield "cuda allocated", torch.cuda.max_memory_allocated()
            yield "cuda reserved", torch.cuda.max_memory_reserved()

    def _after(self) -> Iterator[tuple[str, int]]:
        yield from _status("RssAnon", "RssFile")
        if self._on_gpu:
            with gpu() as found:
                own = found.process_bytes(os.getpid()) if found else None
                whole = found.used_bytes() if found else None
            if own is not None:
                yield "NVML process", own
            elif whole is not None:
                yield "NVML device", whole


def _status(*names: str) -> Iterator[tuple[str, int]]:
    """Lines of /proc/self/status in bytes, by their name; nothing where there is no /proc."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in names:
            yield name, int(rest.split()[0]) * 1024


def _trim_heap() -> None:
    """Gives free memory back to the kernel: what an earlier phase left in the heap would hide what this one takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


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


def checkpoint_files(sizes: Sequence[int]) -> Measurement:
    """``checkpoint_file_bytes``: all weight files that the variant is loaded from, whole."""
    return _exact("checkpoint_file_bytes", "byte", sum(sizes))


def kv_cache(stored_bytes: int, batch_size: int, tokens: int, **where: Scalar) -> Measurement:
    """``kv_cache_bytes_per_token``: a cache's real bytes over the tokens in it, those of all sequences."""
    per_token = stored_bytes / (batch_size * tokens)
    return _exact("kv_cache_bytes_per_token", "byte/token", per_token, batch_size=batch_size, tokens=tokens, **where)


def coverage(fraction: float) -> Measurement:
    """Quantized over eligible parameters of the scope."""
    return Measurement("coverage", VERSION, "fraction", "higher", "exact", (fraction,))


def _exact(metric: str, unit: str, value: float, **protocol: Scalar) -> Measurement:
    direction = "lower" if unit.startswith("byte") else "neither"
    return Measurement(metric, VERSION, unit, direction, "exact", (float(value),), protocol)  # type: ignore[arg-type]


MEMORY = Metric(
    name="memory",
    version=VERSION,
    kind="instrument",
    summary="stored weights by role, and the peak of each phase",
    make=PeakMemory,
)
