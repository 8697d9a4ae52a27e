"""Checks that a loaded variant is what it claims to be: its coverage, its kernels, and that it reloads unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from harness.core.capability import (
    Explains,
    LoadedModel,
    Logits,
    ShowsDtype,
    ShowsScales,
    StoredTensor,
    Streamed,
)
from harness.core.format import TRANSFORMERS_FORMAT, Codes
from harness.core.label import LabelCode
from harness.core.model import MAIN_ENGINE
from harness.errors import InvalidRunError, UnsupportedError
from harness.execution.checks import reload as probe
from harness.execution.checks.dtype import label_dtype
from harness.execution.checks.kernels import record_kernels
from harness.execution.checks.scales import verify_scales
from harness.execution.context import Context
from harness.metrics.memory import checkpoint, checkpoint_files, coverage, weights
from harness.models import stored
from harness.models.headers import GGUF, weight_files
from harness.models.published import codes, quantization_config, shown
from harness.models.scales import check_stored
from harness.models.scope import LEAST_COVERAGE, in_decoder, matching, reads_other_inputs, stack_of
from harness.models.stored import StoredLayer

OTHER_ENGINE_KL = 0.1
"""Nats per token that an artifact may differ on another engine than the one that it was saved from. Measured between
vLLM's kernels and transformers, SmolLM2-135M in bfloat16 on a CPU without AMX: 0.002 with 4-bit weights, 0.017 with
float8 and 0.041 with int8 weights and inputs; predictions of unlike positions are 5 apart."""


def verify_variant(context: Context, model: Logits) -> None:
    """Records what is stored, what ran and how much is quantized; compares an artifact with the model that was saved.

    Raises InvalidRunError if the variant is not what it claims to be.
    """
    spec = context.spec
    ledger = model.weight_ledger()
    if spec.job.conditions.memory:
        context.add(weights(ledger))
        if not spec.quantizes_on_load:  # which writes no checkpoint
            context.add([checkpoint_files([file.stat().st_size for file in weight_files(context.checkpoint())])])
    context.fact("layers", **model.kernels())
    context.fact("attention", implementation=model.attention)
    context.fact("cpu_threads", threads=model.threads)
    native = spec.model.native_quantization
    if native is not None:
        context.label("natively_quantized", quantization=native, degridded=spec.model.degrid is not None)
    if context.method().batch_dependent:
        context.label("batch_dependent")
    if others := [entry for entry in ledger if reads_other_inputs(entry.name)]:
        held = sum(entry.value_bytes + entry.scale_bytes for entry in others)
        context.fact("other_inputs", parameters=sum(entry.parameters for entry in others), stored_bytes=held)
    _label_scope(context)
    if native is not None or spec.method.stage == "published":  # others were checked when they were made
        verify_scales(context, partial(check_stored, context.checkpoint()))
    elif spec.quantizes_on_load and isinstance(model, ShowsScales):
        verify_scales(context, model.check_scales)
    if spec.method.stage != "none":
        layers = _stored_layers(context)
        _check_coverage(context, ledger, layers)
        record_kernels(context, model)
    if isinstance(model, Explains):
        record_arithmetic(context, model, ledger)
    if isinstance(model, ShowsDtype):
        label_dtype(context, model)
    if "quantize" in spec.needs:
        compare_with_saved(context, model)


def compare_with_saved(context: Context, model: Logits) -> None:
    """Compares an artifact with the model that was saved; records the difference, and labels one beyond rounding.

    An engine other than the one that made it has kernels of its own, so more may differ there. Raises InvalidRunError
    if the difference is larger than kernels explain.
    """
    spec = context.spec
    elsewhere = spec.engine != MAIN_ENGINE and context.method().writes == TRANSFORMERS_FORMAT
    limit = OTHER_ENGINE_KL if elsewhere else probe.HARMLESS_KL
    what = "the artifact reloaded differs from the model that was saved"
    difference = probe.compare(context.cache.needed(spec, "quantize"), model.own_cache_logits, what, limit)
    context.fact("reload_difference", **difference.figures)
    if elsewhere and difference.kl > probe.HARMLESS_KL:
        context.label("engine_differs", engine=spec.engine, **difference.figures)
    elif not difference.rounding:
        context.label("reload_differs", **difference.figures)


def record_repacking(context: Context, model: LoadedModel) -> None:
    """Records the bytes as stored and as running, if kernels keep other bytes than the library stores."""
    stored = sum(entry.value_bytes + entry.scale_bytes for entry in model.weight_ledger())
    running = model.running_bytes()
    if running != stored:
        context.fact("repacked", stored_bytes=stored, running_bytes=running)


def record_streaming(context: Context, model: LoadedModel) -> None:
    """Labels a streamed run, and records what its passes read."""
    if isinstance(model, Streamed):
        context.label("streamed")
        context.fact("streaming", **asdict(model.streaming_cost()))


def _label_scope(context: Context) -> None:
    """Labels what the recipe's scope skips and overrides, and the overrides that the method does not support."""
    if context.spec.variant.skip:
        context.label("left_alone", modules=tuple(context.spec.variant.skip))
    for pattern, own in context.spec.variant.overrides.items():
        for key, value in own.items():
            code: LabelCode = "overridden" if context.overridable(key) else "override_not_applied"
            context.label(code, pattern=pattern, parameter=key, value=value)


