"""The machine's own speed: memory bandwidth and multiplication rates, the reference for a model's speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from harness.core.identity import Scalar
from harness.core.label import Fact
from harness.core.record import Measurement
from harness.errors import first_line_of

if TYPE_CHECKING:
    import torch

VERSION = 2
SMALLEST_SET_BYTES = 2**18
LARGEST_SET_BYTES = 2**30
SHARE_OF_MEMORY = 4
"""No working set or product uses more than one part in this many of the free memory."""
SMALLEST_MATRIX = 128
LONG_CALL_S = 0.03
"""A product that takes this long is large enough: the rate no longer grows with size."""
BURST_S = 1e-3
"""Minimum duration of a timed burst of calls. Short bursts can fall between other processes' activity."""
FEWEST_BURSTS = 3
BUDGET_S = 0.04
"""Minimum total duration of the bursts of one kind."""
SINGLE_CALLS = 5
"""The fastest of at most this many single calls sets the number of calls per burst: one alone may be interrupted.
If it is 1, they are bursts already."""
WARM_UP_S = 1.0
"""Seconds of products before anything is read or timed on a GPU. An idle one has lowered its clocks, and raising them
takes up to some hundred milliseconds."""
WARM_UP_MATRIX = 2048
DTYPES = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn")
FLOAT4, FLOAT4_BLOCK = "float4_e2m1fn_x2", 16
"""4-bit floats, and how many of them share a scale in NVFP4: the fastest products of GPUs from BLACKWELL on."""
BLACKWELL = (10, 0)

Work = Callable[[], object]


def warm_up(device: str) -> None:
    """Multiplies on a GPU until it has raised its clocks; a CPU needs no warm-up, since the best burst counts."""
    if not device.startswith("cuda"):
        return
    import torch

    matrix = torch.ones(WARM_UP_MATRIX, WARM_UP_MATRIX, device=device)
    began = time.perf_counter()
    while time.perf_counter() - began < WARM_UP_S:
        torch.mm(matrix, matrix)
        torch.cuda.synchronize(device)


def measure(device: str, free_bytes: int, note: Callable[[Fact], None]) -> Iterator[Measurement]:
    """``bandwidth_byte_per_s`` per kind of access and working set, then ``matmul_op_per_s`` per dtype and size.

    Each value is one burst; the best burst is what the machine can do. A working set is everything a call touches:
    a copy reads one half of it and writes the other, ``sum`` and ``max`` read all of it. Bytes read and bytes written
    both count. A product of two n × n matrices is 2 · n³ operations. ``note`` gets a fact that says why a dtype has
    no rate.
    """
    limit = free_bytes // SHARE_OF_MEMORY
    yield from _bandwidths(device, min(limit, LARGEST_SET_BYTES))
    for dtype in _dtypes(device):
        try:
            yield from _rates(device, dtype, limit)
        except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
            note(Fact("rate_not_measured", {"dtype": dtype, "reason": first_line_of(error)}))


def _dtypes(device: str) -> tuple[str, ...]:
    import torch

    has_float4 = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= BLACKWELL
    return (*DTYPES, FLOAT4) if has_float4 else DTYPES


def _bandwidths(device: str, largest_bytes: int) -> Iterator[Measurement]:
    import torch

    size = SMALLEST_SET_BYTES
    whole = torch.ones(max(size, largest_bytes) // 4, device=device)  # float32; writing makes every page resident
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
    """One measurement per size; sizes double until a call takes LONG_CALL_S or the memory limit is reached."""
    size, longest = SMALLEST_MATRIX, 0.0
    while longest < LONG_CALL_S and 4 * 4 * size**2 <= limit_bytes:
        for way, work in _products(device, dtype, size):
            seconds = _bursts(work, device)
            longest = min(seconds)
            values = tuple(2 * size**3 / each for each in seconds)
            yield _samples("matmul_op_per_s", "operation/s", values, dtype=dtype, size=size, way=way)
        size *= 2


def _products(device: str, dtype: str, size: int) -> Iterator[tuple[str, Work]]:
    """Products of two square random matrices, computed as models of that dtype compute them.

    float32 on a CPU is measured in two ways. PyTorch's matmul uses MKL, which uses only half the vector width of some
    CPUs that are not Intel's; torch.compile calls oneDNN. Other engines have their own kernels.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)
    numbers = torch.randn(size, size, generator=generator, device=device)
    if dtype == "int8":
        codes = (numbers * 32).clamp(-127, 127).to(torch.int8)
        second = _second_int8_matrix(codes, device)
        yield "_int_mm", lambda: torch._int_mm(codes, second)
        return
    if dtype == "float8_e4m3fn":
        yield from _float8_products(device, numbers.to(torch.float8_e4m3fn))
        return
    if dtype == FLOAT4:
        yield "_scaled_mm", _float4_product(size, generator)
        return
    matrix = numbers.to(getattr(torch, dtype))
    yield "mm", lambda: torch.mm(matrix, matrix)
    if (device, dtype) == ("cpu", "float32") and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix.t().contiguous(), size)
        yield "oneDNN", lambda: torch.ops.mkldnn._linear_pointwise(matrix, packed, None, "none", [], "")


def _second_int8_matrix(codes: torch.Tensor, device: str) -> torch.Tensor:
    """The second factor of an int8 product: column-major on a GPU.

    cuBLASLt multiplies int8 on tensor cores only if the first matrix is transposed and the second is not, in its own
    column-major terms ("TN", cuBLAS documentation of cublasLtMatmul); for PyTorch that is a column-major second one.
    """
    return codes.t() if device.startswith("cuda") else codes


def _float8_products(device: str, numbers: torch.Tensor) -> Iterator[tuple[str, Work]]:
    """On a GPU with and without fast accumulation: torch's default is without, torchao multiplies with it."""
    import torch

    one = torch.ones((), device=numbers.device)
    scaled = partial(torch._scaled_mm, numbers, numbers.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    yield "_scaled_mm", scaled
    if device.startswith("cuda"):
        yield "_scaled_mm with fast accumulation", partial(scaled, use_fast_accum=True)


def _float4_product(size: int, generator: torch.Generator) -> Work:
    """Of random pairs of codes; all scales are one, so their layout in tiles does not matter."""
    import torch

    device = generator.device
    pairs = torch.randint(256, (size, size // 2), generator=generator, device=device, dtype=torch.uint8)
    codes = pairs.view(torch.float4_e2m1fn_x2)
    ones = torch.ones(size * size // FLOAT4_BLOCK, device=device).to(torch.float8_e4m3fn)
    return partial(torch._scaled_mm, codes, codes.t(), scale_a=ones, scale_b=ones, out_dtype=torch.bfloat16)


def _bursts(work: Work, device: str) -> list[float]:
    """Seconds per call in each of several bursts; on a CPU with all threads, then with one.

    One thread is tried because threads wait for one another; on a busy machine the wait can exceed the call itself.
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
    singles: list[float] = []
    while len(singles) < FEWEST_BURSTS or (len(singles) < SINGLE_CALLS and sum(singles) < BUDGET_S):
        singles.append(_seconds(work, 1, device))
    calls = max(1, round(BURST_S / max(min(singles), 1e-9)))
    bursts = singles if calls == 1 else []
    while len(bursts) < FEWEST_BURSTS or sum(bursts) < BUDGET_S:
        bursts.append(_seconds(work, calls, device))
    return [seconds / calls for seconds in bursts]


def _seconds(work: Work, calls: int, device: str) -> float:
    """Seconds that the calls take together: by CUDA events on a GPU, else by the host's clock."""
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
