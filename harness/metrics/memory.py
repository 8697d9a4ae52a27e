"""Memory of weights and the key-value cache, and memory use before, during and after each phase of a run."""

from __future__ import annotations

import ctypes
import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.core.capability import CachePool, StoredTensor
from harness.core.identity import Scalar
from harness.core.metric import Metric
from harness.core.record import Measurement
from harness.host.gpu import gpu
from harness.models.stored import StoredLayer

VERSION = 2
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Writing this to clear_refs resets VmHWM to the current resident set (proc(5))."""


class PeakMemory:
    """Memory use before each phase, its peak and the use after it: the resident set, and on a GPU torch's bytes.

    The peak of the resident set is the kernel's high-water mark (VmHWM), reset before each phase. ``ru_maxrss``
    cannot be reset, and a child process inherits it; it is used only without /proc, and the source says so. The
    resident set after a phase has two parts: ``RssAnon`` (the process's own memory) and ``RssFile`` (pages of mapped
    files, which the kernel can drop and read again). On a GPU the use after a phase is the driver's figure for this
    process, or for the whole GPU if the driver does not list the process.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._found: list[Measurement] = []

    @contextmanager
    def phase(self, name: str, **where: Scalar) -> Iterator[None]:
        """Measures the code inside the context; ``where`` distinguishes phases of the same name."""
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
        """Resets all peaks; returns the name of the resident set's peak."""
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # otherwise "reserved" would count free blocks of an earlier phase
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
    """The named lines of /proc/self/status, in bytes; nothing without /proc."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in names:
            yield name, int(rest.split()[0]) * 1024


def _trim_heap() -> None:
    """Returns free heap memory to the kernel: a phase that reused it would seem to need less."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _reset_resident_peak() -> str:
    """Resets the kernel's high-water mark; the returned name of the figure says whether that worked."""
    try:
        _CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return "VmHWM since the start"
    return "VmHWM"


def weights(ledger: Sequence[StoredTensor]) -> Sequence[Measurement]:
    """``stored_bytes`` by role and part, and ``parameters`` by role; tied weights count once."""
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
    """``checkpoint_bytes`` of the decoder's matrices on disk, by part, and the number of their parameters."""
    return [
        _exact("checkpoint_bytes", "byte", sum(layer.value_bytes for layer in layers), role="linear", part="values"),
        _exact("checkpoint_bytes", "byte", sum(layer.scale_bytes for layer in layers), role="linear", part="scales"),
        _exact("checkpoint_parameters", "parameter", sum(layer.parameters for layer in layers), role="linear"),
    ]


def checkpoint_files(sizes: Sequence[int]) -> Measurement:
    """``checkpoint_file_bytes``: the total size of the weight files that the variant is loaded from."""
    return _exact("checkpoint_file_bytes", "byte", sum(sizes))


def kv_cache(stored_bytes: int, batch_size: int, tokens: int, **where: Scalar) -> Measurement:
    """``kv_cache_bytes_per_token``: a cache's real bytes divided by its tokens, over all sequences."""
    per_token = stored_bytes / (batch_size * tokens)
    return _exact("kv_cache_bytes_per_token", "byte/token", per_token, batch_size=batch_size, tokens=tokens, **where)


def kv_cache_pool(pool: CachePool) -> Measurement:
    """``kv_cache_pool_bytes``: what an engine allocates for keys and values when it loads, a part of every peak."""
    return _exact("kv_cache_pool_bytes", "byte", pool.bytes, blocks=pool.blocks, block_tokens=pool.block_tokens)


def coverage(fraction: float) -> Measurement:
    """The fraction of the scope's eligible parameters that are quantized."""
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
