"""The memory cost of generation: prefill, decoding, and the key-value cache that they fill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.core.capability import Decodes, Preallocates
from harness.core.record import Measurement
from harness.core.workload import GridCell, ThroughputWorkload
from harness.execution.context import Context
from harness.metrics.memory import allocated_kv_cache, kv_cache
from harness.models.headers import read_config
from harness.numerics.kv_cache import element_bytes, expected_bytes_per_token, stored_bytes
from harness.numerics.prompts import random_tokens

if TYPE_CHECKING:
    import torch


def footprint(context: Context, model: Decodes, workload: ThroughputWorkload) -> None:
    """Measures the memory of one iteration at each point of the grid, after the timed iterations and never with them.

    ``prefill`` and ``decode`` are separate phases whose protocol names the point. Modes that need preparation prepare
    before these phases.
    """
    import torch

    if model.context_length is not None:
        limit = (float(model.context_length),)
        context.add([Measurement("context_length", 1, "token", "neither", "exact", limit)])
    cells = list(_cells(workload))
    with context.phase("settle"), torch.inference_mode():  # touches again part of the heap that was freed
        model.prefill(_prompt(context, model, cells[0]))
    for cell in cells:
        tokens = _prompt(context, model, cell)
        with torch.inference_mode(), model.decoder(cell.decode_mode, tokens, cell.new_tokens) as decoder:
            if isinstance(model, Preallocates):
                context.add([allocated_kv_cache(model.allocated_cache_bytes(), **cell.protocol)])
            with context.phase("prefill", **cell.protocol):
                logits, cache = decoder.prefill(tokens)
            context.add([_cache(cache, cell, "prefill")])
            with context.phase("decode", **cell.protocol):
                for _ in range(cell.new_tokens):
                    logits, cache = decoder.decode(logits.argmax(dim=-1, keepdim=True), cache)
            context.add([_cache(cache, cell, "decode")])
        _check_shape(context, cache, cell)
        del logits, cache, decoder


def _prompt(context: Context, model: Decodes, cell: GridCell) -> torch.Tensor:
    tokens = random_tokens(model.vocabulary, cell.batch_size, cell.prompt_tokens, context.spec.variant.seed)
    return tokens.to(model.device)


def _cells(workload: ThroughputWorkload) -> Iterator[GridCell]:
    """The grid. A single prompt length is measured at half its length too, because one length predicts no other.

    What fits is computed from eager decoding only: in compiled mode the graph and its cache exist before the prompt.
    """
    for cell in workload.cells:
        if cell.decode_mode == "eager" and len(workload.prompt_tokens) == 1 and cell.prompt_tokens > 1:
            yield replace(cell, prompt_tokens=cell.prompt_tokens // 2)
        yield cell


def _cache(cache: Any, cell: GridCell, after: str) -> Measurement:
    static = cell.decode_mode == "compiled"  # it has its full size from the start
    tokens = cell.prompt_tokens + (cell.new_tokens if static or after == "decode" else 0)
    where = {**cell.protocol, "after": after}
    del where["batch_size"]
    return kv_cache(stored_bytes(cache), cell.batch_size, tokens, **where)


def _check_shape(context: Context, cache: Any, cell: GridCell) -> None:
    """Adds a fact if the cache does not hold exactly one key and one value per token and layer."""
    tokens = cell.batch_size * (cell.prompt_tokens + cell.new_tokens)
    found = stored_bytes(cache) / tokens
    if not found:
        context.fact("cache_empty")
        return
    element = element_bytes(cache)
    expected = expected_bytes_per_token(read_config(context.source()), element)
    if expected is not None and found != expected:
        context.fact("cache_unlike_shape", bytes_per_token=found, expected=expected, element_bytes=element)
