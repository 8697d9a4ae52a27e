"""Degridding: the same function, other weights."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM

from harness.api.plan import plan
from harness.errors import UnsupportedError
from harness.models.degrid import draw_factors, rescale
from harness.models.gguf.convert import convert
from harness.models.prepare import prepare
from harness.models.sources import inspect
from harness.recipe import Model, load_recipe

pytestmark = pytest.mark.heavy

TOKENS = torch.arange(2, 66).unsqueeze(0)


def degrid(model: Any, seed: int) -> None:
    drawn = draw_factors(model, seed)
    for layer, factors in zip(model.get_decoder().layers, drawn, strict=True):
        rescale(layer, factors, model.config)


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
    divergence = prepare(source.ref, tmp_path).degrid_kl
    assert divergence is not None
    assert divergence < 1e-6
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_an_unknown_architecture_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UnsupportedError, match="not gpt2"):
        draw_factors(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16)), seed=0)


SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 16}
BUILDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama with wide heads": ("llama", {"head_dim": 16}),
    "mistral with windows": ("mistral", {"sliding_window": 16}),
    "qwen2 (biases of q, k and v)": ("qwen2", {}),
    "qwen3 (norms of q and k)": ("qwen3", {}),
    "gemma (1 + w)": ("gemma", {}),
    "gemma2 (post-norms)": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
    "phi3 (fused)": ("phi3", {}),
    "olmo2 (norms behind)": ("olmo2", {}),
    "granite": ("granite", {}),
    "cohere (parallel)": ("cohere", {}),
    "mixtral": ("mixtral", EXPERTS),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "gpt2": ("gpt2", {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 80}),
    "gpt_neox": ("gpt_neox", {}),
}
MOVED = {"llama", "mistral", "qwen2", "qwen3"}


def drawn(kind: str, settings: dict[str, Any]) -> Any:
    """A model whose norms and biases are not their usual ones and noughts, in float64."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def moved_or_refused(model: Any) -> str | None:
    """What degridding really does: nothing is said where the function stays and the weights move."""
    model = model.double()
    original = deepcopy(model)
    weights = dict(original.named_parameters())
    try:
        degrid(model, seed=3)
    except UnsupportedError as error:
        assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
        return str(error)
    before = logprobs(original)
    assert float((before.exp() * (before - logprobs(model))).sum(-1).mean()) < 1e-10
    moved = [name for name, weight in model.named_parameters() if not torch.equal(weight, weights[name])]
    assert len([name for name in moved if name.endswith("_proj.weight")]) == 14  # 7 matrices in each of 2 layers
    return None


@pytest.mark.parametrize("build", BUILDS)
def test_what_planning_says_is_what_degridding_does(build: str, tmp_path: Path) -> None:
    kind, settings = BUILDS[build]
    model = drawn(kind, settings)
    model.save_pretrained(tmp_path)
    said = inspect(Model(id=str(tmp_path), degrid=3), tmp_path).degrid_obstacle
    assert said == moved_or_refused(model)
    assert (said is None) == (kind in MOVED)
    assert inspect(Model(id=str(tmp_path)), tmp_path).degrid_obstacle is None  # where nobody asks for it


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_a_gguf_files_header_says_it_too(kind: str, tmp_path: Path) -> None:
    """Held against the model that transformers makes of the file."""
    settings = GEMMA if kind.startswith("gemma") else {"head_dim": 128} if kind == "qwen3" else {}
    drawn(kind, settings).save_pretrained(tmp_path / "model")  # of qwen3 transformers reads no other width from a file
    convert(tmp_path / "model", tmp_path / "model.gguf", "float32")
    said = inspect(Model(id=str(tmp_path / "model.gguf"), degrid=3), tmp_path).degrid_obstacle
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="model.gguf",
        quantization_config=GgufConfig(gguf_file="model.gguf", dequantize=True),
        dtype=torch.float32,
    ).eval()
    really = moved_or_refused(loaded)
    assert (said is None) == (really is None) == (kind in MOVED)


def test_experts_in_a_gguf_file_that_calls_itself_llama_are_seen(tmp_path: Path) -> None:
    """Mixtral files name the architecture llama."""
    names = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate_inp", "ffn_gate_exps"]
    writer = GGUFWriter(tmp_path / "mixtral.gguf", "llama")
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), dtype=np.float32))
    for name in names:
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = inspect(Model(id=str(tmp_path / "mixtral.gguf"), degrid=0), tmp_path).degrid_obstacle
    assert said == (
        "degrid does not know layers of llama that hold ffn_gate_exps.weight, ffn_gate_inp.weight; leave 'degrid' out"
    )


def test_packed_weights_are_not_moved(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "packed")
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = inspect(Model(id=str(tmp_path / "packed"), degrid=0), tmp_path).degrid_obstacle
    assert said == "degrid moves floating-point weights; this checkpoint is loaded as gptq"


def test_no_run_of_a_model_that_cannot_be_degridded_is_planned_as_possible(tmp_path: Path) -> None:
    """All of them are unsupported in the plan, each with the reason: nothing is loaded to find it out."""
    drawn("olmo2", {}).save_pretrained(tmp_path / "model")
    content = {
        "name": "grid",
        "models": [{"id": str(tmp_path / "model"), "degrid": 0, "label": "olmo"}],
        "methods": ["none", {"rtn": {"bits": 4, "group_size": 16}}],
        "measure": {
            "perplexity": {"context": 64, "windows": 2},
            "divergence": {},
            "throughput": {"prompt_tokens": [8]},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    planned = plan(load_recipe(tmp_path / "recipe.yaml"))
    assert {run.spec.kind for run in planned} == {"prepare", "reference", "quantize", "quality", "performance"}
    assert {run.unsupported for run in planned} == {
        "degrid knows llama, mistral, qwen2, qwen3, not olmo2; leave 'degrid' out"
    }
