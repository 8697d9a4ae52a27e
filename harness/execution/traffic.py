"""The bytes to read and operations to compute at each point of the grid, counted in the loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.core.capability import Decodes, Explains
from harness.core.identity import Scalar
from harness.core.record import Measurement
from harness.core.workload import ThroughputWorkload
from harness.errors import SourceError
from harness.execution.context import Context
from harness.models.headers import read_config
from harness.models.resolve import of_folder
from harness.models.shapes import attention
from harness.numerics.kv_cache import element_bytes
from harness.numerics.prompts import random_tokens
from harness.numerics.traffic import VERSION, AttentionShape, Running, Step, decode_step, prefill, routing

if TYPE_CHECKING:
    from harness.core.workload import GridCell


def traffic(context: Context, model: Decodes, workload: ThroughputWorkload) -> None:
    """Adds ``…_read_bytes``, ``…_dequantize_bytes`` and ``…_operations`` of a prefill and a decode step per point.

    Call it after the model has run: some libraries repack their weights in the first pass.
    """
    config = read_config(context.source())
    known = model.arithmetic() if isinstance(model, Explains) else {}
    running = Running(
        model.weight_ledger(),
        model.families(),
        model.vocabulary,
        model.running_bytes(),
        routing(config),
        _attention(context, model),
        {layer: arithmetic.products for layer, arithmetic in known.items()},
    )
    for cell in workload.cells:
        context.add(_measurements("prefill", cell, prefill(running, cell.batch_size, cell.prompt_tokens)))
        context.add(
            _measurements("decode", cell, decode_step(running, cell.batch_size, cell.prompt_tokens, cell.new_tokens))
        )


def _attention(context: Context, model: Decodes) -> AttentionShape | None:
    """The shape of the model's attention, with its cache's actual bytes; None, and adds a fact, if unknown."""
    import torch

    try:
        resolved = of_folder(context.source(), context.spec.model.trust_remote_code)
        shape = attention(context.spec.model.label, resolved)
        with torch.inference_mode():
            _, cache = model.prefill(random_tokens(model.vocabulary, 1, 2, context.spec.variant.seed).to(model.device))
        return AttentionShape(shape.windows, shape.heads, shape.kv_heads, shape.head_dim, element_bytes(cache))
    except (SourceError, ValueError) as error:
        context.fact("attention_not_bound", reason=str(error))
        return None


def _measurements(phase: str, cell: GridCell, step: Step) -> Iterator[Measurement]:
    def exact(metric: str, unit: str, value: float, **where: Scalar) -> Measurement:
        protocol = {**cell.protocol, **where}
        return Measurement(f"{phase}_{metric}", VERSION, unit, "neither", "exact", (value,), protocol)

    yield exact("read_bytes", "byte", step.read_bytes - step.kv_bytes, part="weights")
    yield exact("read_bytes", "byte", step.kv_bytes, part="KV cache")
    yield exact("dequantize_bytes", "byte", step.dequantize_bytes)
    for dtype, operations in step.operations.items():
        yield exact("operations", "operation", operations, dtype=dtype)
