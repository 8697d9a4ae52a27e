"""Compares estimated with stored bytes: ``python benchmarks/bits_per_weight.py RESULTS …``.

The estimate is that of ``qharness estimate``, from the model's header or configuration alone. The stored bytes were
counted in a worker's loaded tensors and in the checkpoint's headers. Prints a Markdown table, which
docs/measurements/estimate-cpu.md records.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from harness import plugins as registry
from harness.core.record import RunRecord
from harness.models.headers import synthetic
from harness.models.memory import DTYPE_BITS, quantized, weights
from harness.models.shapes import ModelShapes, read, shapes
from harness.storage.reading import read_records

COMPARED = ("linears", "all weights", "checkpoint's linears")
ROLES = ("linear", "embedding", "head", "other")


def main(results: list[str]) -> None:
    pairs = [f"{what}, {side}" for what in COMPARED for side in ("estimated (B)", "stored (B)", "ratio")]
    print(f"| variant | bits of a weight | {' | '.join(pairs)} |")
    print(f"| --- |{' ---: |' * (1 + len(pairs))}")
    for record in [record for folder in results for record in read_records(Path(folder))]:
        whole = record.spec.method.published is None and not (record.spec.variant.skip or record.spec.variant.overrides)
        if record.find("stored_bytes") is not None and record.status == "ok" and whole:
            print(_row(record))


def _row(record: RunRecord) -> str:
    method = registry.method(record.spec.method.name)
    params = method.params.model_validate(dict(record.spec.method.params))
    plain_bits = DTYPE_BITS[method.run_dtype(params, record.spec.model.dtype)]
    model = _shapes(record)
    expected = weights(model, method, params, plain_bits)
    disk = quantized(method, params, plain_bits, (*model.matrices, *model.experts)).disk
    stored = [_stored(record, "stored_bytes", role) for role in ROLES]
    pairs = [(expected.linear, stored[0]), (expected.total, sum(stored))]
    saved = _stored(record, "checkpoint_bytes", "linear")
    cells = [cell for pair in pairs for cell in _pair(*pair)] + (_pair(disk, saved) if saved else ["—"] * 3)
    return f"| {record.spec.method.label} | {expected.bits_per_weight:.3f} | {' | '.join(cells)} |"


def _pair(expected: float, found: float) -> list[str]:
    return [f"{math.ceil(expected):,}", f"{found:,.0f}", f"{expected / found:.4f}"]


def _shapes(record: RunRecord) -> ModelShapes:
    """The shapes of the sweep's model, whose files must still be where they were."""
    model = record.spec.model
    if model.kind == "synthetic":
        header = synthetic(dict(model.config))
        assert header is not None, "shapes unknown"
        return shapes(model.label, model.config, header)
    return read(model.path)


def _stored(record: RunRecord, metric: str, role: str) -> float:
    found = [m for m in record.outcome.measurements if m.metric == metric and m.protocol.get("role") == role]
    return sum(sum(measurement.values) for measurement in found)


if __name__ == "__main__":
    main(sys.argv[1:])
