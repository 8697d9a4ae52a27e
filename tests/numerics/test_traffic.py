"""What a step must read and multiply, beside sums done by hand."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.capability import Product, StoredTensor
from harness.core.engine import LoadRequest
from harness.core.model import Attention, LayerCache
from harness.engines.transformers.engine import load
from harness.models.headers import read_config
from harness.numerics.traffic import PACKED, AttentionShape, Routing, Running, Step, decode_step, prefill, routing

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def tensor(name: str, role: Any, parameters: int, **changes: Any) -> StoredTensor:
    """A float32 tensor unless told otherwise."""
    settings = {"storage": "float32", "value_bytes": 4 * parameters, "scale_bytes": 0, "quantized": False, **changes}
    return StoredTensor(name, role, parameters=parameters, **settings)


EMBEDDING = tensor("model.embed_tokens.weight", "embedding", 800)  # 100 tokens × 8
NORMS = [tensor("model.layers.0.input_layernorm.weight", "other", 8), tensor("model.norm.weight", "other", 8)]
HEAD = tensor("lm_head.weight", "head", 800)
UNTIED = [EMBEDDING, tensor(Q_PROJ, "linear", 64), *NORMS, HEAD]
ONE_LAYER = AttentionShape(Attention((LayerCache(8),), heads=2, kv_heads=1, head_dim=4), kv_element_bytes=4)


def running(ledger: list[StoredTensor], **changes: Any) -> Running:
    stored = sum(entry.value_bytes + entry.scale_bytes for entry in ledger)
    return Running(ledger, **{"vocabulary": 100, "running_bytes": stored, **changes})


def test_a_decoded_step_reads_the_rows_it_gathers_all_else_and_the_cache_at_its_mean_length() -> None:
    step = decode_step(running(UNTIED, attention=ONE_LAYER), {}, batch=2, prompt=10, new=5)
    weights = 2 * 8 * 4 + 64 * 4 + 2 * 8 * 4 + 800 * 4
    cache = sum(2 * (2 * 1 * 4 * 4) * (10 + i) for i in range(5)) / 5
    assert (step.read_bytes, step.kv_bytes) == (weights + cache, cache)
    scores_and_sums = sum(2 * 2 * (2 * 4) * (10 + i + 1) for i in range(5)) / 5
    assert step.operations == {"float32": 2 * (2 * 64 + 2 * 800 + scores_and_sums)}
    assert step.dequantize_bytes == 0


def test_operations_are_of_the_dtype_in_which_each_layer_multiplies_where_the_engine_knows() -> None:
    """Three packed layers: one multiplies in int8, one in float32, and of one the engine knows nothing more."""
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    packed = [tensor(f"{name}.weight", "linear", 64, value_bytes=32, quantized=True, storage="codes") for name in names]
    model = running([EMBEDDING, *packed, *NORMS, HEAD])
    unknown = dict.fromkeys(names, Product("packed"))
    known = {names[0]: Product("packed", "int8"), names[1]: Product("packed", "float32")}
    products = unknown | known | {"lm_head": Product("plain", "bfloat16")}
    assert prefill(model, products, batch=2, prompt=10).operations == {
        "int8": 20 * 2 * 64,
        "float32": 20 * 2 * 64,
        PACKED: 20 * 2 * 64,
        "bfloat16": 2 * 2 * 800,
    }
    assert prefill(model, unknown, 2, 10).operations == {PACKED: 3 * 20 * 2 * 64, "float32": 2 * 2 * 800}


def test_a_prefill_applies_the_head_to_one_token_of_each_row() -> None:
    step = prefill(running(UNTIED, attention=ONE_LAYER), {}, batch=2, prompt=10)
    assert step.read_bytes == 20 * 8 * 4 + 64 * 4 + 2 * 8 * 4 + 800 * 4
    causal = sum(2 * 2 * (2 * 4) * seen for seen in range(1, 11))
    assert step.operations == {"float32": 2 * (10 * 2 * 64 + 2 * 800 + causal)}


def test_a_tied_embedding_is_read_whole_for_the_head() -> None:
    tied = [*UNTIED[:-1], tensor("lm_head.weight", "head", 800, value_bytes=0, tied=True)]
    step = decode_step(running(tied), {}, batch=1, prompt=10, new=1)
    assert step.read_bytes == 800 * 4 + 64 * 4 + 2 * 8 * 4
    assert step.operations == {"float32": 2 * (64 + 800)}


def test_what_is_gathered_or_never_read_is_left_out() -> None:
    extra = [
        tensor("transformer.wpe.weight", "linear", 4096),
        tensor("model.rotary_emb.inv_freq", "other", 4),
        tensor("model.rotary_emb.original_inv_freq", "other", 4),
    ]
    assert decode_step(running([*UNTIED, *extra]), {}, 1, 10, 1) == decode_step(running(UNTIED), {}, 1, 10, 1)


def test_layers_that_unpack_first_write_and_read_what_they_unpack() -> None:
    codes = tensor(Q_PROJ, "linear", 64, storage="PackedLinear", value_bytes=32, scale_bytes=8, quantized=True)
    ledger = [EMBEDDING, codes, *NORMS, HEAD]
    name = Q_PROJ.removesuffix(".weight")
    step = decode_step(running(ledger), {name: Product("dequantize")}, 1, 10, 1)
    assert step.read_bytes == 8 * 4 + (32 + 8) + 2 * 8 * 4 + 800 * 4
    assert step.dequantize_bytes == 2 * 64 * 4
    assert step.operations == {"float32": 2 * (64 + 800)}
    packed = decode_step(running(ledger), {name: Product("packed")}, 1, 10, 1)
    assert (packed.read_bytes, packed.dequantize_bytes) == (step.read_bytes, 0)
    assert packed.operations == {PACKED: 2 * 64, "float32": 2 * 800}
    once = decode_step(running(ledger), {name: Product("plain")}, 1, 10, 1)
    assert once.read_bytes == step.read_bytes - (32 + 8) + 64 * 4
    assert once.dequantize_bytes == 0
    assert decode_step(running(ledger), {}, 1, 10, 1) == packed  # of an unknown kernel: the bound must hold


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("int32", 4), (None, 2), ("int4", 2)])
def test_codes_are_unpacked_to_the_dtype_in_which_they_multiply(dtype: str | None, size: int) -> None:
    """A bfloat16 model, whose own dtype counts where the other is not known."""
    codes = tensor(Q_PROJ, "linear", 64, storage="Int8Tensor", value_bytes=64, quantized=True)
    halves = {"storage": "bfloat16", "value_bytes": 1600}
    model = running([tensor("model.embed_tokens.weight", "embedding", 800, **halves), codes])
    products = {Q_PROJ.removesuffix(".weight"): Product("dequantize", dtype)}
    step = decode_step(model, products, 1, 10, 1)
    assert step.dequantize_bytes == 2 * 64 * size
    assert step.operations == {dtype or "bfloat16": 2 * 64}


def test_what_repacking_saves_is_not_read() -> None:
    whole, repacked = running(UNTIED), running(UNTIED, running_bytes=running(UNTIED).running_bytes - 50)
    grown = running(UNTIED, running_bytes=10**9)
    assert decode_step(repacked, {}, 1, 10, 1).read_bytes == decode_step(whole, {}, 1, 10, 1).read_bytes - 50
    assert decode_step(grown, {}, 1, 10, 1) == decode_step(whole, {}, 1, 10, 1)


@pytest.mark.parametrize(("experts", "active", "tokens"), [(4, 2, 1), (4, 2, 2), (4, 1, 3), (5, 2, 3), (3, 3, 2)])
def test_the_expected_number_of_experts_is_the_mean_over_all_choices(experts: int, active: int, tokens: int) -> None:
    choices = list(combinations(range(experts), active))
    unions = [len(set().union(*chosen)) for chosen in product(choices, repeat=tokens)]
    assert Routing(experts, active).distinct(tokens) == pytest.approx(sum(unions) / len(unions))


def test_of_a_mixture_the_active_experts_are_read_and_multiplied() -> None:
    mixture = [
        *UNTIED,
        tensor("model.layers.0.mlp.gate.weight", "linear", 32),
        tensor("model.layers.0.mlp.shared_expert.up_proj.weight", "linear", 16),
        tensor(EXPERTS, "linear", 4 * 80),  # 3-D: four experts in one parameter
        tensor("model.layers.0.mlp.experts.0.down_proj.weight", "linear", 40),
    ]
    step = decode_step(running(mixture, routing=Routing(4, 2)), {}, batch=2, prompt=10, new=1)
    dense = decode_step(running(UNTIED), {}, batch=2, prompt=10, new=1)
    assert step.read_bytes == dense.read_bytes + 4 * (32 + 16) + 4 * (4 * 80 + 40) * 3 / 4
    assert step.operations["float32"] == dense.operations["float32"] + 2 * 2 * (32 + 16 + (4 * 80 + 40) / 2)
    unknown = decode_step(running(mixture), {}, batch=2, prompt=10, new=1)
    assert unknown.read_bytes == dense.read_bytes + 4 * (32 + 16)


def test_measured_shares_replace_even_ones_in_their_layer() -> None:
    """Tokens that choose by unlike shares meet fewer experts than even shares give; one token meets k by both."""
    measured = Routing(4, 2, {0: (1.0, 0.5, 0.5, 0.0)})
    assert measured.distinct(2, 0) == 1 + 2 * (1 - 0.5**2)
    assert measured.distinct(2, 1) == Routing(4, 2).distinct(2) > measured.distinct(2, 0)
    assert measured.distinct(1, 0) == measured.distinct(1, 1) == 2
    layers = [tensor(f"model.layers.{layer}.mlp.experts.down_proj", "linear", 400) for layer in range(2)]
    dense = decode_step(running(UNTIED), {}, batch=2, prompt=10, new=1).read_bytes
    step = decode_step(running([*UNTIED, *layers], routing=measured), {}, batch=2, prompt=10, new=1)
    assert step.read_bytes == pytest.approx(dense + 4 * 400 * (2.5 + 3) / 4)


def test_a_mixture_is_read_from_its_configuration() -> None:
    assert routing({"num_local_experts": 8, "num_experts_per_tok": 2}) == Routing(8, 2)
    assert routing({"text_config": {"num_experts": 128, "num_experts_per_tok": 8}}) == Routing(128, 8)
    assert routing({"n_routed_experts": 64, "num_experts_per_tok": 6}) == Routing(64, 6)
    assert routing({"num_experts": 128, "top_k_experts": 8}) == Routing(128, 8)
    assert routing({"moe_num_experts": 64, "moe_k": 6}) == Routing(64, 6)
    assert routing({"hidden_size": 8}) is None


@given(st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 60))
def test_a_window_bounds_what_each_token_of_a_prompt_sees(windows: list[int | None], tokens: int) -> None:
    shape = AttentionShape(Attention(tuple(LayerCache(8, window) for window in windows), 3, 1, 4), kv_element_bytes=2)
    seen = [min(place + 1, window or tokens) for window in windows for place in range(tokens)]
    assert shape.prompt_operations(tokens) == 4 * 3 * 4 * sum(seen)
    assert shape.read_bytes(tokens) == 2 * 4 * 2 * sum(min(tokens, window or tokens) for window in windows)


@pytest.mark.heavy
def test_of_the_tiny_model(tiny: Path) -> None:
    """By hand from its configuration: 4 layers of width 64, 4 heads, 2 of keys, of 16; 192 inside; 512 tokens, tied."""
    config = read_config(tiny)
    model = load(LoadRequest(tiny, "float32", "cpu"))
    attention = AttentionShape(Attention((LayerCache(64),) * 4, heads=4, kv_heads=2, head_dim=16), kv_element_bytes=4)
    counted = Running(model.weight_ledger(), 512, model.running_bytes(), routing(config), attention)
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 192
    weights = 4 * (4 * layer + 4 * 2 * 64 + 64 + 512 * 64)
    cache = 4 * 2 * 2 * 16 * 4 * 71.5
    operations = 2 * (4 * layer + 512 * 64) + 4 * 4 * (4 * 16) * 72.5
    assert decode_step(counted, model.products(1), 1, 64, 16) == Step(
        weights + cache, cache, 0.0, {"float32": operations}
    )
    assert weights == 919_808
