"""nvidia-modelopt on the tiny model: its checkpoints reload wrongly, and the reload check must see it."""

from __future__ import annotations

import pytest
import torch
from kernel_families import families
from thorough import all_thorough_but

from harness.methods.modelopt.modelopt import MODELOPT, ModeloptParams
from harness.models import headers, stored

pytestmark = pytest.mark.heavy

LAYERS = 28


@pytest.mark.parametrize("name", all_thorough_but(["fp8"], ["fp8", "int8_smoothquant"]))
def test_a_reload_is_not_what_was_in_memory(make, tiny, name: str) -> None:
    """A live case of silent corruption: transformers loads the codes as weights and drops their scales."""
    kept = "model.layers.1.mlp.down_proj"
    made = make("modelopt", format=name, untouched=("lm_head", kept))
    base, memory = made.plain.double().log_softmax(-1), made.in_memory.double().log_softmax(-1)
    in_memory_kl = float((base.exp() * (base - memory)).sum(-1).mean())
    assert 0 < in_memory_kl < 0.1, "the fake-quantized model in memory is a good one"
    assert made.reload_difference > 1e-3, (
        f"modelopt's {name} now reloads as it was: {made.reload_difference:.3g} of the largest logit, "
        f"KL {in_memory_kl:.3g} in memory and {made.kl:.3g} reloaded"
    )
    assert made.kl > 10 * in_memory_kl
    assert families(made.model) == {"plain": LAYERS}
    assert not any(entry.quantized for entry in made.model.weight_ledger())

    layers = {layer.name: layer for layer in stored.layers(headers.read_directory(tiny).shapes, made.folder)}
    dtypes = {tensor.name: tensor.dtype for tensor in headers.tensors(made.folder)}
    assert dtypes[f"{kept}.weight"] == "F32"
    expected = MODELOPT.bits_per_weight(ModeloptParams(format=name), 32.0, 64)
    expected += 8 * MODELOPT.beside(ModeloptParams(format=name), 32.0, (64, 64)).disk / 64**2
    square = layers["model.layers.0.self_attn.q_proj"]
    assert 8 * (square.value_bytes + square.scale_bytes) / square.parameters == pytest.approx(expected, rel=0.02)
    quantized = {name for name, layer in layers.items() if layer.quantized}
    assert quantized == set(layers) - {kept}


@pytest.mark.thorough
def test_it_calibrates_on_every_row_with_its_mask(make, monkeypatch, calibration) -> None:
    from transformers import LlamaForCausalLM

    seen: list[torch.Tensor] = []
    forward = LlamaForCausalLM.forward

    def record(self, input_ids=None, attention_mask=None, **given):
        if attention_mask is not None:
            seen.append(input_ids * attention_mask)
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **given)

    monkeypatch.setattr(LlamaForCausalLM, "forward", record)
    make("modelopt")
    assert torch.cat(seen).tolist() == [list(row) for row in calibration.tokens]
