"""Noise floors: the unquantized model's divergence from itself. A variant's divergence must clearly exceed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.core.capability import Logits, StoredTensor
from harness.core.identity import Scalar
from harness.core.metric import LOGITS_BYTES, Observer, Windows
from harness.errors import UnsupportedError, first_line_of
from harness.execution.context import Context
from harness.execution.forward import observe
from harness.execution.reference import Itself, Reference
from harness.plugins import metric

BATCH = 2
"""Windows per batch for floors that change the batch size."""
WINDOWS = 8
"""Windows of the baseline's floors: enough to compare a variant's divergence with them."""
STRETCH_TOKENS = 128
"""Tokens scored per window: few, so that a floor costs little compared with the run that measures it."""
WHOLE_WINDOWS = 2
"""Windows of a floor at every position: the fewest with an interval."""


def other_batch(context: Context, model: Logits, windows: Windows, kept: Reference) -> None:
    """The baseline's divergence from itself with two windows in one batch: ``kl_noise_floor``."""
    if _enough_for_a_batch(windows):
        first = _shortened(windows, WINDOWS, changed="batch size", batch_size=BATCH)
        floor = metric("divergence").make(first, "kl_noise_floor")
        _observe(context, "noise floor", model, first, floor, kept, BATCH)


def other_dtype(
    context: Context, ledger: Sequence[StoredTensor], windows: Windows, kept: Reference, whole: bool = False
) -> None:
    """The same with the baseline loaded in another dtype: bfloat16 for float32, float32 for 16 bits.

    ``whole`` reads fewer windows, but all of each, so that the floor is known at every position. Close the first model
    before calling this: two may not fit. If the floor cannot be measured, a fact says why.
    """
    changed = "dtype"
    first = _first(windows, changed=changed) if whole else _shortened(windows, WINDOWS, changed=changed)
    dtype = other_dtype_of(kept)
    try:
        _check_supported(context, ledger, dtype)
        first = replace(first, protocol={**first.protocol, "dtype": dtype})
        floor = metric("divergence").make(first, "kl_noise_floor")
        model = context.load_as(dtype, Logits)
        _observe(context, "noise floor", model, first, floor, kept)
        model.close()
    except Exception as error:  # noqa: BLE001 - becomes a fact
        context.fact("dtype_noise_not_measured", dtype=dtype, reason=first_line_of(error))


def other_dtype_of(kept: Reference) -> str:
    """The dtype that a baseline is held against."""
    import torch

    return "bfloat16" if kept.window(0).dtype == torch.float32 else "float32"


def own_batch(context: Context, model: Logits, windows: Windows) -> None:
    """A variant's divergence from itself, two stretches in one batch against one at a time: ``kl_batch_noise``."""
    if _enough_for_a_batch(windows):
        whole = replace(windows, firsts=[1] * len(windows.tokens))
        first = _shortened(whole, BATCH, changed="batch size", batch_size=BATCH)
        noise = metric("divergence").make(first, "kl_batch_noise")
        _observe(context, "batch noise", model, first, noise, Itself(model, first), BATCH)


def _enough_for_a_batch(windows: Windows) -> bool:
    """Whether there are enough windows, each with a token to score."""
    return len(windows.tokens) >= BATCH and min(map(len, windows.tokens[:WINDOWS])) > 1


def _first(windows: Windows, **protocol: Scalar) -> Windows:
    """The first windows, whole; the protocol says so."""
    tokens, firsts = windows.tokens[:WHOLE_WINDOWS], windows.firsts[:WHOLE_WINDOWS]
    scored = sum(len(row) - first for row, first in zip(tokens, firsts, strict=True))
    counts = {"windows": len(tokens), "tokens_scored": scored, "whole": True}
    return replace(
        windows,
        tokens=tokens,
        firsts=firsts,
        documents=windows.documents[:WHOLE_WINDOWS],
        protocol={**windows.protocol, **counts, **protocol},
    )


def _shortened(windows: Windows, count: int, **protocol: Scalar) -> Windows:
    """The first ``count`` windows, cut to one length so that any of them fit one batch; the protocol says so."""
    length = min(*map(len, windows.tokens[:count]), max(windows.firsts[:count]) + STRETCH_TOKENS)
    tokens = [row[:length] for row in windows.tokens[:count]]
    firsts = [min(first, length - 1) for first in windows.firsts[:count]]
    counts = {"windows": len(tokens), "length": length, "tokens_scored": sum(length - first for first in firsts)}
    return replace(
        windows,
        tokens=tokens,
        firsts=firsts,
        documents=windows.documents[:count],
        protocol={**windows.protocol, **counts, **protocol},
        amounts={},
    )


def _observe(
    context: Context,
    phase: str,
    model: Logits,
    windows: Windows,
    floor: Observer,
    kept: Reference | Itself,
    batch: int = 1,
) -> None:
    import torch

    with context.phase(phase), torch.inference_mode():
        observe(model, windows, [floor], kept, batch)
    context.add(floor.finish())


def _check_supported(context: Context, ledger: Sequence[StoredTensor], dtype: str) -> None:
    """Raises UnsupportedError if the baseline has only one dtype, or would not fit in memory whole in the other."""
    if any(entry.quantized for entry in ledger):
        raise UnsupportedError("the baseline's weights are stored quantized")
    if context.spec.job.conditions.residency == "streamed":
        return
    needed = sum(entry.parameters for entry in ledger if not entry.tied) * (4 if dtype == "float32" else 2)
    needed += 2 * LOGITS_BYTES  # the reference's and its own: a run that the system ends would lose the reference
    free = context.free_bytes()
    if free is not None and needed > free:
        raise UnsupportedError(f"it takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
