"""Bits of a decoder weight by arithmetic, on disk and in memory: ``python benchmarks/bits_per_weight.py RESULTS``.

The arithmetic is the method's own (``bits_per_weight``), over the shapes of the model's header; the bytes were
counted in the checkpoint's headers and in the tensors that a worker had loaded. Prints a table in Markdown, which
docs/measurements/methods-cpu.md records.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from harness import registry
from harness.models.headers import Header, read_directory, read_gguf, synthetic
from harness.models.scope import in_decoder
from harness.planner import DTYPE_BITS
from harness.record import RunRecord
from harness.store import read_records


def main(results: str) -> None:
    print("| variant | arithmetic | on disk | in memory | on disk, or else in memory, over arithmetic |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for record in read_records(Path(results)):
        counted = record.find("stored_bytes") is not None and record.spec.method.stage != "none"
        if counted and record.status == "ok":
            print(_row(record))


def _row(record: RunRecord) -> str:
    expected, disk, memory = _arithmetic(record), _bits(record, "checkpoint_bytes"), _bits(record, "stored_bytes")
    stored = disk if math.isfinite(disk) else memory
    shown = f"{disk:.3f}" if math.isfinite(disk) else "—"
    return f"| {record.spec.method.label} | {expected:.3f} | {shown} | {memory:.3f} | {stored / expected:.4f} |"


def _arithmetic(record: RunRecord) -> float:
    chosen = registry.method(record.spec.method.name)
    params = chosen.params.model_validate(dict(record.spec.method.params))
    plain = DTYPE_BITS[chosen.run_dtype(params, record.spec.model.dtype)]
    shapes = [shape for name, shape in _header(record).shapes.items() if in_decoder(name, len(shape))]
    bits = sum(math.prod(shape) * chosen.bits_per_weight(params, plain, shape[-1]) for shape in shapes)
    return bits / sum(map(math.prod, shapes))


def _header(record: RunRecord) -> Header:
    model = record.spec.model
    if model.kind == "gguf":
        return read_gguf(Path(model.path))
    found = synthetic(dict(model.config)) if model.kind == "synthetic" else read_directory(Path(model.path))
    assert found is not None, "shapes unknown"
    return found


def _bits(record: RunRecord, metric: str) -> float:
    """NaN where nothing of the kind was counted."""
    stored = _sum(record, metric, "linear")
    parameters = _sum(record, "checkpoint_parameters" if metric == "checkpoint_bytes" else "parameters", "linear")
    return 8 * stored / parameters if parameters else math.nan


def _sum(record: RunRecord, metric: str, role: str) -> float:
    found: Iterable[tuple[float, ...]] = (
        entry.values
        for entry in record.outcome.measurements
        if entry.metric == metric and entry.protocol.get("role") == role
    )
    return sum(sum(values) for values in found)


if __name__ == "__main__":
    main(sys.argv[1])
