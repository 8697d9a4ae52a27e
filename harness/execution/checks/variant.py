"""What is found out about a loaded variant before any figure of it is believed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from harness.core.capability import KernelFamily, LoadedModel, Logits, StoredTensor
from harness.errors import InvalidRunError, UnsupportedError
from harness.execution.checks import reload as probe
from harness.execution.context import Bench
from harness.execution.cuda_kernels import kernel_names
from harness.metrics.memory import checkpoint, checkpoint_files, coverage, weights
from harness.models import stored
from harness.models.headers import GGUF, weight_files
from harness.models.published import quantization_config, shown
from harness.models.scope import LEAST_COVERAGE, in_decoder, matching
from harness.models.stored import StoredLayer

SLOWNESS: Mapping[KernelFamily, int] = {"packed": 0, "dequantize": 1, "plain": 2}
FAMILIES: Mapping[KernelFamily, str] = {
    "packed": "multiply packed codes",
    "dequantize": "unpack before each product",
    "plain": "dense",
}


def take_stock(bench: Bench, model: Logits) -> None:
    """What is stored, what ran, how much of the scope is quantized, and whether an artifact came back as saved.

    Raises InvalidRunError where the variant is not what it claims to be.
    """
    spec = bench.spec
    ledger = model.weight_ledger()
    if spec.memory:
        bench.add(weights(ledger))
        if spec.method.stage != "on_load":  # that has no checkpoint of its own
            bench.add([checkpoint_files([file.stat().st_size for file in weight_files(bench.checkpoint())])])
    bench.facts["layers"] = ", ".join(f"{count} × {name}" for name, count in sorted(model.kernels().items()))
    bench.facts["attention"] = model.attention
    bench.facts["CPU threads"] = model.threads
    if spec.model.native_quantization is not None:
        moved = ", degridded" if spec.model.degrid is not None else ""
        bench.labels.append(f"natively quantized reference: {spec.model.native_quantization}{moved}")
    if bench.method().batch_dependent:
        bench.labels.append("depends on the batch; run one window at a time")
    _note_scope(bench)
    if spec.method.stage != "none":
        layers = _stored_layers(bench)
        _check_coverage(bench, ledger, layers)
        _note_kernels(bench, model)
    if spec.method.stage == "offline":
        saved = bench.cache.needed(spec, "quantize")
        what = "the artifact reloaded differs from the model that was saved"
        difference = probe.compare(saved, model.own_cache_logits, what)
        bench.facts["reload difference"] = str(difference)
        if not difference.rounding:
            bench.labels.append(f"{what}, harmlessly: {difference}")


def note_repacking(bench: Bench, model: LoadedModel) -> None:
    """Records where a library changed what it stores in the first forward pass."""
    stored = sum(entry.value_bytes + entry.scale_bytes for entry in model.weight_ledger())
    running = model.running_bytes()
    if running != stored:
        bench.facts["repacked by the first forward pass"] = f"{stored} to {running} bytes"


def _note_scope(bench: Bench) -> None:
    """What of the recipe's scope this variant leaves out, and overrides that its method cannot apply."""
    if bench.spec.skip:
        bench.labels.append(f"left alone: {', '.join(bench.spec.skip)}")
    for pattern, own in bench.spec.overrides.items():
        for key, value in own.items():
            said = f"{pattern}: {key}={value}"
            bench.labels.append(said if bench.overridable(key) else f"override not applied: {said}")


def _stored_layers(bench: Bench) -> list[StoredLayer]:
    """What the variant's checkpoint stores; nothing where it quantizes while loading."""
    folder = bench.checkpoint()
    if bench.spec.method.stage == "on_load" or weight_files(folder)[0].suffix == GGUF:
        return []  # what a GGUF file stores is what is loaded
    layers = stored.layers(bench.shapes, folder)
    if bench.spec.memory and layers:
        bench.add(checkpoint(layers))
    config = quantization_config(folder)
    if config:
        bench.facts["quantization_config"] = shown(config)
    return layers


