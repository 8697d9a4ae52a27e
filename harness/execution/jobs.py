"""What each kind of run does, inside its own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.contracts import LoadedModel, QuantizeJob, Windows
from harness.errors import UnsupportedError
from harness.execution import reference as references
from harness.execution.bench import Bench
from harness.execution.checks import note_repacking, save_probe, take_stock
from harness.execution.forward import observe
from harness.record import Measurement
from harness.registry import metric
from harness.spec import Kind

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
    with bench.phase("probe"):
        save_probe(model, model.config.get_text_config().vocab_size, out)
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
        scored = NOISE_FLOOR_BATCH * (len(windows.tokens[0]) - 1)
        changed = {"windows": NOISE_FLOOR_BATCH, "tokens_scored": scored, "batch_size": NOISE_FLOOR_BATCH}
        first = Windows(windows.tokens[:NOISE_FLOOR_BATCH], {**windows.protocol, **changed})
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
    take_stock(bench, model)
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
    note_repacking(bench, model)


def performance(bench: Bench, out: Path) -> None:
    """Prefill and decode speed of a variant in a fresh process."""
    spec = bench.spec
    model = bench.load()
    if spec.perplexity is None:  # no quality run counts them
        take_stock(bench, model)
    if spec.throughput is not None:
        with bench.phase("generate"):
            bench.add(metric("throughput").make(model, spec.throughput, spec.seed))
    note_repacking(bench, model)


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
    if model.tokenizer is None:
        raise UnsupportedError("perplexity needs a tokenizer, and the checkpoint holds none")
    with bench.phase("text"):
        return cut(bench.spec.perplexity, model.tokenizer)
