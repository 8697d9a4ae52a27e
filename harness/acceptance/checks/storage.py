"""Stored bytes and the key-value cache of layers in the shape of Llama 3.1 8B."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from harness.acceptance import recipes
from harness.acceptance.bench import Bench, CheckResult, failed, judged
from harness.acceptance.models import Shape
from harness.core.job import MeasurePerformance
from harness.core.record import RunRecord

TOLERANCE = 1e-4
"""How far a ratio may be from what the format says."""
BLOCK = 64
"""NF4: so many weights share a scale (QLoRA, arXiv:2305.14314)."""
SCALES = 256
"""Double quantization: so many 8-bit scales share a float32 one."""
CODE, SCALE_CODE = 16, 256
"""Entries of bitsandbytes' float32 tables: of the weights' codes, and of the scales'."""


def _int8(rows: int, columns: int) -> float:
    """torchao: a byte per weight; per row a float32 scale and a zero point of a byte."""
    return rows * columns + 5 * rows


def _fp8(rows: int, columns: int) -> float:
    """torchao: a byte per weight and a float32 scale per row."""
    return rows * columns + 4 * rows


def _nf4(rows: int, columns: int) -> float:
    """bitsandbytes: half a byte per weight, a float32 scale per block, a table."""
    weights = rows * columns
    return weights / 2 + 4 * math.ceil(weights / BLOCK) + 4 * CODE


def _nf4_double(rows: int, columns: int) -> float:
    """The same with 8-bit scales, a float32 scale for each 256 of them, their table and their offset."""
    blocks = math.ceil(rows * columns / BLOCK)
    return rows * columns / 2 + blocks + 4 * math.ceil(blocks / SCALES) + 4 * (CODE + SCALE_CODE + 1)


BYTES: Mapping[str, Callable[[int, int], float]] = {
    "int8": _int8,
    "fp8": _fp8,
    "bnb-nf4": _nf4,
    "bnb-nf4 double_quant": _nf4_double,
}
"""The bytes of a stored matrix by its rows and columns, for each method of the recipe by its label."""


def expected_ratio(shape: Shape, method: str) -> float:
    """The stored bytes of a shape's linear matrices over those of 16-bit ones."""
    return sum(BYTES[method](*each) for each in shape.matrices) / (2 * shape.parameters)


def storage(bench: Bench) -> Iterator[CheckResult]:
    """The bytes of int8, fp8 and NF4 are those of their formats."""
    shape = recipes.shape(bench.on_gpu)
    records = [each for each in bench.measure(recipes.storage(bench.on_gpu)) if _is_measured(each)]
    by_method = {record.spec.method.label: record for record in records}
    for method in BYTES:
        about = f"stored bytes, {_shown(method)}"
        record = by_method.get(method)
        if record is None or record.status != "ok":
            yield bench.fault(about, record) if record else failed(about, "it was not planned")
            continue
        expected, found = expected_ratio(shape, method), _ratio(record)
        reason = f"{found:.5f} of 16-bit linears, {expected:.5f} by the format"
        yield judged(about, abs(found - expected) <= TOLERANCE, reason)


def cache(bench: Bench) -> Iterator[CheckResult]:
    """A token's keys and values take what the shape says."""
    shape, about = recipes.shape(bench.on_gpu), "key-value cache"
    records = [each for each in bench.measure(recipes.cache(bench.on_gpu)) if _is_measured(each)]
    (record,) = records
    measured = record.find("kv_cache_bytes_per_token")
    if record.status != "ok" or measured is None:
        yield bench.fault(about, record)
        return
    expected = shape.cache_bytes_per_token(2)
    found = measured.values[0]
    yield judged(about, found == expected, f"{found:,.0f} B a token, {expected:,} B by the shape in 16 bits")


def _ratio(record: RunRecord) -> float:
    """Stored bytes of the linear matrices over two bytes for each of their parameters."""
    held = [m for m in record.outcome.measurements if m.protocol.get("role") == "linear"]
    stored = sum(m.values[0] for m in held if m.metric == "stored_bytes")
    parameters = sum(m.values[0] for m in held if m.metric == "parameters")
    return stored / (2 * parameters) if parameters else math.nan


def _is_measured(record: RunRecord) -> bool:
    return isinstance(record.spec.job, MeasurePerformance)


def _shown(method: str) -> str:
    return method.removeprefix("bnb-").replace("_quant", "")
