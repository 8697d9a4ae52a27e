"""The bytes to read and operations to compute at each point of the grid, counted in the loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from harness.core.capability import Decodes, Product, Routed
from harness.core.identity import Scalar
from harness.core.layers import layer_number
from harness.core.model import Attention
from harness.core.record import Measurement
from harness.core.workload import GridCell, ThroughputWorkload
from harness.errors import SourceError
from harness.execution.checks.kernels import Pass
from harness.execution.checks.routers import readable_routers
from harness.execution.context import Context
from harness.models.headers import read_config
from harness.models.resolve import of_folder
from harness.models.scope import reads_other_inputs
from harness.models.shapes import attention
from harness.numerics.kv_cache import element_bytes
from harness.numerics.prompts import random_tokens
from harness.numerics.traffic import (
    VERSION,
    AttentionShape,
    Routing,
    Running,
    Step,
    decode_step,
    prefill,
    routing,
)


def traffic(
    context: Context, model: Decodes, workload: ThroughputWorkload, products: Mapping[Pass, Mapping[str, Product]]
) -> None:
    """Adds ``…_read_bytes``, ``…_dequantize_bytes`` and ``…_operations`` of a prefill and a decode step per point.

    ``products`` is how the layers multiply in each pass. Call it after the model has run: some libraries repack their
    weights in the first pass.
    """
    ledger = model.weight_ledger()
    read = [entry for entry in ledger if not reads_other_inputs(entry.name)]
    unread = sum(entry.value_bytes + entry.scale_bytes for entry in ledger if reads_other_inputs(entry.name))
    running = Running(
        read,
        model.vocabulary,
        model.running_bytes() - unread,
        _routing(context, model, workload),
        _attention(context, model),
    )
    routed = {"routing": "measured" if running.routing.shares else "even"} if running.routing else {}
    for cell in workload.cells:
        batch, prompt = cell.batch_size, cell.prompt_tokens
        prompt_step = prefill(running, products[Pass("prefill", cell)], batch, prompt)
        token_step = decode_step(running, products[Pass("decode", cell)], batch, prompt, cell.new_tokens)
        context.add(_measurements("prefill", cell, prompt_step, routed))
        context.add(_measurements("decode", cell, token_step, routed))


def _attention(context: Context, model: Decodes) -> AttentionShape | None:
    """The shape of the model's attention, with its cache's actual bytes; None, and adds a fact, if unknown."""
    import torch

    try:
        shape = _counted(context)
        with torch.inference_mode():
            _, cache = model.prefill(random_tokens(model.vocabulary, 1, 2, context.spec.variant.seed).to(model.device))
        return AttentionShape(shape, element_bytes(cache))
    except (SourceError, ValueError) as error:
        context.fact("attention_not_bound", reason=str(error))
        return None


def _counted(context: Context) -> Attention:
    """As the configuration says, or counted in the model without weights where that does not."""
    source, model = context.source(), context.spec.model
    try:
        return attention(model.label, of_folder(source, model.trust_remote_code))
    except SourceError:
        return attention(model.label, of_folder(source, model.trust_remote_code, build=True))


def _routing(context: Context, model: Decodes, workload: ThroughputWorkload) -> Routing | None:
    """The mixture of experts, with the share of the timed tokens that each expert gets if the routers can be read.

    Counted in one prefill of the grid's largest batch of prompts.
    """
    import torch

    known = routing(read_config(context.source()))
    routers = readable_routers(context, model) if known else None
    if known is None or routers is None:
        return known
    largest = max(workload.cells, key=lambda cell: cell.batch_size * cell.prompt_tokens)
    tokens = random_tokens(model.vocabulary, largest.batch_size, largest.prompt_tokens, context.spec.variant.seed)
    shares: dict[int | None, list[float]] = {}

    def see(block: str, routed: Routed) -> None:
        counts = torch.bincount(routed.chosen.flatten(), minlength=routed.scores.shape[-1])
        shares[layer_number(block)] = (counts / len(routed.chosen)).tolist()

    with torch.inference_mode(), routers.watching_routers(see):
        model.prefill(tokens.to(model.device))
    return replace(known, shares=shares)


def _measurements(phase: str, cell: GridCell, step: Step, routed: Mapping[str, Scalar]) -> Iterator[Measurement]:
    def exact(metric: str, unit: str, value: float, **where: Scalar) -> Measurement:
        protocol = {**cell.protocol, **where}
        return Measurement(f"{phase}_{metric}", VERSION, unit, "neither", "exact", (value,), protocol)

    yield exact("read_bytes", "byte", step.read_bytes - step.kv_bytes, part="weights", **routed)
    yield exact("read_bytes", "byte", step.kv_bytes, part="KV cache")
    yield exact("dequantize_bytes", "byte", step.dequantize_bytes, **routed)
    for dtype, operations in step.operations.items():
        yield exact("operations", "operation", operations, dtype=dtype)
