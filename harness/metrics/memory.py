"""Memory of weights and the key-value cache, and memory use before, during and after each phase of a run."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.capability import CachePool, StoredTensor
from harness.core.engine import MemoryCounter
from harness.core.identity import Scalar
from harness.core.metric import Metric
from harness.core.protocols import (
    DRIVER_GROWTH,
    DRIVER_PROCESS,
    DRIVER_SINCE_LOADING,
    DRIVER_WHOLE,
    TORCH_ALLOCATED,
    TORCH_RESERVED,
)
from harness.core.record import Measurement
from harness.host.allocator import trim
from harness.host.gpu import gpus
from harness.models.stored import StoredLayer

VERSION = 2
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Writing this to clear_refs resets VmHWM to the current resident set (proc(5))."""


@dataclass(frozen=True)
class DriverUse:
    """GPU memory by the driver's count: of this process and on the whole GPU, in bytes.

    None is unknown. A process is unknown if the driver does not list it, as before its CUDA context exists or, in a
    container, under its own number, and if the driver lists it without its memory.
    """

    process_bytes: int | None
    whole_bytes: int | None

    @classmethod
    def now(cls) -> DriverUse:
        """Summed over the visible GPUs."""
        with gpus() as found:
            return cls(_sum(each.process_bytes() for each in found), _sum(each.used_bytes() for each in found))

    def since(self, earlier: DriverUse) -> int | None:
        """What this process took since then; if its own memory is unknown, what the whole GPU's use grew by."""
        for now, then in ((self.process_bytes, earlier.process_bytes), (self.whole_bytes, earlier.whole_bytes)):
            if now is not None and then is not None:
                return max(now - then, 0)
        return None


def _sum(sizes: Iterable[int | None]) -> int | None:
    """The sum; None if one of the sizes is unknown, or there is none."""
    every = list(sizes)
    known = [size for size in every if size is not None]
    return sum(known) if every and len(known) == len(every) else None


@dataclass(frozen=True)
class DeviceBaseline:
    """What the driver counted before this process used the GPU, and with its CUDA context but without a model."""

    unused: DriverUse
    empty: DriverUse


