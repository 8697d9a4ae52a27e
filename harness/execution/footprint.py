"""What generating takes: the memory of a prefill and of the decoding after it, and the key-value cache they fill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.core.capability import Decodes
from harness.core.record import Measurement
from harness.core.workload import GridCell, ThroughputWorkload
from harness.execution.context import Context
from harness.metrics.memory import kv_cache
from harness.models.headers import read_config
from harness.numerics.kv_cache import element_bytes, expected_bytes_per_token, stored_bytes
from harness.numerics.prompts import random_tokens

if TYPE_CHECKING:
    import torch


def footprint(context: Context, model: Decodes, workload: ThroughputWorkload) -> None:
    """Watches one iteration at each point of the grid, after the timed ones: nothing is timed while it is watched.

    ``prefill`` and ``decode`` are phases of their own, whose protocol names the point. In a mode that must first
    be made ready, that is a phase before them.
    """
    import torch

    if model.context_length is not None:
        limit = (float(model.context_length),)
        context.add([Measurement("context_length", 1, "token", "neither", "exact", limit)])
    cells = list(_cells(workload))
    with context.phase("settle"), torch.inference_mode():  # what was given back of the heap is in part touched anew
        model.prefill(_prompt(context, model, cells[0]))
    for cell in cells:
        tokens = _prompt(context, model, cell)
        with torch.inference_mode(), model.decoder(cell.decode_mode, tokens, cell.new_tokens) as decoder:
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
    """The grid; of a single prompt length its half too, for one length tells nothing of another.

    What fits is worked out of eager decoding alone: a graph and its cache are there before a prompt is read.
    """
    for cell in workload.cells:
        if cell.decode_mode == "eager" and len(workload.prompt_tokens) == 1 and cell.prompt_tokens > 1:
            yield replace(cell, prompt_tokens=cell.prompt_tokens // 2)
        yield cell


def _cache(cache: Any, cell: GridCell, after: str) -> Measurement:
    static = cell.decode_mode == "compiled"  # all of it is there from the beginning
    tokens = cell.prompt_tokens + (cell.new_tokens if static or after == "decode" else 0)
    where = {**cell.protocol, "after": after}
    del where["batch_size"]
    return kv_cache(stored_bytes(cache), cell.batch_size, tokens, **where)


def _check_shape(context: Context, cache: Any, cell: GridCell) -> None:
    """Notes a cache that holds other than a key and a value of each token in each layer."""
    tokens = cell.batch_size * (cell.prompt_tokens + cell.new_tokens)
    found = stored_bytes(cache) / tokens
    if not found:
        context.fact("cache_empty")
        return
    element = element_bytes(cache)
    expected = expected_bytes_per_token(read_config(context.source()), element)
    if expected is not None and found != expected:
        context.fact("cache_unlike_shape", bytes_per_token=found, expected=expected, element_bytes=element)
