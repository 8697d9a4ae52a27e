"""What becomes of a mixture's experts in llama.cpp's quantization, and what of it needs llama.cpp itself: its stack."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM

from harness.api.plan import plan
from harness.core.engine import LoadRequest
from harness.core.method import CalibrationSet, QuantizeJob
from harness.core.site import Machine
from harness.engines.llamacpp.engine import LLAMACPP
from harness.errors import UnsupportedError
from harness.methods.llamacpp.gguf import GgufParams, importance, left_plain, quantize
from harness.models.gguf.convert import placed
from harness.models.headers import GGUF_FILE, read_config, read_directory
from harness.models.scope import modules
from harness.models.streaming.layerwise import LayerPasses
from harness.models.streaming.parts import Parts
from harness.models.unfuse import unfuse
from harness.recipe import load_recipe
from harness.stacks import MANIFEST, Stacks

pytestmark = pytest.mark.heavy


EXPERTS = 4
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS, "intermediate_size": 256},
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 256, "norm_topk_prob": True},
}


def mixture(kind: str, folder: Path) -> Any:
    """A mixture of one layer and random weights, of widths that blocks of 256 divide, and its checkpoint."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **{"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4},
        **{"head_dim": 64, "num_experts_per_tok": 2, "vocab_size": 256, "max_position_embeddings": 128},
        **MIXTURES[kind],
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return model


def job_of(model: Any, folder: Path, skip: tuple[str, ...] = (), tokens: Any = None) -> QuantizeJob[GgufParams]:
    scope = modules(read_directory(folder).shapes, skip)
    calibration = CalibrationSet(tokens, [len(row) for row in tokens], "0") if tokens else None
    order = (GgufParams(), folder, folder, "cpu", "float32", 0, lambda: model, calibration)
    return QuantizeJob(*order, scope.scope, scope.untouched)


def tensors_of(folder: Path) -> list[Any]:
    return list(placed(read_directory(folder).shapes, read_config(folder)))


def stacks(model: Any) -> dict[str, torch.Tensor]:
    """The experts of the only layer by llama.cpp's names, as transformers holds them."""
    experts = model.model.layers[0].mlp.experts
    gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
    return {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": experts.down_proj.detach()}


def test_experts_are_left_as_they_are_all_together_or_not_at_all(tmp_path: Path) -> None:
    model = mixture("mixtral", tmp_path)
    tensors = tensors_of(tmp_path)
    assert left_plain(job_of(model, tmp_path), tensors) == []
    assert sorted(left_plain(job_of(model, tmp_path, ("*.experts*",)), tensors)) == [
        f"blk.0.{name}.weight" for name in ("ffn_down_exps", "ffn_gate_exps", "ffn_up_exps")
    ]
    assert left_plain(job_of(model, tmp_path, ("*.w2",)), tensors) == ["blk.0.ffn_down_exps.weight"]
    with pytest.raises(UnsupportedError, match=r"some of them in blk\.0\.ffn_gate_exps\.weight; skip all or none"):
        left_plain(job_of(model, tmp_path, ("*.experts.3.*",)), tensors)


@pytest.mark.parametrize(
    ("kind", "skip", "expected"),
    [
        ("mixtral", [], None),
        ("mixtral", ["*.experts*"], None),
        ("qwen3_moe", ["*.experts.*.down_proj"], None),
        ("mixtral", ["*.experts.3.*"], "skips some of them in model.layers.0.mlp.experts.gate_proj; skip all or none"),
    ],
)
def test_single_experts_are_refused_while_planning(
    sweeps: Any, tmp_path: Path, kind: str, skip: list[str], expected: str | None
) -> None:
    mixture(kind, tmp_path / "model")
    folder = Stacks(tmp_path / "stacks").find("llamacpp").folder  # a stack that planning takes for made
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    made = {"versions": dict.fromkeys(LLAMACPP.packages, "1"), "compiler_flags": []}
    (folder / MANIFEST).write_text(json.dumps(made), encoding="utf-8")
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tmp_path / "model"), "dtype": "float32", "label": "mixture"}],
            "methods": ["none", {"gguf": {"type": "Q8_0"}}],
            "engines": ["transformers", "llamacpp"],
            "scope": {"skip": skip},
            "measure": {"memory": {}},
        }
    )
    runs = plan(load_recipe(recipe), Machine("cpu", "a test machine"), Stacks(tmp_path / "stacks"))
    measured = [run for run in runs if run.spec.kind == "performance" and run.spec.method.name == "gguf"]
    (reason,) = {run.unsupported for run in measured}
    assert (reason is None) if expected is None else (reason is not None and str(reason).endswith(expected))