class PeakMemory:
    """Memory use before each phase, its peak and the use after it: the resident set, and on a GPU the device's memory.

    The peak of the resident set is the kernel's high-water mark (VmHWM), reset before each phase. ``ru_maxrss``
    cannot be reset, and a child process inherits it; it is used only without /proc, and the source says so. The
    resident set after a phase has two parts: ``RssAnon`` (the process's own memory) and ``RssFile`` (pages of mapped
    files, which the kernel can drop).

    On a GPU torch counts what it allocates. If ``counted_by`` is the driver, the model allocates its memory outside
    torch, and the device's memory before a phase and at its peak is ``NVML since loading``: the driver's figure less
    the baseline with an empty context. The driver keeps no peak: the larger one of the phase's beginning and end
    counts. The use after a phase is the driver's figure for the whole GPU and for this process, or, if that is
    unknown, by how much the GPU's use has grown since this process began.

    ``baseline`` is that of the process, if an earlier run in the same process has taken it.

    On several GPUs, all of these are sums over them; each one's peak by torch and its use by the driver stand beside
    them. The GPUs' peaks need not be of one moment, so that their sum is an upper bound.
    """

    def __init__(
        self,
        device: str,
        counted_by: MemoryCounter = "torch",
        baseline: DeviceBaseline | None = None,
        gpus: int = 1,
    ) -> None:
        self._gpus = gpus
        self._on_gpu = device.startswith("cuda")
        self._by_driver = self._on_gpu and counted_by == "driver"
        self._unused = DriverUse.now() if self._on_gpu and baseline is None else None
        self.baseline = baseline
        self._found: list[Measurement] = []

    @contextmanager
    def phase(self, name: str, **where: Scalar) -> Iterator[None]:
        """Measures the code inside the context; ``where`` distinguishes phases of the same name."""
        marked = self._reset()
        before = dict(self._before())
        self._keep("memory_before_bytes", before.items(), name, where)
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):  # a GPU after a failed kernel answers nothing: the kernel's error is the cause
                self._end(marked, before, name, where)
            raise
        self._end(marked, before, name, where)

    def finish(self) -> Sequence[Measurement]:
        return self._found

    def _keep(self, metric: str, sizes: Iterable[tuple[str, int]], phase: str, where: Mapping[str, Scalar]) -> None:
        for source, size in sizes:
            self._found.append(_exact(metric, "byte", size, phase=phase, source=source, **where))

    def _end(self, marked: str, before: Mapping[str, int], name: str, where: Mapping[str, Scalar]) -> None:
        self._keep("peak_memory_bytes", self._peaks(marked, before), name, where)
        self._keep("memory_after_bytes", self._after(), name, where)
        if self._on_gpu and self._gpus > 1:
            self._keep_each_gpu(name, where)

    def _keep_each_gpu(self, name: str, where: Mapping[str, Scalar]) -> None:
        import torch

        for index in range(self._gpus):
            peak = [(TORCH_ALLOCATED, torch.cuda.max_memory_allocated(index))]
            self._keep("peak_memory_of_gpu_bytes", peak, name, {"gpu": index, **where})
        with gpus() as found:
            for index, each in enumerate(found):
                used = each.used_bytes()
                held = [] if used is None else [(DRIVER_WHOLE, used)]
                self._keep("memory_of_gpu_after_bytes", held, name, {"gpu": index, **where})

    def _reset(self) -> str:
        """Resets all peaks; returns the name of the resident set's peak."""
        if self._on_gpu:
            import torch

            self._synchronize()
            torch.cuda.empty_cache()  # otherwise "reserved" would count free blocks of an earlier phase
            for index in range(self._gpus):
                torch.cuda.reset_peak_memory_stats(index)
            if self._unused is not None and self.baseline is None:
                self.baseline = DeviceBaseline(self._unused, DriverUse.now())
        trim()  # a phase that reused free memory would seem to need less
        return _reset_resident_peak()

    def _before(self) -> Iterator[tuple[str, int]]:
        yield from _status("VmRSS")
        if self._by_driver:
            yield from self._since_loading()
        elif self._on_gpu:
            import torch

            yield TORCH_ALLOCATED, self._summed(torch.cuda.memory_allocated)

    def _peaks(self, marked: str, before: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        if _STATUS.exists():
            yield from ((marked, size) for _, size in _status("VmHWM"))
        else:
            yield "ru_maxrss since the start", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._on_gpu:
            import torch

            self._synchronize()
            if self._by_driver:
                yield from ((source, max(size, before.get(source, 0))) for source, size in self._since_loading())
            else:
                yield TORCH_ALLOCATED, self._summed(torch.cuda.max_memory_allocated)
                yield TORCH_RESERVED, self._summed(torch.cuda.max_memory_reserved)

    def _synchronize(self) -> None:
        import torch

        for index in range(self._gpus):
            torch.cuda.synchronize(index)

    def _summed(self, of_gpu: Callable[[int], int]) -> int:
        return sum(map(of_gpu, range(self._gpus)))

    def _after(self) -> Iterator[tuple[str, int]]:
        yield from _status("RssAnon", "RssFile")
        if self._on_gpu and self.baseline is not None:
            now = DriverUse.now()
            grown = now.since(self.baseline.unused)
            if now.process_bytes is not None:
                yield DRIVER_PROCESS, now.process_bytes
            elif grown is not None:
                yield DRIVER_GROWTH, grown
            if now.whole_bytes is not None:
                yield DRIVER_WHOLE, now.whole_bytes

    def _since_loading(self) -> Iterator[tuple[str, int]]:
        own = DriverUse.now().since(self.baseline.empty) if self.baseline is not None else None
        if own is not None:
            yield DRIVER_SINCE_LOADING, own


def _status(*names: str) -> Iterator[tuple[str, int]]:
    """The named lines of /proc/self/status, in bytes; nothing without /proc."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in names:
            yield name, int(rest.split()[0]) * 1024


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


def allocated_kv_cache(allocated_bytes: int, **where: Scalar) -> Measurement:
    """``allocated_kv_cache_bytes``: a decoder's whole cache, if it exists before the prompt and is in use then."""
    return _exact("allocated_kv_cache_bytes", "byte", allocated_bytes, **where)


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
