"""Unfused experts compute what the fused ones do, on a model, on one layer alone, and on a skeleton."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.models.headers import read_directory
from harness.models.scope import UNFUSES, decoder_linears, modules
from harness.models.unfuse import UnfusedExperts, unfuse

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
TOKENS = torch.arange(40)[None]


def made(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny random mixture whose experts (biases too) matter for its logits."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **(LATENT if "deepseek" in kind else {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.normal_(std=0.3)
    return model


def logits(model: Any, implementation: str | None = None) -> torch.Tensor:
    if implementation is not None:
        model.set_experts_implementation(implementation)
    with torch.inference_mode():
        return model(input_ids=TOKENS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", sorted(UNFUSES))
def test_in_float32_the_logits_are_the_fused_ones_bit_by_bit(kind: str) -> None:
    model = made(kind)
    fused, eager = logits(model, "grouped_mm"), logits(model, "eager")
    expected = 1 if "deepseek" in kind else 2  # the first layer of those is dense
    assert unfuse(model) == expected
    assert torch.equal(logits(model), fused)
    assert (logits(model) - eager).abs().max() < 1e-5
    assert unfuse(model) == 0, "what is unfused stays so"


@pytest.mark.parametrize("kind", sorted(UNFUSES))
def test_in_bfloat16_they_differ_by_the_rounding_of_a_sum(kind: str) -> None:
    """A bias is added before or after rounding, depending on the kernel: gpt-oss' experts have biases."""
    model = made(kind, torch.bfloat16)
    fused = logits(model, "grouped_mm").float()
    unfuse(model)
    difference = (logits(model).float() - fused).abs().max() / fused.abs().max()
    assert difference <= (0.02 if kind == "gpt_oss" else 0)


def test_each_expert_gets_its_rows_of_the_fused_matrix() -> None:
    """gpt-oss: gate and up alternate, and matrices are (inputs, outputs)."""
    model = made("gpt_oss")
    fused = copy.deepcopy(model.model.layers[1].mlp.experts)
    unfuse(model)
    own = model.model.layers[1].mlp.experts.get_submodule("2")
    assert torch.equal(own.gate_proj.weight, fused.gate_up_proj[2, :, 0::2].T)
    assert torch.equal(own.up_proj.weight, fused.gate_up_proj[2, :, 1::2].T)
    assert torch.equal(own.gate_proj.bias, fused.gate_up_proj_bias[2, 0::2])
    assert torch.equal(own.down_proj.weight, fused.down_proj[2].T)
    assert torch.equal(own.down_proj.bias, fused.down_proj_bias[2])
    mixtral = made("mixtral")
    gate_up = mixtral.model.layers[0].mlp.experts.gate_up_proj.detach().clone()
    unfuse(mixtral)
    other: Any = mixtral.model.layers[0].mlp.experts.get_submodule("3")
    assert torch.equal(torch.cat([other.gate_proj.weight, other.up_proj.weight]), gate_up[3])


def test_one_layer_alone_and_a_skeleton() -> None:
    model = made("gpt_oss")
    whole = logits(model)
    assert [unfuse(layer) for layer in model.model.layers] == [1, 1]
    assert torch.equal(logits(model), whole)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    unfuse(skeleton)
    held, empty = model.state_dict(), skeleton.state_dict()
    assert {name: tensor.shape for name, tensor in held.items()} == {n: t.shape for n, t in empty.items()}
    assert all(tensor.is_meta for name, tensor in empty.items() if ".experts." in name)
    skeleton.load_state_dict(held, assign=True)


def test_experts_that_all_stay_as_they_are_stay_fused() -> None:
    model = made("mixtral")
    names = [f"model.layers.{n}.mlp.experts.{e}.{p}_proj" for n in (0, 1) for e in range(4) for p in PARTS]
    assert unfuse(model, names) == 0
    assert unfuse(model, names[1:]) == 2


PARTS = ("gate", "up", "down")


@pytest.fixture(scope="module", params=sorted(UNFUSES))
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    model = made(request.param)
    model.save_pretrained(folder)
    unfuse(model)
    return folder, model


def test_the_scope_of_a_checkpoint_names_the_layers_that_its_experts_become(stored: tuple[Path, Any]) -> None:
    """However the checkpoint calls them: Mixtral's experts have w1, w2 and w3, and gpt-oss' are stored fused."""
    folder, model = stored
    scope = modules(read_directory(folder).shapes)
    linears = dict(decoder_linears(model))
    assert set(scope.scope) == set(linears)
    assert scope.sizes == {name: linear.weight.numel() for name, linear in linears.items()}
    routers = [name for name, module in model.named_modules() if name.endswith((".gate", ".router"))]
    assert routers
    assert {*routers, "lm_head", "model.embed_tokens"} <= set(scope.untouched)


def test_a_pattern_means_both_names(stored: tuple[Path, Any]) -> None:
    folder, _ = stored
    shapes = read_directory(folder).shapes
    every, left = set(modules(shapes).scope), modules(shapes, ["*.experts.1.*"])
    assert every - set(left.scope) == {name for name in every if ".experts.1." in name}
    assert every - set(left.scope) <= set(left.untouched)
    none = modules(shapes, ["*.experts*"])
    assert not any(".experts." in name for name in none.scope)
    if any(".w1." in name for name in shapes):
        assert modules(shapes, ["*.w1"]).scope == modules(shapes, ["*.experts.*.gate_proj"]).scope


def test_what_is_hooked_and_copied_is_still_the_model(stored: tuple[Path, Any]) -> None:
    _, model = stored
    seen: list[int] = []
    experts = next(module for module in model.modules() if isinstance(module, UnfusedExperts))
    for number in range(4):
        down: Any = experts.get_submodule(f"{number}.down_proj")
        down.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    assert sum(seen) == 2 * 40 * 2, "each token goes to two experts, in the model and in its copy"