@pytest.mark.parametrize("kind", sorted(MIXTURES))
def test_each_expert_s_inputs_are_those_of_the_tokens_that_are_routed_to_it(tmp_path: Path, kind: str) -> None:
    """Two tokens go to some experts and not to others; those count every column alike."""
    model = mixture(kind, tmp_path)
    inputs: list[torch.Tensor] = []
    router = model.model.layers[0].mlp.gate
    hook = router.register_forward_pre_hook(lambda _, given: inputs.append(given[0].reshape(-1, 256)))
    tokens = [[5, 9]]
    with torch.no_grad():
        model(input_ids=torch.tensor(tokens))
        hook.remove()
        (rows,) = inputs
        chosen = (rows @ router.weight.T).topk(2, dim=-1).indices
    expected = torch.ones(EXPERTS, 256)
    for expert in set(chosen.flatten().tolist()):
        expected[expert] = rows[(chosen == expert).any(dim=-1)].square().mean(dim=0)
    assert 0 < len(set(chosen.flatten().tolist())) < EXPERTS, "or the test is of no use"
    found = importance(job_of(model, tmp_path, tokens=tokens), tensors_of(tmp_path))
    assert found.keys() == {f"blk.0.{name}.weight" for name in (*stacks(mixture(kind, tmp_path)), *ATTENTION)}
    assert found["blk.0.attn_q.weight"].shape == (256,)
    for name in ("ffn_gate_exps", "ffn_up_exps"):
        values = found[f"blk.0.{name}.weight"]
        assert values.dtype == np.float32
        assert np.allclose(values.reshape(EXPERTS, 256), expected.numpy(), rtol=1e-4)


LAYERED: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    **MIXTURES,
}


@pytest.mark.parametrize("kind", sorted(LAYERED))
def test_with_one_layer_in_memory_the_importance_is_bit_by_bit_that_of_the_whole_model(
    tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": 16, "num_experts_per_tok": 2, "vocab_size": 256, "max_position_embeddings": 128},
        **{"intermediate_size": 64, "pad_token_id": 0, **LAYERED[kind]},
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    tokens = [[(7 * row + 3 * column) % 250 + 1 for column in range(16 + row)] for row in range(3)]

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()

    job = replace(job_of(None, tmp_path, tokens=tokens), load=load)
    tensors = tensors_of(tmp_path)
    whole, parts = (importance(job, tensors, from_disk) for from_disk in (False, True))
    assert len(whole) == 3 * 7
    assert parts.keys() == whole.keys()
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)
    probe = torch.tensor(tokens[:1])
    with closing(Parts(LoadRequest(tmp_path, "float32", "cpu"))) as cut, torch.inference_mode():
        passes = LayerPasses(cut)
        found, again = passes.logits(probe), passes.logits(probe)
        assert max(map(cut.loads.count, cut.loads)) == 2, "each pass reads each part once"
        whole_model = load()
        unfuse(whole_model)
        expected = whole_model(input_ids=probe).logits
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


def test_layers_that_return_more_than_their_states_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """GPT-J's return their attention too."""
    config = AutoConfig.for_model("gptj", n_embd=64, n_layer=2, n_head=4, rotary_dim=8, vocab_size=128, n_positions=64)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    said = "a GPTJBlock returns more than its states.* set residency: resident on a machine where it fits"
    with closing(Parts(LoadRequest(tmp_path, "float32", "cpu"))) as cut, pytest.raises(UnsupportedError, match=said):
        LayerPasses(cut).logits(torch.tensor([[1, 2, 3]]))


def divergence(expected: torch.Tensor, other: torch.Tensor) -> float:
    """The mean KL of logarithms of probabilities (tokens, vocabulary) in nats per token."""
    return float((expected.exp() * (expected - other)).sum(-1).mean())


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("imatrix", [False, True])
@pytest.mark.parametrize("kind", sorted(MIXTURES))
def test_llama_cpp_quantizes_the_experts_to_the_type_and_computes_the_same_model(
    tmp_path: Path, kind: str, imatrix: bool
) -> None:
    """Q4_K_M has Q6_K for the last layer's down projections; the only layer is the last."""
    (tmp_path / "out").mkdir()
    model = mixture(kind, tmp_path / "model")
    probe = torch.arange(2, 34)[None]
    with torch.inference_mode():
        expected = model(input_ids=probe).logits[0].log_softmax(-1)
        other = mixture(kind, tmp_path / "other")
        for parameter in other.model.layers[0].mlp.experts.parameters():
            parameter.copy_(parameter.roll(1, 0))
        exchanged = other(input_ids=probe).logits[0].log_softmax(-1)
    # an importance matrix unfuses the model's experts
    weights = {name: weight.numpy().copy() for name, weight in stacks(model).items()}
    tokens = [[(7 * row + 3 * column) % 250 + 1 for column in range(64)] for row in range(8)]
    job = job_of(model, tmp_path / "model", tokens=tokens if imatrix else None)
    quantized = quantize(replace(job, params=GgufParams(type="Q4_K_M", imatrix=imatrix), out=tmp_path / "out"))
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / GGUF_FILE).tensors}
    assert held["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
    for name, weight in weights.items():
        tensor = held[f"blk.0.{name}.weight"]
        assert tensor.tensor_type.name == ("Q6_K" if name == "ffn_down_exps" else "Q4_K")
        error = dequantize(tensor.data, tensor.tensor_type) - weight
        assert error.shape == (EXPERTS, 256, 256)
        each = np.sqrt(np.square(error).mean(axis=(1, 2)) / np.square(weight).mean(axis=(1, 2)))
        assert (each > 0.001).all()
        assert (each < (0.03 if name == "ffn_down_exps" else 0.12)).all(), "those of another expert would differ by 1.4"
    found = quantized(probe).logits[0].log_softmax(-1)
    assert 0 < divergence(expected, found) < divergence(expected, exchanged) / 3