def _stored_layers(context: Context) -> list[StoredLayer]:
    """What the variant's checkpoint stores; nothing if it is quantized while loading."""
    folder = context.checkpoint()
    if context.spec.quantizes_on_load or weight_files(folder)[0].suffix == GGUF:
        return []  # what a GGUF file stores is what is loaded
    layers = stored.layers(context.shapes, folder)
    if context.spec.job.conditions.memory and layers:
        context.add(checkpoint(layers))
    config = quantization_config(folder)
    if config:
        context.fact("quantization_config", text=shown(config))
    return layers


def _check_coverage(context: Context, ledger: Sequence[StoredTensor], layers: Sequence[StoredLayer]) -> None:
    """Measures quantized over eligible parameters; the eligible ones are counted in the unquantized checkpoint.

    A checkpoint that is quantized on disk but dense once loaded is counted by what it stores, and labelled.
    Raises InvalidRunError if skipped modules are quantized or too few others are, and UnsupportedError if the names of
    the checkpoint's tensors show no decoder.
    """
    eligible = context.modules().sizes
    if not eligible:
        raise UnsupportedError("no decoder layers were recognized in the checkpoint's names")
    whole = sum(eligible.values())
    running = {
        _module(entry.name): entry.parameters for entry in ledger if entry.quantized and in_decoder(entry.name, 2)
    }
    held = {layer.name: layer.quantized for layer in layers if layer.quantized}
    skipped_yet_quantized = [name for name in {**running, **held} if matching(name, context.spec.variant.skip)]
    if skipped_yet_quantized:
        raise InvalidRunError(f"quantized although the recipe skips it: {', '.join(sorted(skipped_yet_quantized)[:5])}")
    beyond = tuple(role for role in ("embedding", "head") if any(e.quantized and e.role == role for e in ledger))
    if any(entry.quantized and reads_other_inputs(entry.name) for entry in ledger):
        beyond = (*beyond, "vision and audio")
    if beyond:
        context.label("beyond_scope", scope=context.spec.variant.scope, roles=beyond)
    in_memory, on_disk = sum(running.values()) / whole, sum(held.values()) / whole
    fraction = max(in_memory, on_disk)
    context.add([coverage(min(fraction, 1.0))])
    if not context.method().stores_codes(context.params()):
        context.label("stored_dense")
    elif on_disk >= LEAST_COVERAGE > in_memory:
        context.label("dequantized_on_load")
    elif context.method().published and fraction < LEAST_COVERAGE:
        context.label("publisher_coverage", fraction=fraction)
    elif fraction < 1:
        plain = {name for layer in layers for name in layer.plain}
        left = (name for name in eligible if name in plain or stored.layer_of(name) not in held)
        skipped = sorted(name for name in left if name not in running and stack_of(name)[0] not in running)
        context.fact("not_quantized", tensors=tuple(skipped))
        if fraction < LEAST_COVERAGE:
            raise InvalidRunError(
                f"only {fraction:.1%} of the {context.spec.variant.scope}'s parameters are quantized; "
                f"not: {', '.join(skipped[:5])}"
            )


def _module(name: str) -> str:
    """The module that a parameter belongs to."""
    return name.removesuffix(".weight")


def record_arithmetic(context: Context, model: Explains, ledger: Sequence[StoredTensor]) -> None:
    """Records how the decoder's linear layers multiply; labels what the variant's dtype or format does not ask for."""
    ran = {name: each for name, each in model.arithmetic().items() if in_decoder(f"{name}.weight", 2)}
    kinds = Counter(f"{each.activations} inputs, {each.products} products" for each in ran.values())
    context.fact("arithmetic", **dict(kinds))
    dtype = context.method().run_dtype(context.params(), context.spec.model.dtype)
    widened = sum(each.products == "float32" for each in ran.values())
    if widened and dtype != "float32":
        context.label("computed_in_float32", layers=widened, dtype=dtype)
    declared = _declared_activations(context, dtype)
    quantized = {_module(entry.name) for entry in ledger if entry.quantized}
    unlike = Counter(
        each.activations for name, each in ran.items() if name in quantized and declared != each.activations
    )
    for activations, layers in unlike.items() if declared is not None else ():
        code: LabelCode = "activations_kept" if activations == dtype else "activations_rounded"
        context.label(code, layers=layers, to=activations, declared=declared)


def _declared_activations(context: Context, dtype: str) -> str | None:
    """The dtype that the variant's format has inputs of quantized layers in; None if the format is not declared."""
    spec = context.spec
    if spec.method.published is not None or spec.model.native_quantization is not None:
        stored_codes: Codes | None = codes(quantization_config(context.checkpoint()))
    else:
        stored_codes = context.method().stored(context.params())
    if stored_codes is None or stored_codes.number is None:
        return None
    return stored_codes.activations.dtype if stored_codes.activations else dtype
