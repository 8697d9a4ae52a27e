"""Caches counted without memory, against those that small models of random weights really fill on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from thorough import all_thorough_but
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaModel

from harness.core.model import LayerCache
from harness.models import caches
from harness.models.resolve import described

pytestmark = pytest.mark.heavy

SHAPE = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 4096},
}
STATES = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
SPARSE = {"q_lora_rank": 32, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4, "sliding_window": 12}
BERT = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"vocab_size": 64, "max_position_embeddings": 128, "is_decoder": True},
}
KINDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "megatron-bert", "roformer"), BERT),
    "big_bird": {**BERT, "attention_type": "original_full"},
    "rembert": {**BERT, "input_embedding_size": 32},
    "jetmoe": {**SHAPE, "kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {**STATES, "state_size": 8},
    "falcon_mamba": {**STATES, "state_size": 8},
    "mamba2": {**STATES, "state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "bamba": {**SHAPE, **MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **{**SHAPE, **MAMBA, "layer_types": ["mamba", "attention", "mamba", "mamba"]},
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
    },
    "minimax": {
        **{**SHAPE, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 2},
        **{"num_local_experts": 4, "num_experts_per_tok": 2},
    },
    "longcat_flash": {
        **{"hidden_size": 64, "ffn_hidden_size": 128, "expert_ffn_hidden_size": 32, "num_layers": 2, "vocab_size": 64},
        **{**LATENT, "num_attention_heads": 4, "head_dim": 16},
        **{"n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2},
    },
    "deepseek_v4": {
        **{**SHAPE, **SPARSE, "head_dim": 32, "o_groups": 2, "o_lora_rank": 16, "num_hidden_layers": 6},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"] * 2,
    },
}
LENGTHS = (9, 10, 32, 47)
"""Within and beyond windows; at the end of a block of tokens that become one entry, after it, and between."""


def tensors(held: Any) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for each in held.values() if isinstance(held, dict) else held:
            yield from tensors(each)


def filled(model: Any, tokens: int) -> int:
    """Bytes of the storages behind the floats of the cache after a prompt and one token more."""
    ids = torch.arange(tokens)[None] % 60
    with torch.inference_mode():
        first = model(input_ids=ids[:, :-1], use_cache=True)
        name = "past_key_values" if "past_key_values" in first else "cache_params"
        cache = model(input_ids=ids[:, -1:], use_cache=True, **{name: first[name]})[name]
        cache = getattr(cache, "self_attention_cache", cache)  # the other is that of an encoder
    held = [*(vars(layer) for layer in cache.layers), {k: v for k, v in vars(cache).items() if k != "layers"}]
    floats = [each for each in tensors(held) if each.is_floating_point()]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in floats}.values())


def rwkv_states(model: Any, tokens: int) -> list[torch.Tensor]:
    """Five tensors, each with all layers."""
    ids = torch.arange(tokens)[None] % 60
    return model(input_ids=ids, use_cache=True).state  # type: ignore[no-any-return]


def xlstm_states(model: Any, tokens: int) -> list[torch.Tensor]:
    ids = torch.arange(tokens)[None] % 60
    return list(tensors(model(input_ids=ids, use_cache=True).cache_params.rnn_state))


def recurrent_gemma_states(model: Any, tokens: int) -> list[torch.Tensor]:
    """Keys and values in the cache that the caller hands over, and states in the layers."""
    ids, cache = torch.arange(tokens)[None] % 60, DynamicCache(config=model.config)
    for part in (ids[:, :-1], ids[:, -1:]):
        model(input_ids=part, use_cache=True, past_key_values=cache)
    blocks = [layer.temporal_block for layer in model.model.layers]
    states = [(block.conv1d_state, block.rg_lru.recurrent_states) for block in blocks if hasattr(block, "rg_lru")]
    assert len(states) == 2
    return [*tensors([vars(layer) for layer in cache.layers]), *tensors(states)]


OF_THEIR_OWN: dict[str, tuple[dict[str, Any], Callable[[Any, int], list[torch.Tensor]]]] = {
    "rwkv": ({**STATES, "attention_hidden_size": 64}, rwkv_states),
    "xlstm": ({**STATES, "hidden_size": 128, "num_heads": 4}, xlstm_states),
    "recurrent_gemma": (
        {**SHAPE, "num_hidden_layers": 3, "num_key_value_heads": 1, "attention_window_size": 12, "lru_width": 64},
        recurrent_gemma_states,
    ),
}
"""Models that keep their states in their own way, and how to find them."""


@pytest.mark.parametrize("kind", all_thorough_but(["rwkv"], OF_THEIR_OWN))
def test_states_kept_in_a_model_s_own_way_are_counted_too(kind: str) -> None:
    given, states = OF_THEIR_OWN[kind]
    config = AutoConfig.for_model(kind, **given)
    answer = described(config)
    assert answer["uncounted"] is None
    layers = [LayerCache(*each) for each in answer["caches"]]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for tokens in LENGTHS:
        counted = sum(2 * layer.numbers(tokens) + 4 * layer.float32_state for layer in layers)
        with torch.inference_mode():
            held = [each for each in states(model, tokens) if each.is_floating_point()]
        assert 0 < counted == sum(each.untyped_storage().nbytes() for each in held), f"{tokens} tokens"


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("openai-gpt", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
        ("xlm", {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 64}),
    ],
)
def test_a_model_that_takes_no_cache_keeps_nothing(kind: str, shape: dict[str, Any]) -> None:
    config = AutoConfig.for_model(kind, **shape)
    answer = described(config)
    assert (answer["caches"], answer["uncounted"]) == ([], None)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not {*caches.CACHES} & model(input_ids=torch.arange(8)[None]).keys()
    assert model.prepare_inputs_for_generation(torch.arange(8)[None])["input_ids"].shape[1] >= 8, "the whole text again"


def test_a_cache_of_another_name_is_not_counted() -> None:
    answer = described(AutoConfig.for_model("xlnet", d_model=64, n_layer=2, n_head=4, d_inner=64, vocab_size=64))
    assert answer["caches"] is None
    assert answer["uncounted"]


def test_a_pass_whose_shapes_depend_on_numbers_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaModel, "forward", lambda self, input_ids, **_: input_ids.nonzero())
    answer = described(AutoConfig.for_model("llama", **SHAPE))
    assert answer["caches"] is None
    assert "computes shapes from numbers" in answer["uncounted"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind", ["llama", "gemma3_text", "qwen3_next", *(each for each in KINDS if each != "deepseek_v4"), *OF_THEIR_OWN]
)
def test_norms_that_do_not_compute_change_no_count(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = KINDS.get(kind) or OF_THEIR_OWN.get(kind, (SHAPE, None))[0]
    idle = described(AutoConfig.for_model(kind, **given))["caches"]
    monkeypatch.setattr(caches, "NORM", "no class")
    assert idle
    assert idle == described(AutoConfig.for_model(kind, **given))["caches"]


@pytest.mark.parametrize("kind", all_thorough_but(["mamba2", "deepseek_v4"], KINDS))
def test_a_counted_cache_is_the_one_that_a_real_model_fills(kind: str) -> None:
    config = AutoConfig.for_model(kind, **KINDS[kind])
    answer = described(config)
    assert answer["uncounted"] is None
    layers = [LayerCache(*each) for each in answer["caches"]]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for tokens in LENGTHS:
        counted = sum(2 * layer.numbers(tokens) + 4 * layer.float32_state for layer in layers)
        assert 0 < counted == filled(model, tokens), f"{tokens} tokens"