def _check_coverage(bench: Bench, ledger: Sequence[StoredTensor], layers: Sequence[StoredLayer]) -> None:
    """Quantized over eligible parameters; the eligible ones are counted in the unquantized checkpoint.

    A checkpoint that is quantized on disk and dense once loaded counts by what it stores, and is labelled.
    """
    scope = set(bench.modules().scope)
    eligible = {n: math.prod(s) for n, s in bench.shapes.items() if in_decoder(n, len(s)) and _module(n) in scope}
    if not eligible:
        raise UnsupportedError("no decoder layers were recognized in the checkpoint's names")
    whole = sum(eligible.values())
    running = {
        _module(entry.name): entry.parameters for entry in ledger if entry.quantized and in_decoder(entry.name, 2)
    }
    held = {layer.name: layer.quantized for layer in layers if layer.quantized}
    trespassed = [name for name in {**running, **held} if matching(name, bench.spec.skip)]
    if trespassed:
        raise InvalidRunError(f"quantized although the recipe skips it: {', '.join(sorted(trespassed)[:5])}")
    beyond = [role for role in ("embedding", "head") if any(e.quantized and e.role == role for e in ledger)]
    if beyond:
        bench.labels.append(f"quantized beyond the {bench.spec.scope}: {', '.join(beyond)}")
    in_memory, on_disk = sum(running.values()) / whole, sum(held.values()) / whole
    fraction = max(in_memory, on_disk)
    bench.add([coverage(min(fraction, 1.0))])
    if not bench.method().stores_codes(bench.params()):
        bench.labels.append("nothing of it is stored quantized: it has the unquantized model's size and speed")
    elif on_disk >= LEAST_COVERAGE > in_memory:
        bench.labels.append("dequantized on load: runs as dense matrices, its memory and speed are not the format's")
    elif bench.method().published and fraction < LEAST_COVERAGE:
        bench.labels.append(f"its publisher quantized {fraction:.1%} of the decoder")
    elif fraction < 1:
        skipped = sorted(name for name in eligible if not {_module(name), stored.layer_of(name)} & {*running, *held})
        bench.facts["not quantized"] = ", ".join(skipped)
        if fraction < LEAST_COVERAGE:
            raise InvalidRunError(
                f"only {fraction:.1%} of the {bench.spec.scope}'s parameters are quantized; "
                f"not: {', '.join(skipped[:5])}"
            )


def _module(name: str) -> str:
    """The module that a parameter belongs to."""
    return name.removesuffix(".weight")


def _note_kernels(bench: Bench, model: Logits) -> None:
    """How the decoder's linear layers multiply, and a label where that is slower than the method is meant to be."""
    families = Counter(model.families().values())
    bench.facts["kernels"] = ", ".join(f"{count} {FAMILIES[kind]}" for kind, count in sorted(families.items()))
    if set(families) == {"plain"} and any(entry.quantized for entry in model.weight_ledger()):
        bench.labels.append("unpacked once: its codes are stored, and dense matrices beside them run")
    if bench.spec.device.startswith("cuda"):
        bench.facts["CUDA kernels"] = "; ".join(kernel_names(lambda: _probe_logits(bench, model)))
    expected = bench.method().kernel
    slower = {
        kind: count
        for kind, count in families.items()
        if expected and kind != "plain" and SLOWNESS[kind] > SLOWNESS[expected]  # of dense ones coverage speaks
    }
    if expected is not None and slower:
        fallen = " and ".join(f"{count} layers {FAMILIES[kind]}" for kind, count in slower.items())
        bench.labels.append(f"kernel fell back: {fallen}, where the method is meant to {FAMILIES[expected]}")


def _probe_logits(bench: Bench, model: Logits) -> object:
    import torch

    with torch.inference_mode():
        return model.logits(probe.tokens(bench.source(), model.vocabulary, bench.spec.model.trust_remote_code))
