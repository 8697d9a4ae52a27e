"""Whether a model fits a memory budget with a method: its parts, the longest context, the largest batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.core.foreign import quoted
from harness.errors import UsageError
from harness.figures.derived.footprint import largest_fitting
from harness.models.memory import (
    DTYPE_BITS,
    Weights,
    kv_bytes_per_token,
    kv_cache_bytes,
    native_weights,
    weights,
    workspace_bytes,
)
from harness.models.shapes import ModelShapes
from harness.planning.estimate.chosen import Chosen
from harness.planning.estimate.gpus import Budget
from harness.planning.support import misfit

DEFAULT_CONTEXT = 4096
EXPERTS_LEFT = "experts counted unquantized: this method is not known to quantize them, so a sweep must skip them"
MOST = 2**24
"""The longest context and the largest batch: of a request, and of the search for the most that fits."""


@dataclass(frozen=True)
class EstimateRequest:
    """The context in tokens (prompt and answer together), the batch and the budget to estimate for."""

    context: int
    batch: int
    budget: Budget | None = None


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that one variant needs, in bytes; ``unsupported`` says why this model cannot use the method.

    ``longest_context`` (at the requested batch) and ``largest_batch`` (at the requested context) are 0 if nothing fits
    and None without a budget.
    """

    label: str
    dtype: str
    unsupported: str | None
    weights: Weights | None = None
    kv_bytes_per_token: int = 0
    kv_bytes: int = 0
    workspace_bytes: int = 0
    fits: bool | None = None
    longest_context: int | None = None
    largest_batch: int | None = None
    note: str | None = None

    @property
    def total_bytes(self) -> int | None:
        """Weights, cache and workspace; None if the model cannot use the method."""
        return None if self.weights is None else self.weights.total + self.kv_bytes + self.workspace_bytes


def request(model: ModelShapes, context: int | None, batch: int, budget: Budget | None) -> EstimateRequest:
    """The validated request. Raises UsageError for a size below 1 or a context longer than the model's."""
    limit = model.context_length
    if context is None:
        context = min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT)
    for name, value in (("--context", context), ("--batch", batch)):
        if not 1 <= value <= MOST:
            raise UsageError(f"{name}: expected 1 to {MOST}, not {quoted(value)}")
    if limit is not None and context > limit:
        raise UsageError(f"--context: {context} tokens exceed the {limit} that {model.label} was made for")
    return EstimateRequest(context, batch, budget)


def estimates(
    model: ModelShapes, chosen: Iterable[Chosen], request: EstimateRequest, dtype: str = "auto"
) -> list[MemoryEstimate]:
    """One estimate per method, in order. ``dtype`` is what a recipe would request; UsageError for an unknown one."""
    wanted = model.dtype if dtype == "auto" else dtype
    if wanted not in DTYPE_BITS:
        raise UsageError(
            f"--dtype: {model.label} is in {wanted}; name the one it is to run in: {', '.join(DTYPE_BITS)}"
        )
    return [_estimate(model, variant, request, wanted) for variant in chosen]


def _estimate(model: ModelShapes, variant: Chosen, request: EstimateRequest, wanted: str) -> MemoryEstimate:
    method, params = variant.method, variant.params
    dtype = method.run_dtype(params, wanted)
    needs = method.needs(params)
    covered = model.matrices if method.leaves_experts(model.model_type) else (*model.matrices, *model.experts)
    unsupported = misfit(method.name, needs, covered, model.model_type)
    if unsupported is not None:
        return MemoryEstimate(variant.label, dtype, unsupported)
    plain_bits = DTYPE_BITS[dtype]
    # A budget is a GPU's memory, so matrices are padded as they are there.
    native = model.native if method.stage == "none" else None
    if native is not None:
        stored = native_weights(model, native, plain_bits)
    else:
        stored = weights(model, method, params, plain_bits, "cpu" if request.budget is None else "cuda")

    def taken(context: int, batch: int) -> int:
        running = workspace_bytes(model, context, batch, plain_bits) + stored.unpacked
        return stored.total + kv_cache_bytes(model, context, batch, plain_bits) + running

    context, batch, budget = request.context, request.batch, request.budget
    limit = model.context_length or MOST
    return MemoryEstimate(
        label=variant.label,
        dtype=dtype,
        unsupported=None,
        weights=stored,
        kv_bytes_per_token=kv_bytes_per_token(model, plain_bits),
        kv_bytes=kv_cache_bytes(model, context, batch, plain_bits),
        workspace_bytes=workspace_bytes(model, context, batch, plain_bits) + stored.unpacked,
        fits=None if budget is None else taken(context, batch) <= budget.bytes,
        longest_context=None if budget is None else largest_fitting(lambda n: taken(n, batch) <= budget.bytes, limit),
        largest_batch=None if budget is None else largest_fitting(lambda n: taken(context, n) <= budget.bytes, MOST),
        note=_note(model, variant),
    )


def _note(model: ModelShapes, variant: Chosen) -> str | None:
    device = variant.method.needs(variant.params).device
    notes = [
        "dequantized on load" if variant.method.loaded == "dense" else "",
        "a dense copy beside the codes while running" if variant.method.loaded == "both" else "",
        {"cuda": "needs an NVIDIA GPU", "cpu": "runs on a CPU only"}.get(device or "", ""),
        EXPERTS_LEFT if model.experts and variant.method.leaves_experts(model.model_type) else "",
        _native_note(model, variant),
    ]
    return "; ".join(filter(None, notes)) or None


def _native_note(model: ModelShapes, variant: Chosen) -> str:
    if model.native is None:
        return ""
    if variant.method.stage == "none":
        return f"as published, in {model.native.format}, which transformers unpacks where no kernel runs it"
    return f"of the model unpacked from {model.native.format}: native: dequantize in a recipe"
