"""The output of ``qharness estimate``: the parts of one variant, or one line for each of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.table import Table

from harness.figures.formats import BINARY, BLANK, DECIMAL, significant, size_unit
from harness.models.memory import Weights
from harness.models.shapes import ModelShapes
from harness.planning.estimate.fits import EstimateRequest, MemoryEstimate
from harness.report.terminal import add_row, print_json, show_parts

NOT_COUNTED = (
    "Not counted: memory of the driver and the libraries (some hundred MiB on a GPU), and gaps between blocks."
)


def size(count: float) -> str:
    """``280 GB = 260.8 GiB``: a decimal unit (10⁹ bytes) and a binary one (2³⁰)."""
    decimal, binary = size_unit([int(count)], DECIMAL), size_unit([int(count)], BINARY)
    return (
        f"{significant(count / decimal.bytes, 4)} {decimal.name} = {significant(count / binary.bytes, 4)} {binary.name}"
    )


def show_estimates(
    model: ModelShapes, request: EstimateRequest, estimates: Sequence[MemoryEstimate], as_json: bool
) -> None:
    """One JSON line per method, or tables. GB is 10⁹ bytes, GiB is 2³⁰."""
    if as_json:
        for entry in estimates:
            print_json(_line(model, request, entry))
        return
    budget = f"; to fit {request.budget.name}, {size(request.budget.bytes)}" if request.budget else ""
    detailed = _one(estimates[0], request) if len(estimates) == 1 else _all(estimates, request)
    heads = (_parameters(model), f"context {request.context} tokens, batch {request.batch}{budget}")
    show_parts([*heads, *detailed, NOT_COUNTED])


def _parameters(model: ModelShapes) -> str:
    head = "tied to the embedding" if not model.head else f"{model.head:,}"
    others = model.norms + model.kept
    active = f" ({model.active:,} active per token)" if model.active < model.parameters else ""
    experts = f" ({model.expert_parameters:,} in experts)" if model.experts else ""
    parts = [
        f"decoder linears {model.decoder:,}{experts}",
        f"embedding {model.embedding:,}",
        f"head {head}",
        f"norms and others {others:,}",
        *([f"vision and audio {model.other_inputs:,}, out of scope"] if model.other_inputs else []),
        *([f"vision and audio {model.unloaded:,}, not loaded"] if model.unloaded else []),
        *([f"published in {model.native.format}"] if model.native else []),
    ]
    return f"{model.label}: {model.parameters:,} parameters{active}: {', '.join(parts)}"


def _one(entry: MemoryEstimate, request: EstimateRequest) -> Iterator[Table | str]:
    if entry.weights is None:
        yield f"{entry.label}: {entry.unsupported}"
        return
    stored = entry.weights
    yield f"{entry.label}, {entry.dtype}: {significant(stored.bits_per_weight, 4)} bits per quantized weight"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in _parts(stored, entry, request):
        add_row(table, name, size(count))
    yield table
    yield from (line for line in (entry.note, _verdict(entry, request)) if line)


def _parts(stored: Weights, entry: MemoryEstimate, request: EstimateRequest) -> list[tuple[str, int]]:
    parts = [
        ("weights: linears", stored.linear),
        ("weights: embedding", stored.embedding),
        ("weights: head", stored.head),
        ("weights: norms and others", stored.other),
        ("weights: vision and audio", stored.other_inputs),
        ("weights, total", stored.total),
        *([("weights read per token", stored.active)] if stored.active < stored.total else []),
        *([("checkpoint on disk", stored.disk)] if stored.disk is not None else []),
        ("key-value cache per token", entry.kv_bytes_per_token),
        ("key-value cache", entry.kv_bytes),
        ("workspace of a prefill", entry.workspace_bytes),
    ]
    return [*(part for part in parts if part[1]), ("total", entry.total_bytes or 0)]


def _verdict(entry: MemoryEstimate, request: EstimateRequest) -> str | None:
    if request.budget is None or entry.total_bytes is None:
        return None
    left = request.budget.bytes - entry.total_bytes
    word = f"fits, {size(left)} left" if entry.fits else f"does not fit: {size(-left)} too much"
    return (
        f"{word}; longest context at batch {request.batch}: {entry.longest_context} tokens; "
        f"largest batch at context {request.context}: {entry.largest_batch}"
    )


def _all(estimates: Sequence[MemoryEstimate], request: EstimateRequest) -> Iterator[Table | str]:
    possible = [entry for entry in estimates if entry.weights is not None]
    totals = [entry.total_bytes or 0 for entry in possible]
    units = (size_unit(totals, DECIMAL), size_unit(totals, BINARY))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    both = " / ".join(unit.name for unit in units)
    names = ["bits", f"weights\n{both}", f"total\n{both}", f"on disk\n{units[0].name}"]
    names += ["fits", "context", "batch"] if request.budget else []
    table.add_column("method", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for entry in possible:
        assert entry.weights is not None
        disk = entry.weights.disk
        cells = [f"{entry.weights.bits_per_weight:.2f}"]
        for value in (entry.weights.total, entry.total_bytes or 0):
            cells.append(" / ".join(significant(value / unit.bytes) for unit in units))
        cells.append(BLANK if disk is None else significant(disk / units[0].bytes))
        if request.budget:
            cells += ["yes" if entry.fits else "no", str(entry.longest_context), str(entry.largest_batch)]
        add_row(table, entry.label, *cells)
    yield table
    if request.budget:
        yield f"context: the longest at batch {request.batch}; batch: the largest at context {request.context}"
    for entry in estimates:
        yield from (f"{entry.label}: {remark}" for remark in (entry.note, entry.unsupported) if remark is not None)


def _line(model: ModelShapes, request: EstimateRequest, entry: MemoryEstimate) -> dict[str, object]:
    parameters = {
        "all": model.parameters,
        "active": model.active,
        "linear": model.decoder,
        "experts": model.expert_parameters,
        "embedding": model.embedding,
        "head": model.head,
        "other": model.norms + model.kept,
        "other_inputs": model.other_inputs,
        "not_loaded": model.unloaded,
    }
    stored = entry.weights
    weights = None if stored is None else {**asdict(stored), "total": stored.total}
    return {
        "model": model.label,
        "parameters": parameters,
        "native_format": model.native.format if model.native else None,
        "method": entry.label,
        "dtype": entry.dtype,
        "context": request.context,
        "batch": request.batch,
        "budget_bytes": request.budget.bytes if request.budget else None,
        "unsupported": entry.unsupported,
        "weight_bytes": weights,
        "kv_bytes_per_token": entry.kv_bytes_per_token,
        "kv_bytes": entry.kv_bytes,
        "workspace_bytes": entry.workspace_bytes,
        "total_bytes": entry.total_bytes,
        "fits": entry.fits,
        "longest_context": entry.longest_context,
        "largest_batch": entry.largest_batch,
        "note": entry.note,
    }
