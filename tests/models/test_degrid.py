"""Degridding: the same function, other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harness.errors import UnsupportedError
from harness.models.degrid import degrid
from harness.models.prepare import prepare
from harness.models.sources import inspect
from harness.recipe import Model

TOKENS = torch.arange(2, 66).unsqueeze(0)


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=TOKENS).logits.double().log_softmax(-1)


def test_the_function_stays_and_the_weights_move(tiny: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    moved = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    degrid(moved, seed=0)
    base = logprobs(plain)
    assert float((base.exp() * (base - logprobs(moved))).sum(-1).mean()) < 1e-6
    for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        before, after = (model.model.layers[0].get_submodule(name).weight for model in (plain, moved))
        ratio = (after / before).detach()
        assert ratio.min() < 0.95
        assert ratio.max() > 1.05
        assert ratio.min() >= 2**-0.26
        assert ratio.max() <= 2**0.26


def test_a_gridded_model_stops_being_lossless(tiny: Path) -> None:
    """Weights put on a 4-bit grid lose nothing to 4-bit rounding, until they are degridded."""
    from harness.numerics import affine

    def round_trip(weight: torch.Tensor) -> torch.Tensor:
        q = affine.quantize(weight, 4, 32, symmetric=False)
        return affine.dequantize(q.codes, q.scale, q.zero_point, torch.float32)

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.copy_(round_trip(parameter))
    weight = model.model.layers[1].mlp.up_proj.weight.detach().clone()
    torch.testing.assert_close(round_trip(weight), weight, atol=2e-3, rtol=0)
    degrid(model, seed=0)
    moved = model.model.layers[1].mlp.up_proj.weight.detach()
    lost = (round_trip(moved) - moved).abs().max()
    assert lost > 10 * (round_trip(weight) - weight).abs().max()


def test_grouped_query_heads_and_biases_keep_the_function() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=80,
        attention_bias=True,
        mlp_bias=True,
    )
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    before = logprobs(model)
    degrid(model, seed=5)
    assert float((before.exp() * (before - logprobs(model))).sum(-1).mean()) < 1e-6


def test_a_model_in_a_short_dtype_is_degridded_before_it_is_rounded(tiny: Path, tmp_path: Path) -> None:
    source = inspect(Model(id=str(tiny), dtype="bfloat16", degrid=0), tiny)
    divergence = prepare(source.ref, tmp_path)
    assert divergence is not None
    assert divergence < 1e-6
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_an_unknown_architecture_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UnsupportedError, match="not gpt2"):
        degrid(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16)), seed=0)
