"""The machine's own speed: how fast it moves bytes and multiplies, against which a model's speed is held."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from harness.core.identity import Scalar
from harness.core.label import Fact
from harness.core.record import Measurement

if TYPE_CHECKING:
    import torch

VERSION = 2
SMALLEST_SET_BYTES = 2**18
LARGEST_SET_BYTES = 2**30
SHARE_OF_MEMORY = 4
"""No working set and no product takes more than this part of the memory that is free."""
SMALLEST_MATRIX = 128
LONG_CALL_S = 0.03
"""A product that takes so long is large enough: its rate no longer grows."""
BURST_S = 1e-3
"""Calls are timed in bursts of at least this long: short ones find the moments in which nobody else works."""
FEWEST_BURSTS = 3
BUDGET_S = 0.04
"""How long bursts of one kind go on, at least."""
SINGLE_CALLS = 5
"""Of so many the quickest says how many calls a burst takes: one alone may have been interrupted."""
DTYPES = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn")

Work = Callable[[], object]


def measure(device: str, free_bytes: int, note: Callable[[Fact], None]) -> Iterator[Measurement]:
    """``bandwidth_byte_per_s`` per kind of access and working set, then ``matmul_op_per_s`` per dtype and size.

    Each value is a burst; what the machine can do is the best of them. A working set is all that a call touches:
    a copy reads one half of it and writes the other, ``sum`` and ``max`` read the whole; bytes read and bytes written
    are counted. A product of two n × n matrices is 2 · n³ operations. ``note`` gets a fact that says why a
    dtype has no rate.
    """
    limit = free_bytes // SHARE_OF_MEMORY
    yield from _bandwidths(device, min(limit, LARGEST_SET_BYTES))
    for dtype in DTYPES:
        try:
            yield from _rates(device, dtype, limit)
        except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            note(Fact("rate_not_measured", {"dtype": dtype, "reason": reason}))


def _bandwidths(device: str, largest_bytes: int) -> Iterator[Measurement]:
    import torch

    size = SMALLEST_SET_BYTES
    whole = torch.ones(max(size, largest_bytes) // 4, device=device)  # float32; written, so that every page is there
    while size <= max(SMALLEST_SET_BYTES, largest_bytes):
        for access, work in _accesses(whole[: size // 4]):
            values = tuple(size / seconds for seconds in _bursts(work, device))
            yield _samples("bandwidth_byte_per_s", "byte/s", values, access=access, working_set_bytes=size)
        size *= 2


def _accesses(held: torch.Tensor) -> Iterator[tuple[str, Work]]:
    half = len(held) // 2
    source, target = held[:half], held[half:]
    yield "copy", lambda: target.copy_(source)
    yield "sum", held.sum
    yield "max", held.max


def _rates(device: str, dtype: str, limit_bytes: int) -> Iterator[Measurement]:
    """One measurement per size; sizes double until a call is long or the memory's share is used."""
    size, longest = SMALLEST_MATRIX, 0.0
    while longest < LONG_CALL_S and 4 * 4 * size**2 <= limit_bytes:
        for way, work in _products(device, dtype, size):
            seconds = _bursts(work, device)
            longest = min(seconds)
            values = tuple(2 * size**3 / each for each in seconds)
            yield _samples("matmul_op_per_s", "operation/s", values, dtype=dtype, size=size, way=way)
        size *= 2


def _products(device: str, dtype: str, size: int) -> Iterator[tuple[str, Work]]:
    """Products of two square matrices of random numbers, as models of that dtype are multiplied.

    On a CPU float32 goes two ways: PyTorch's matmul is MKL's, which leaves half of the vector width of some CPUs of
    other makers unused, and what torch.compile calls is oneDNN's. Other engines have kernels of their own.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)
    numbers = torch.randn(size, size, generator=generator, device=device)
    if dtype == "int8":
        codes = (numbers * 32).clamp(-127, 127).to(torch.int8)
        yield "_int_mm", lambda: torch._int_mm(codes, codes)
        return
    if dtype == "float8_e4m3fn":
        narrow, one = numbers.to(torch.float8_e4m3fn), torch.ones((), device=device)
        scaled = partial(torch._scaled_mm, narrow, narrow.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        yield "_scaled_mm", scaled
        return
    matrix = numbers.to(getattr(torch, dtype))
    yield "mm", lambda: torch.mm(matrix, matrix)
    if (device, dtype) == ("cpu", "float32") and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix.t().contiguous(), size)
        yield "oneDNN", lambda: torch.ops.mkldnn._linear_pointwise(matrix, packed, None, "none", [], "")


def _bursts(work: Work, device: str) -> list[float]:
    """Seconds of a call in each of several bursts of calls; on a CPU by all threads, then by one alone.

    Threads wait for one another, and where others work on the machine too, that may take longer than the call itself.
    """
    import torch

    if device.startswith("cuda"):
        return _one_way(work, device)
    threads = torch.get_num_threads()
    together = _one_way(work, device)
    try:
        torch.set_num_threads(1)
        return together + (_one_way(work, device) if threads > 1 else [])
    finally:
        torch.set_num_threads(threads)


def _one_way(work: Work, device: str) -> list[float]:
    work()
    single = min(_seconds(work, 1, device) for _ in range(SINGLE_CALLS))
    calls = max(1, round(BURST_S / max(single, 1e-9)))
    found: list[float] = []
    spent = 0.0
    while len(found) < FEWEST_BURSTS or spent < BUDGET_S:
        seconds = _seconds(work, calls, device)
        spent += seconds
        found.append(seconds / calls)
    return found


def _seconds(work: Work, calls: int, device: str) -> float:
    """Of so many calls: by the GPU's own clock there, else by the processor's."""
    if device.startswith("cuda"):
        import torch

        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        for _ in range(calls):
            work()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - start


def _samples(metric: str, unit: str, values: tuple[float, ...], **protocol: Scalar) -> Measurement:
    return Measurement(metric, VERSION, unit, "higher", "samples", values, protocol)
