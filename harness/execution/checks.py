"""What is found out about a loaded variant before any figure of it is believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.contracts import LoadedModel, StoredTensor
from harness.errors import InvalidRunError, UnsupportedError
from harness.execution.bench import Bench
from harness.metrics.memory import coverage, weights
from harness.models.headers import read_directory
from harness.models.scope import in_decoder

LEAST_COVERAGE = 0.99
"""Below this part of the declared scope, a variant is not what its name says."""
RELOAD_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, between an artifact reloaded and the model that was saved
(or four units in the last place of the dtype it runs in, where that is more)."""
PROBE_TOKENS = 32
PROBE = "probe.safetensors"


def take_stock(bench: Bench, model: LoadedModel) -> None:
    """What is stored, what ran, how much of the scope is quantized, and whether an artifact came back as saved.

    Raises InvalidRunError where the variant is not what it claims to be.
    """
    import torch

    spec = bench.spec
    ledger = model.weight_ledger()
    if spec.memory:
        bench.add(weights(ledger))
    bench.facts["layers"] = ", ".join(f"{count} × {name}" for name, count in sorted(model.kernels().items()))
    bench.facts["attention"] = model.attention
    bench.facts["CPU threads"] = torch.get_num_threads()
    if spec.model.native_quantization is not None:
        moved = ", degridded" if spec.model.degrid is not None else ""
        bench.labels.append(f"natively quantized reference: {spec.model.native_quantization}{moved}")
    if bench.method().batch_dependent:
        bench.labels.append("depends on the batch; run one window at a time")
    if spec.method.stage != "none":
        _check_coverage(bench, ledger)
    if spec.method.stage == "offline":
        _check_reload(bench, model)


def note_repacking(bench: Bench, model: LoadedModel) -> None:
    """Records where a library changed what it stores in the first forward pass."""
    stored = sum(entry.value_bytes + entry.scale_bytes for entry in model.weight_ledger())
    running = model.running_bytes()
    if running != stored:
        bench.facts["repacked by the first forward pass"] = f"{stored} to {running} bytes"


def save_probe(model: Any, vocabulary: int, folder: Path) -> None:
    """Keeps the logits that a model in memory gives a few fixed tokens, to hold its checkpoint against."""
    import torch
    from safetensors.torch import save_file

    with torch.inference_mode():
        logits = model(input_ids=_probe_tokens(vocabulary).to(model.device)).logits
    save_file({"logits": logits.float().cpu().contiguous()}, folder / PROBE)


def _check_coverage(bench: Bench, ledger: Sequence[StoredTensor]) -> None:
    """Quantized over eligible parameters; the eligible ones are counted in the unquantized checkpoint."""
    shapes = read_directory(bench.source()).shapes
    eligible = {name: math.prod(shape) for name, shape in shapes.items() if in_decoder(name, len(shape))}
    if not eligible:
        raise UnsupportedError("no decoder layers were recognized in the checkpoint's names")
    quantized = [entry for entry in ledger if entry.quantized and in_decoder(entry.name, 2)]
    fraction = sum(entry.parameters for entry in quantized) / sum(eligible.values())
    bench.add([coverage(fraction)])
    if fraction < 1:
        skipped = sorted(set(eligible) - {entry.name for entry in quantized})
        bench.facts["not quantized"] = ", ".join(skipped)
        if fraction < LEAST_COVERAGE:
            raise InvalidRunError(
                f"only {fraction:.1%} of the {bench.spec.scope}'s parameters are quantized; "
                f"not: {', '.join(skipped[:5])}"
            )


def _check_reload(bench: Bench, model: LoadedModel) -> None:
    """Raises InvalidRunError where the reloaded artifact computes something else than the model that was saved."""
    import torch
    from safetensors.torch import load_file

    saved = load_file(bench.cache.needed(bench.spec, "quantize") / PROBE)["logits"]
    with torch.inference_mode():
        reloaded = model.logits(_probe_tokens(model.vocabulary))
    difference = float((saved - reloaded.float().cpu()).abs().max() / saved.abs().max())
    bench.facts["reload difference"] = f"{difference:.3g} of the largest logit"
    if not difference <= max(RELOAD_TOLERANCE, 4 * torch.finfo(reloaded.dtype).eps):  # NaN compares as false
        raise InvalidRunError(
            f"the artifact reloaded differs from the model that was saved: {difference:.3g} of the largest logit"
        )


def _probe_tokens(vocabulary: int) -> Any:
    import torch

    return torch.randint(vocabulary, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
