"""What AWQ may scale in a mixture leaves what the model computes as it is, the routing included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.models.balance import Balance, balances
from harness.models.scope import TRIED, decoder_linears
from harness.models.unfuse import unfuse

pytestmark = pytest.mark.heavy

SHAPE: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "num_experts_per_tok": 2},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "vocab_size": 128, "pad_token_id": 0},
}
LATENT: dict[str, Any] = {
    **{"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
}
"""Of DeepSeek-V3, whose first layer is dense here."""


def mixture(kind: str, **changes: Any) -> Any:
    """A tiny random model of unfused experts, which limit what they give (gpt-oss) and have biases where they may."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **(LATENT if "deepseek" in kind else {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    unfuse(model)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(40)[None]).logits  # type: ignore[no-any-return]


def scale(layer: Any, balance: Balance) -> None:
    """Divides what the source gives by factors of up to 10, and multiplies what reads it."""
    source = layer.get_submodule(balance.source)
    factors = torch.randn(source.weight.shape[0]).exp()
    with torch.no_grad():
        source.weight.div_(factors if source.weight.ndim == 1 else factors[:, None])
        if getattr(source, "bias", None) is not None:
            source.bias.div_(factors)
        for name in (*balance.readers, balance.router):
            if name:
                layer.get_submodule(name).weight.mul_(factors)


@pytest.mark.parametrize("kind", sorted(TRIED))
def test_each_may_be_scaled(kind: str) -> None:
    model = mixture(kind)
    expected = logits(model)
    for layer in model.model.layers:
        for balance in balances(layer, kind):
            scale(layer, balance)
            assert (logits(model) - expected).abs().max() < 1e-4 * expected.abs().max(), balance


@pytest.mark.parametrize("kind", sorted(TRIED))
def test_every_linear_layer_reads_what_may_be_scaled(kind: str) -> None:
    """But gpt-oss' down projections, which read what is no product, and those of grouped heads."""
    model = mixture(kind, num_key_value_heads=4 if "deepseek" in kind else 2)
    for number, layer in enumerate(model.model.layers):
        found = list(balances(layer, kind))
        read = [name for balance in found for name in balance.readers]
        assert len(read) == len(set(read))
        names = {name for name, _ in decoder_linears(model) if name.startswith(f"model.layers.{number}.")}
        left = {name.split(".", 3)[3] for name in names} - set(read)
        down = {f"mlp.experts.{each}.down_proj" for each in range(4)} if kind == "gpt_oss" else set()
        assert left == {"self_attn.o_proj"} | down
        [readers_of_the_router] = [balance for balance in found if balance.block == "mlp"]
        dense = kind == "deepseek_v3" and number == 0
        assert readers_of_the_router.router == ("" if dense else "mlp.router" if kind == "gpt_oss" else "mlp.gate")
