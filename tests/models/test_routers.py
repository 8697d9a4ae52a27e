"""What routers do, as the hooks see it, is what transformers itself reports and what the model's own rule chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_llama import small_llama
from transformers import AutoConfig, AutoModelForCausalLM

from harness.core.capability import Routed
from harness.engines.transformers.engine import TransformersModel
from harness.errors import UnsupportedError
from harness.models.routers import expert_parameters, log_distribution, readable_blocks, watching_routers

pytestmark = pytest.mark.heavy

COMMON = {
    **{"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64},
    **{"num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2},
    **{"max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None},
}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"head_dim": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
}
TOKENS = torch.arange(1, 25).remainder(64)[None]


def mixture(model_type: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**COMMON, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate.weight", "router.weight")):
                parameter.normal_()
    return model


def seen(model: Any) -> dict[str, Routed]:
    found: dict[str, Routed] = {}
    with torch.inference_mode(), watching_routers(model, lambda name, routed: found.update({name: routed})):
        model(input_ids=TOKENS)
    return found


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss", "olmoe"])
def test_the_scores_are_those_that_transformers_reports_and_the_chosen_are_the_highest(model_type: str) -> None:
    model = mixture(model_type)
    found = seen(model)
    with torch.inference_mode():
        reported = model(input_ids=TOKENS, output_router_logits=True).router_logits
    assert list(found) == ["layers.0.mlp", "layers.1.mlp"] == list(readable_blocks(model, 64))
    for routed, logits in zip(found.values(), reported, strict=True):
        assert torch.equal(routed.scores, logits)
        assert torch.equal(routed.chosen.sort().values, logits.topk(2).indices.sort().values)
        assert torch.allclose(log_distribution(routed.scores), logits.double().log_softmax(-1))


def test_deepseek_chooses_by_its_own_rule_and_only_after_its_dense_layers() -> None:
    """A bias that only steers the choice makes expert 5 dead, and its group's other experts are still chosen."""
    model = mixture("deepseek_v3", **LATENT)
    model.model.layers[1].mlp.gate.e_score_correction_bias[5] = -10
    (name,) = readable_blocks(model, 64)
    routed = seen(model)[name]
    assert name == "layers.1.mlp"
    assert 5 not in routed.chosen
    assert set((routed.chosen[:, 0] // 4).tolist()) == {0, 1}, "both groups are chosen, one per token"
    assert torch.equal(routed.chosen[:, 0] // 4, routed.chosen[:, 1] // 4)


def test_a_block_that_chooses_after_its_router_is_read_by_what_its_experts_get() -> None:
    model = mixture("jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=1, expert_layer_offset=0)
    for routed in seen(model).values():
        assert torch.equal(routed.chosen.sort().values, routed.scores.topk(2).indices.sort().values)


def test_a_router_that_returns_the_weights_of_the_chosen_experts_alone_cannot_be_read() -> None:
    """As LongCat-Flash's does: no distribution over all experts can be made of them."""
    model = mixture("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, inputs, output: (output[1], output[1], output[2]))
    with pytest.raises(UnsupportedError, match="no more scores than it chooses experts"):
        readable_blocks(model, 64)


class ListedBlock(torch.nn.Module):
    """Experts in a list, as libraries build them; ``chosen_by`` the scores, or not."""

    def __init__(self, chosen_by_scores: bool) -> None:
        super().__init__()
        self.top_k, self.chosen_by_scores = 2, chosen_by_scores
        self.gate = torch.nn.Linear(32, 8, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(8))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows = states.reshape(-1, 32)
        scores = self.gate(rows)
        chosen = (scores if self.chosen_by_scores else -scores).topk(2).indices
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            (hit,) = (chosen == number).any(dim=1).nonzero(as_tuple=True)
            out[hit] += expert(rows[hit])
        return out.reshape(states.shape)


@pytest.mark.parametrize("by_scores", [True, False])
def test_experts_in_a_list_are_read_by_the_highest_scores_only_if_their_rows_confirm_it(by_scores: bool) -> None:
    model = mixture("qwen3_moe")
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.mlp = ListedBlock(by_scores)
    if not by_scores:
        with pytest.raises(UnsupportedError, match="cannot be read"):
            readable_blocks(model, 64)
        return
    assert readable_blocks(model, 64) == ("layers.0.mlp", "layers.1.mlp")
    for routed in seen(model).values():
        assert torch.equal(routed.chosen, routed.scores.topk(2).indices)
    assert expert_parameters(model)["layers.0.mlp"] == 8 * (32 * 32 + 32)


def test_a_router_that_returns_probabilities_is_not_normalized_twice() -> None:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(log_distribution(logits.softmax(-1)), logits.log_softmax(-1))


def test_a_dense_model_has_none_and_one_that_cannot_be_read_says_so() -> None:
    assert readable_blocks(small_llama(), 64) == ()
    assert TransformersModel(small_llama(), None).router_blocks() == ()
    with pytest.raises(UnsupportedError, match="cannot be read"):
        readable_blocks(mixture("llama4_text", interleave_moe_layer_step=1), 64)


def test_an_expert_s_parameters_are_its_share_of_its_block_s() -> None:
    assert expert_parameters(mixture("qwen3_moe")) == dict.fromkeys(("layers.0.mlp", "layers.1.mlp"), 8 * 3 * 32 * 24)
