"""What each kind of run does, inside its own process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import LoadedModel, QuantizeJob, StoredTensor, Windows
from harness.errors import InvalidRunError
from harness.execution import reference as references
from harness.execution.bench import Bench
from harness.execution.forward import observe
from harness.metrics.memory import coverage, weights
from harness.models.headers import read_directory
from harness.models.scope import in_decoder
from harness.record import Measurement
from harness.registry import method, metric
from harness.spec import Kind

LEAST_COVERAGE = 0.99
"""Below this part of the declared scope, a variant is not what its name says."""
RELOAD_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, between an artifact reloaded and the model that was saved."""
PROBE_TOKENS = 32
PROBE = "probe.safetensors"
NOISE_FLOOR_BATCH = 2


def prepare(bench: Bench, out: Path) -> None:
    """Makes the model's checkpoint: a GGUF dequantized, weights degridded, or random weights drawn."""
    from harness.models.prepare import prepare as make

    with bench.phase("prepare"):
        divergence = make(bench.spec.model, out)
    if divergence is not None:
        bench.add([Measurement("degrid_kl", 1, "nat", "lower", "exact", (divergence,))])


def quantize(bench: Bench, out: Path) -> None:
    """Lets the method quantize, and keeps a few logits of the model in memory to hold the reloaded one against."""
    import torch
    from safetensors.torch import save_file

    spec, source = bench.spec, bench.source()
    with bench.phase("import"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        chosen = bench.method()
    assert chosen.quantize is not None

    def load() -> Any:
        arguments: dict[str, Any] = {"attn_implementation": spec.attention} if spec.attention else {}
        return AutoModelForCausalLM.from_pretrained(
            source,
            dtype=spec.model.dtype,
            device_map=spec.device,
            use_safetensors=True,
            trust_remote_code=spec.model.trust_remote_code,
            **arguments,
        )

    torch.manual_seed(spec.seed)
    with bench.phase("quantize"):
        model = chosen.quantize(
            QuantizeJob(bench.params(), source, out, spec.device, spec.model.dtype, spec.seed, load)
        )
    with bench.phase("probe"), torch.inference_mode():
        logits = model(input_ids=_probe_tokens(model.config.vocab_size).to(model.device)).logits
        save_file({"logits": logits.float().cpu().contiguous()}, out / PROBE)
    if any(source.glob("tokenizer*")):
        AutoTokenizer.from_pretrained(source, trust_remote_code=spec.model.trust_remote_code).save_pretrained(out)


def reference(bench: Bench, out: Path) -> None:
    """Runs the baseline over the text, keeps its states, and measures what another batch size alone changes."""
    import torch

    spec = bench.spec
    model = bench.load()
    windows = _windows(bench, model)
    with bench.phase("forward"), torch.inference_mode():
        references.write(model, windows, out)
    if len(windows.tokens) >= NOISE_FLOOR_BATCH:
        first = Windows(windows.tokens[:NOISE_FLOOR_BATCH], {**windows.protocol, "batch_size": NOISE_FLOOR_BATCH})
        floor = metric("divergence").make(first, "kl_noise_floor")
        with bench.phase("noise floor"), torch.inference_mode():
            kept = references.Reference(out, spec.device)
            observe(model, first, [floor], kept, NOISE_FLOOR_BATCH)
        bench.add(floor.finish()[:1])


def quality(bench: Bench, out: Path) -> None:
    """Perplexity and divergence of a variant in one forward pass over the text, and what it stores."""
    import torch

    spec = bench.spec
    model = bench.load()
    _take_stock(bench, model)
    windows = _windows(bench, model)
    observers = [metric("perplexity").make(windows)]
    kept = None
    if spec.divergence:
        kept = references.Reference(bench.cache.needed(spec, "reference"), spec.device)
        kept.check(windows)
        observers.append(metric("divergence").make(windows))
    with bench.phase("forward"), torch.inference_mode():
        observe(model, windows, observers, kept)
    for observer in observers:
        bench.add(observer.finish())
    _note_repacking(bench, model)


def performance(bench: Bench, out: Path) -> None:
    """Prefill and decode speed of a variant in a fresh process."""
    spec = bench.spec
    model = bench.load()
    if spec.perplexity is None:  # no quality run counts them
        _take_stock(bench, model)
    if spec.throughput is not None:
        with bench.phase("generate"):
            bench.add(metric("throughput").make(model, spec.throughput, spec.seed))
    _note_repacking(bench, model)


JOBS: Mapping[Kind, Callable[[Bench, Path], None]] = {
    "prepare": prepare,
    "quantize": quantize,
    "reference": reference,
    "quality": quality,
    "performance": performance,
}


def _windows(bench: Bench, model: LoadedModel) -> Windows:
    from harness.text.windows import cut

    assert bench.spec.perplexity is not None
    with bench.phase("text"):
        return cut(bench.spec.perplexity, model.tokenizer)


def _take_stock(bench: Bench, model: LoadedModel) -> None:
    """What is stored, how much of the scope is quantized, and whether an artifact came back as it was saved."""
    spec = bench.spec
    ledger = model.weight_ledger()
    if spec.memory:
        bench.add(weights(ledger))
    bench.facts["layers"] = ", ".join(f"{count} × {name}" for name, count in sorted(model.kernels().items()))
    if spec.model.native_quantization is not None:
        moved = ", degridded" if spec.model.degrid is not None else ""
        bench.labels.append(f"natively quantized reference: {spec.model.native_quantization}{moved}")
    if method(spec.method.name).batch_dependent:
        bench.labels.append("depends on the batch; run one window at a time")
    if spec.method.stage != "none":
        _check_coverage(bench, ledger)
    if spec.method.stage == "offline":
        _check_reload(bench, model)


def _check_coverage(bench: Bench, ledger: Sequence[StoredTensor]) -> None:
    """Quantized over eligible parameters; the eligible ones are counted in the unquantized checkpoint."""
    eligible: dict[str, int] = {}
    for name, shape in read_directory(bench.source()).shapes.items():
        if in_decoder(name, len(shape)):
            eligible[name] = math.prod(shape)
    quantized = sum(entry.parameters for entry in ledger if entry.quantized and in_decoder(entry.name, 2))
    fraction = quantized / sum(eligible.values())
    bench.add([coverage(fraction)])
    skipped = sorted(set(eligible) - {entry.name for entry in ledger if entry.quantized})
    if skipped:
        bench.facts["not quantized"] = ", ".join(skipped)
    if fraction < LEAST_COVERAGE:
        raise InvalidRunError(
            f"only {fraction:.1%} of the {bench.spec.scope}'s parameters are quantized; not: {', '.join(skipped[:5])}"
        )


def _check_reload(bench: Bench, model: LoadedModel) -> None:
    """Raises InvalidRunError where the reloaded artifact computes something else than the model that was saved."""
    import torch
    from safetensors.torch import load_file

    saved = load_file(bench.cache.needed(bench.spec, "quantize") / PROBE)["logits"]
    with torch.inference_mode():
        reloaded = model.logits(_probe_tokens(model.vocabulary)).float().cpu()
    difference = float((saved - reloaded).abs().max() / saved.abs().max())
    bench.facts["reload difference"] = f"{difference:.3g} of the largest logit"
    if not difference <= RELOAD_TOLERANCE:  # NaN compares as false
        raise InvalidRunError(
            f"the artifact reloaded differs from the model that was saved: {difference:.3g} of the largest logit"
        )


def _note_repacking(bench: Bench, model: LoadedModel) -> None:
    stored = sum(entry.value_bytes + entry.scale_bytes for entry in model.weight_ledger())
    running = model.running_bytes()
    if running != stored:
        bench.facts["repacked by the first forward pass"] = f"{stored} to {running} bytes"


def _probe_tokens(vocabulary: int) -> Any:
    import torch

    return torch.randint(vocabulary, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
