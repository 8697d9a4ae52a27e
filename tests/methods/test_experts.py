"""Whether a mixture's experts are quantized: what methods declare, what tiny mixtures show, and what is planned.

transformers holds the experts of a layer in 3-D parameters, which libraries that look for torch.nn.Linear pass over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from quantize_alone import LENGTH, ROWS, quantize, quantize_alone, read_alone
from safetensors.torch import load_file, save_file
from small_mixture import DEAD, save_small_mixture
from small_mixture import EXPERTS as SMALL_EXPERTS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, conversion_mapping
from transformers.quantizers.base import HfQuantizer

from harness import plugins as registry
from harness.api.plan import plan
from harness.core.engine import LoadRequest
from harness.core.method import Setting
from harness.engines.transformers.engine import TRANSFORMERS
from harness.errors import UnsupportedError
from harness.execution.local import local_site
from harness.models import stored
from harness.models.headers import read_directory
from harness.models.loading import load_transformers
from harness.models.scope import (
    LEAST_COVERAGE,
    TRIED,
    UNFUSES,
    decoder_linears,
    holds_experts,
    in_decoder,
    module_name,
    modules,
)
from harness.models.shapes import read
from harness.models.unfuse import UnfusedExperts, unfuse
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe

pytestmark = pytest.mark.heavy

SHAPE = {
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 4, "pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {
        **{"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
        **{"q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32},
        **{"num_key_value_heads": 4},
    },
    "qwen3_moe": {},
}
"""What the configurations of other mixtures call and shape otherwise."""
EXPERTS, ATTENTION = 4 * 3 * 128 * 128, 2 * 128 * 128 + 2 * 64 * 128
QUICK: list[tuple[str, dict[str, Any]]] = [
    ("rtn", {"group_size": 32}),
    ("int8", {}),
    ("fp8", {}),
    ("bnb-int8", {}),
    ("bnb-nf4", {}),
    ("bnb-fp4", {}),
    ("torchao-int8-dynamic", {}),
    ("torchao-intx", {"group_size": 32}),
    ("torchao-int4", {"group_size": 32}),
    ("torchao-nvfp4", {}),
    ("torchao-mxfp8", {}),
    ("torchao-mxfp4", {}),
    ("quanto", {"weights": "int8"}),
    ("hqq", {"group_size": 32}),
    ("inc-rtn", {"group_size": 32}),
    ("quark", {"group_size": 32}),
    ("llmc-rtn", {"group_size": 32}),
    ("llmc-fp8", {}),
    ("llmc-w4a8", {"group_size": 32}),
    ("llmc-mxfp4", {}),
    ("llmc-mxfp8", {}),
]
CALIBRATED: list[tuple[str, dict[str, Any]]] = [
    ("gptq", {"group_size": 32}),
    ("awq", {"group_size": 32}),
    ("autoround", {"group_size": 32, "iterations": 20}),
    ("inc-gptq", {"group_size": 32}),
    ("inc-awq", {"group_size": 32}),
    ("llmc-gptq", {"group_size": 32}),
    ("llmc-awq", {"group_size": 32}),
    ("llmc-int8", {}),
    ("llmc-nvfp4", {}),
    ("quark", {"group_size": 32, "algorithm": "awq"}),
    ("quark", {"group_size": 32, "algorithm": "gptq"}),
]
ELSEWHERE = {"gguf"}
"""Needs llama.cpp: ``test_gguf_experts``."""
UNTRIED = {"torchao-fp8-dynamic"}
"""Needs a GPU, and quantizes the same layers as torchao-int8-dynamic."""
FEW = ("rtn", "int8", "bnb-nf4", "hqq", "llmc-rtn")
CALIBRATION = {"samples": 4, "length": 64}
LEAVES, LEAVES_LABEL = {"qat": {"group_size": 32}}, "qat group_size=32"
"""A method that leaves experts as they are."""
PROBE = torch.arange(2, 34)[None]


def made(kind: str, folder: Path, tiny: Path) -> Path:
    """A mixture of one layer and random weights, stored as the hub stores them; its experts matter for its logits."""
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **OTHERS[kind]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2 if ".experts." in name else 0.05)
    model.save_pretrained(folder)
    return folder


def permuted(model: Any) -> Any:
    """The model with its experts in another order: what a mistake in their names makes."""
    experts = model.model.layers[0].mlp.experts
    for parameter in experts.parameters(recurse=False):
        parameter.data = parameter.data.roll(1, 0)
    return model


def divergence(base: torch.Tensor, other: torch.Tensor) -> float:
    """The mean KL of logits (tokens, vocabulary) in nats per token."""
    expected = base.double().log_softmax(-1)
    return float((expected.exp() * (expected - other.double().log_softmax(-1))).sum(-1).mean())


@pytest.fixture(autouse=True)
def fuses_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto-round has transformers fuse no experts of a type any more, in all of the process, once it loads one."""
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", None)


@pytest.fixture(scope="module")
def each_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[str, Path]:
    return request.param, made(request.param, tmp_path_factory.mktemp(request.param), tiny)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A Qwen3-MoE, stored expert by expert."""
    return made("qwen3_moe", tmp_path_factory.mktemp("mixture"), tiny)


def cases() -> Iterator[Any]:
    """Every method with every mixture.

    ``make test`` takes a few with one. ``make test-thorough`` takes all quick ones with all four, and each that
    calibrates with one, the mixtures in turns.
    """
    kinds = sorted(OTHERS)
    turns: list[tuple[Any, str | None]] = [(case, None) for case in QUICK]
    turns += zip(CALIBRATED, cycle(kinds), strict=False)
    for kind in kinds:
        for (name, given), turn in turns:
            is_slow = turn not in (None, kind)
            is_thorough = turn is not None or kind != "qwen3_moe" or name not in FEW
            marks = [pytest.mark.slow] * is_slow or [pytest.mark.thorough] * is_thorough
            case = "-".join(filter(None, (kind, name, given.get("algorithm"))))
            yield pytest.param(kind, name, given, id=case, marks=marks)


@pytest.mark.parametrize(("each_kind", "name", "given"), tuple(cases()), indirect=["each_kind"])
def test_what_a_method_says_of_experts_is_what_a_mixture_shows(
    each_kind: tuple[str, Path], tmp_path: Path, name: str, given: dict[str, Any]
) -> None:
    """What is declared is quantized, in the loaded model or on disk, and what is loaded is what was saved.

    What is not declared is unsupported while planning, and not tried here.
    """
    kind, folder = each_kind
    method = registry.method(name)
    if lacking := registry.missing(method, local_site()):
        pytest.skip(lacking)
    if kind not in method.quantizes_experts:
        pytest.skip(f"{name} does not declare {kind}")
    params = method.params.model_validate(given)
    if (known := method.needs(params).model_types) and kind not in known:
        pytest.skip(f"{name} does not know {kind}")
    if method.enable is not None:
        method.enable()
    shapes = read_directory(folder).shapes
    scope = modules(shapes)
    dtype = method.run_dtype(params, "float32")

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    with torch.inference_mode():
        plain, other = (load()(input_ids=PROBE).logits[0].float(), permuted(load())(input_ids=PROBE).logits[0].float())
    source, config, saved = folder, None, None
    if method.load_config is not None:
        config = method.load_config(params, Setting(dtype, "cpu", scope.untouched))
    elif method.calibrated(params):
        saved, source = quantize_alone(name, given, folder, tmp_path, dtype), tmp_path
    else:
        quantize(name, given, folder, tmp_path, dtype)
        saved, source = load_file(tmp_path / "logits")["logits"], tmp_path
    request = LoadRequest(source, dtype, "cpu", quantization=config, read=method.read, untouched=scope.untouched)
    model = TRANSFORMERS.load(request, TRANSFORMERS.params())
    running = sum(e.parameters for e in model.weight_ledger() if e.quantized and in_decoder(e.name, 2))
    on_disk = sum(layer.quantized for layer in stored.layers(shapes, source))
    assert max(running, on_disk) >= LEAST_COVERAGE * sum(scope.sizes.values())
    with torch.inference_mode():
        loaded = model.logits(PROBE)[0].float()
    if saved is not None:
        assert (loaded - saved).abs().max() < 0.02 * saved.abs().max(), "random experts would differ by more"
    assert 0 < divergence(plain, loaded) < divergence(plain, other) / 3
    if name == "gptq":  # whoever measures it as a published checkpoint has no reader of the method's own
        published = load_transformers(replace(request, read=None))
        with torch.inference_mode():
            assert divergence(loaded, published(input_ids=PROBE).logits[0].float()) < divergence(plain, loaded) / 3


def dequantized(model: Any, checkpoint: Path) -> Any:
    """The unquantized model with the matrices that gptqmodel's blocks (q4_0) stand for.

    It calls the halves of an expert's rows gate and up, also of gpt-oss, where these alternate.
    """
    unfuse(model)
    for module in model.modules():
        if isinstance(module, UnfusedExperts):
            module.is_concatenated = True
    parts = {name.rpartition("."): tensor for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    held = {f"{module_name(owner)}.{kind}": tensor for (owner, _, kind), tensor in parts.items()}
    for name, linear in decoder_linears(model):
        codes = held[f"{name}.qweight"].numpy()
        linear.weight.data = torch.from_numpy(dequantize(codes, GGMLQuantizationType.Q4_0))
        if linear.bias is not None:
            linear.bias.data = held[f"{name}.bias"].float()
    return model


@pytest.mark.thorough
@pytest.mark.parametrize(
    "each_kind",
    [kind if kind == "qwen3_moe" else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(OTHERS)],
    indirect=True,
)
def test_experts_in_ggml_s_blocks_are_scored_as_what_the_blocks_stand_for(
    each_kind: tuple[str, Path], tmp_path: Path
) -> None:
    """gptqmodel's reader replaces transformers' classes, so it reads in a process of its own."""
    _, folder = each_kind
    if lacking := registry.missing(registry.method("gptqmodel-gguf"), local_site()):
        pytest.skip(lacking)
    saved = quantize_alone("gptqmodel-gguf", {"format": "q4_0"}, folder, tmp_path, "float32")
    loaded, quantized = read_alone("gptqmodel-gguf", tmp_path, "float32")
    shapes = read_directory(folder).shapes
    in_scope = sum(modules(shapes).sizes.values())
    assert quantized >= LEAST_COVERAGE * in_scope
    assert sum(layer.quantized for layer in stored.layers(shapes, tmp_path)) >= LEAST_COVERAGE * in_scope

    def logits(change: Callable[[Any], Any]) -> torch.Tensor:
        model = change(AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval())
        with torch.inference_mode():
            return model(input_ids=PROBE).logits[0]  # type: ignore[no-any-return]

    dense = logits(lambda model: dequantized(model, tmp_path))
    assert (loaded - dense).abs().max() < 1e-3 * dense.abs().max()
    assert (saved - dense).abs().max() < 1e-3 * dense.abs().max()
    plain = logits(lambda model: model)
    assert 0 < divergence(plain, loaded) < divergence(plain, logits(permuted)) / 3


def chosen_experts(model: Any) -> torch.Tensor:
    """The experts that the only layer's router chooses for each token (tokens, experts), as zeros and ones."""
    [router] = [module for name, module in model.named_modules() if name.endswith((".mlp.gate", ".mlp.router"))]
    seen: list[torch.Tensor] = []
    hook = router.register_forward_hook(lambda module, given, found: seen.append(found[2]))
    with torch.inference_mode():
        model(input_ids=PROBE)
    hook.remove()
    return torch.zeros(PROBE.numel(), 4).scatter(1, seen[0], 1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] * (kind != by_default))
        for name, by_default in (("awq", "mixtral"), ("llmc-awq", "deepseek_v3"), ("inc-awq", "gpt_oss"))
        for kind in sorted(OTHERS)
    ],
)
def test_awq_leaves_the_routing_as_it_is(tmp_path: Path, tiny: Path, name: str, kind: str) -> None:
    """The channels that experts read differ by orders of magnitude, and so do the factors. Attention is left alone."""
    method, given = registry.method(name), {"group_size": 32}
    if lacking := registry.missing(method, local_site()):
        pytest.skip(lacking)
    folder, out = made(kind, tmp_path / "source", tiny), tmp_path / "quantized"
    out.mkdir()
    tensors = load_file(folder / "model.safetensors")
    norm = tensors["model.layers.0.post_attention_layernorm.weight"]
    norm.copy_(torch.randn(norm.shape, generator=torch.Generator().manual_seed(0)).exp())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = method.run_dtype(method.params.model_validate(given), "float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    quantize_alone(name, given, folder, out, dtype, ["*.self_attn.*"])
    if method.enable is not None:
        method.enable()
    untouched = modules(read_directory(folder).shapes, ["*.self_attn.*"]).untouched
    model = load_transformers(LoadRequest(out, dtype, "cpu", untouched=untouched))
    expected = chosen_experts(plain)
    assert 1 - (chosen_experts(model) * expected).sum() / expected.sum() < 0.02
    with torch.inference_mode():
        found, base = (each(input_ids=PROBE).logits[0].float() for each in (model, plain))
        other = permuted(plain)(input_ids=PROBE).logits[0].float()
    assert 0 < divergence(base, found) < divergence(base, other) / 3


LEARNS = {"autoround": {"iterations": 20}}


def told(name: str, source: Path, out: Path, **more: Any) -> tuple[set[str], dict[str, Any]]:
    """The modules that a method only rounds to nearest, and its notes; skips where its library is missing.

    Its checkpoint is then in ``out``. Groups have 32 columns; ``more`` are other parameters.
    """
    method, given = registry.method(name), {"group_size": 32, **more}
    if lacking := registry.missing(method, local_site()):
        pytest.skip(lacking)
    out.mkdir()
    quantize_alone(name, given, source, out, method.run_dtype(method.params.model_validate(given), "float32"))
    found = json.loads((out / "told").read_text())
    return {each.removeprefix("model.") for each in found["rounded"]}, found["notes"]


@pytest.mark.slow
def test_one_dead_expert_leaves_all_experts_of_its_layer_without_awq_s_scales(tmp_path: Path, tiny: Path) -> None:
    """All gate and up projections read the same, and are scaled together or not at all."""
    source = save_small_mixture(tmp_path / "source", tiny)
    found, notes = told("awq", source, tmp_path / "out")
    block, dead = DEAD
    group = {f"{block}.experts.{each}.{name}" for each in range(SMALL_EXPERTS) for name in ("gate_proj", "up_proj")}
    assert {name for name in found if name.startswith(block)} >= group | {f"{block}.experts.{dead}.down_proj"}
    assert not [name for name in found if name.startswith("layers.0.") and "down_proj" not in name]
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    kept = [
        torch.equal(before[norm].float(), after[norm].float())
        for norm in (f"model.layers.{layer}.post_attention_layernorm.weight" for layer in range(2))
    ]
    assert kept == [False, True], "what is scaled is divided in the norm before"
    assert notes["calibration_tokens_left_out"] >= ROWS * LENGTH - LENGTH, "experts are searched on a row's worth"


@pytest.mark.slow
def test_gptq_tells_which_expert_it_only_rounded(tmp_path: Path, tiny: Path) -> None:
    source = save_small_mixture(tmp_path / "source", tiny)
    found, _ = told("gptq", source, tmp_path / "out")
    expert = "{}.experts.{}.".format(*DEAD)
    assert {name for name in found if name.startswith(expert)} == {f"{expert}{e}_proj" for e in ("gate", "up", "down")}
    assert all(".experts." in name for name in found)


@pytest.mark.slow
def test_llm_compressor_s_awq_reaches_all_experts(tmp_path: Path, tiny: Path) -> None:
    """While it calibrates, every expert gets every token, so that none is starved."""
    found, _ = told("llmc-awq", save_small_mixture(tmp_path / "source", tiny), tmp_path / "out")
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq", "gptq", "autoround", "inc-gptq", "inc-awq"])
def test_where_no_expert_is_starved_none_is_only_rounded(mixture: Path, tmp_path: Path, name: str) -> None:
    found, _ = told(name, mixture, tmp_path / "out", **LEARNS.get(name, {}))
    assert not found


def rounded_to_nearest(name: str, source: Path, folder: Path, clipped: float = 0.0) -> set[str]:
    """The experts' matrices of a quantized model whose weights are the nearest on the grids of their groups of 32.

    They are read by the product of each layer with the identity. A share of ``clipped`` weights may be farther off.
    """
    method, plain = registry.method(name), load_file(source / "model.safetensors")
    if method.enable is not None:
        method.enable()
    model = load_transformers(LoadRequest(folder, "float32", "cpu", read=method.read))
    found = set()
    with torch.inference_mode():
        for path, module in model.named_modules():
            if re.fullmatch(r".*\.experts\.\d+\.\w+_proj", path):
                before = plain[f"{path}.weight"]
                after = module(torch.eye(before.shape[1])[None])[0].T
                before, after = (each.reshape(len(before), -1, 32) for each in (before, after))
                step = 2 * before.abs().amax(-1, keepdim=True) / 15
                if ((before - after).abs() > 0.55 * step).float().mean() <= clipped:
                    found.add(path.removeprefix("model."))
    return found


def matrices_of(block: str, expert: int) -> set[str]:
    return {f"{block}.experts.{expert}.{each}_proj" for each in ("gate", "up", "down")}


@pytest.mark.parametrize(
    "name",
    [
        "inc-awq",
        pytest.param("inc-gptq", marks=pytest.mark.thorough),
        pytest.param("autoround", marks=pytest.mark.slow),
    ],
)
def test_an_expert_that_no_token_reaches_is_rounded_to_nearest_and_named(tmp_path: Path, tiny: Path, name: str) -> None:
    """Calibration moves weights of other experts beyond the nearest on the grid.

    auto-round's grids end on one side at 7 steps of an eighth of the largest weight.
    """
    source = save_small_mixture(tmp_path / "source", tiny)
    found, _ = told(name, source, tmp_path / "out", **LEARNS.get(name, {}))
    assert found == matrices_of(*DEAD)
    assert rounded_to_nearest(name, source, tmp_path / "out", 0.03 if name == "autoround" else 0.0) == found


@pytest.fixture
def with_a_dead_expert(tmp_path: Path, tiny: Path) -> Path:
    """A DeepSeek-V3 whose router chooses the last expert for no token."""
    source = made("deepseek_v3", tmp_path / "source", tiny)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.gate.e_score_correction_bias"][3] = -100
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return source


@pytest.mark.thorough
def test_quark_s_gptq_rounds_an_expert_that_no_token_reaches_to_nearest(
    tmp_path: Path, with_a_dead_expert: Path
) -> None:
    found, _ = told("quark", with_a_dead_expert, tmp_path / "out", algorithm="gptq")
    experts = {name for name in found if "self_attn" not in name}  # of attention its table names no layer
    assert experts == matrices_of("layers.0.mlp", 3)
    assert rounded_to_nearest("quark", with_a_dead_expert, tmp_path / "out") == experts


def test_quark_s_gptq_has_a_hessian_and_a_count_for_an_expert_that_no_token_reaches() -> None:
    """The library divides by the count."""
    method = registry.method("quark")
    if lacking := registry.missing(method, local_site()):
        pytest.skip(lacking)
    from quark.torch.algorithm.gptq.gptq import GPTQ

    from harness.methods.quark.quark import worked_on

    given = []
    with (
        mock.patch.object(GPTQ, "quantize", lambda self, *settings: given.append((self.nsamples, self.H))),
        worked_on() as worked,
    ):
        for count in (0, 5):
            layer = SimpleNamespace(nsamples=count, H="its own", columns=3, device="cpu", layer=f"saw {count}")
            GPTQ.quantize(layer)
    assert worked.any == {"saw 5"}
    assert given[1] == (5, "its own")
    assert given[0][0] == 1
    assert torch.equal(given[0][1], torch.eye(3))


@pytest.mark.thorough
def test_quark_s_awq_rounds_an_expert_that_no_token_reaches_and_scales_none(
    tmp_path: Path, with_a_dead_expert: Path
) -> None:
    """It clips the other experts, the shared one, and of attention all but queries: 9, 3 and 3 matrices."""
    found, notes = told("quark", with_a_dead_expert, tmp_path / "out", algorithm="awq")
    dead = matrices_of("layers.0.mlp", 3)
    assert found == dead | {f"layers.0.self_attn.q_{half}_proj" for half in ("a", "b")}
    assert rounded_to_nearest("quark", with_a_dead_expert, tmp_path / "out") == dead
    assert notes == {"matrices_only_clipped": 9 + 3 + 3}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_quark_s_awq_scales_attention_alone(tmp_path: Path, tiny: Path, kind: str) -> None:
    found, notes = told("quark", made(kind, tmp_path / "source", tiny), tmp_path / "out", algorithm="awq")
    assert not found
    assert notes == {"matrices_only_clipped": 4 * 3}


@pytest.mark.thorough
def test_quark_s_gptq_leaves_all_experts_of_mixtral_and_says_so(tmp_path: Path, tiny: Path) -> None:
    """Its table names the layers of attention alone."""
    found, _ = told("quark", made("mixtral", tmp_path / "source", tiny), tmp_path / "out", algorithm="gptq")
    assert found == set().union(*(matrices_of("layers.0.mlp", expert) for expert in range(4)))


def test_auto_round_tells_that_one_step_is_none(tmp_path: Path, mixture: Path) -> None:
    """It keeps the rounding with the least error, and after one step it has seen the error of no other."""
    found, _ = told("autoround", mixture, tmp_path / "out", iterations=1)
    assert len(found) == 4 + 4 * 3


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("rtn", {"group_size": 32}),
        ("llmc-rtn", {"group_size": 32}),
        ("llmc-fp8", {}),
        pytest.param("gptq", {"group_size": 32}, marks=pytest.mark.slow),
        pytest.param("awq", {"group_size": 32}, marks=pytest.mark.slow),
    ],
)
def test_a_quantized_mixtral_is_read_by_the_names_that_publishers_give_its_experts(
    tmp_path: Path, tiny: Path, name: str, given: dict[str, Any]
) -> None:
    """``block_sparse_moe.experts.0.w1``, where the layer is ``mlp.experts.0.gate_proj``."""
    method = registry.method(name)
    if lacking := registry.missing(method, local_site()):
        pytest.skip(lacking)
    folder, out = made("mixtral", tmp_path / "source", tiny), tmp_path / "quantized"
    out.mkdir()
    dtype = method.run_dtype(method.params.model_validate(given), "float32")
    if method.calibrated(method.params.model_validate(given)):
        quantize_alone(name, given, folder, out, dtype)
    else:
        quantize(name, given, folder, out, dtype)

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return load_transformers(LoadRequest(out, dtype, "cpu"))(input_ids=PROBE).logits  # type: ignore[no-any-return]

    expected, file = logits(), out / "model.safetensors"
    stored_as = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    renamed = {
        re.sub(
            r"\.\w+\.experts\.(\d+)\.(\w+)\.",
            lambda found: f".block_sparse_moe.experts.{found[1]}.{stored_as.get(found[2], found[2])}.",
            key,
        ): tensor
        for key, tensor in load_file(file).items()
    }
    assert any(".experts.3.w3." in key for key in renamed)
    save_file(renamed, file, metadata={"format": "pt"})
    if name == "gptq":
        list_modules_as_published(out)
    assert torch.equal(logits(), expected)
    if name == "llmc-fp8":
        return  # transformers has no random FP8 codes, so it fails by itself
    unknown = {key.replace(".w3.", ".w9."): tensor for key, tensor in renamed.items()}
    save_file(unknown, file, metadata={"format": "pt"})
    unpacked = AssertionError("codes are unpacked that nothing was read into: they are what was in memory")
    with (
        mock.patch.object(HfQuantizer, "postprocess_model", side_effect=unpacked),
        pytest.raises(UnsupportedError, match=r"experts\.0\.w9\..* is read into no layer"),
    ):
        logits()


def list_modules_as_published(folder: Path) -> None:
    """What AutoGPTQ writes of a Mixtral: the quantized modules by their names in one layer, in the order it takes."""
    attention = [["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"], ["self_attn.o_proj"]]
    experts = [
        [f"block_sparse_moe.experts.{n}.{w}" for n in range(4) for w in words] for words in (("w1", "w3"), ("w2",))
    ]
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] |= {"modules_in_block_to_quantize": attention + experts}
    path.write_text(json.dumps(config), encoding="utf-8")


def test_what_quantizes_no_experts_says_nothing() -> None:
    says = {name for name in registry.method_names() if registry.method(name).quantizes_experts}
    assert {"rtn", "hqq", "quanto", "bnb-nf4", "int8", "torchao-int4", "llmc-rtn"} <= says
    assert not registry.method("rtn").leaves_experts("qwen3_moe")
    assert registry.method("rtn").leaves_experts("jamba"), "whose experts were not seen to unfuse"
    assert registry.method("qat").leaves_experts("qwen3_moe")
    assert not any(registry.method(name).leaves_experts("qwen3_moe") for name in ("none", "checkpoint"))
    assert all(registry.method(name).quantizes_experts <= UNFUSES for name in says)
    methods = [registry.method(name) for name in registry.method_names()]
    quantizing = [method for method in methods if method.stage in ("on_load", "offline")]
    leaving = {method.name for method in quantizing if not method.quantizes_experts >= TRIED}
    assert leaving == {method.name for method in methods if method.leaves_experts_because}, "each says why"


def test_all_that_is_declared_is_shown() -> None:
    """The table of methods and mixtures in the reference is made from what methods declare."""
    assert set(OTHERS) == TRIED
    says = {name for name in registry.method_names() if registry.method(name).quantizes_experts}
    here = {name for name, _ in (*QUICK, *CALIBRATED)} | {"gptqmodel-gguf"}
    assert says == here | ELSEWHERE | UNTRIED


@pytest.fixture
def planned(sweeps: Any, mixture: Path) -> Callable[..., dict[str, PlannedRun]]:
    """The runs of quality or speed of a recipe by the method's label."""

    def made(*methods: object, model: dict[str, Any] | None = None, **changes: object) -> dict[str, PlannedRun]:
        content = {
            "models": [model or {"id": str(mixture), "dtype": "float32", "label": "mixture"}],
            "methods": ["none", *methods],
            "measure": {"memory": {}},
            **changes,
        }
        runs = plan(load_recipe(sweeps.recipe(content)))
        return {run.spec.method.label: run for run in runs if run.spec.kind == "performance"}

    return made


def test_a_mixture_is_unsupported_while_planning(planned: Callable[..., dict[str, PlannedRun]]) -> None:
    runs = planned(LEAVES, {"rtn": {"group_size": 32}}, {"llmc-rtn": {"group_size": 32}}, calibration=CALIBRATION)
    share = EXPERTS / (EXPERTS + ATTENTION)
    if not registry.missing(registry.method("qat"), local_site()):
        assert runs[LEAVES_LABEL].unsupported == (
            f"qat is not known to quantize the experts of a qwen3_moe model ({share:.0%} of the scope) and to reload "
            "them: it trains linear layers, and makes none of experts before it trains; "
            "skip them with scope: {skip: ['*.experts*']}, or choose a method that can"
        )
    assert runs["rtn group_size=32"].unsupported is None
    assert runs["none"].unsupported is None
    assert runs["llmc-rtn group_size=32"].unsupported == registry.missing(registry.method("llmc-rtn"), local_site())


def test_experts_that_the_recipe_skips_are_in_nobody_s_way(planned: Callable[..., dict[str, PlannedRun]]) -> None:
    lacking = registry.missing(registry.method("qat"), local_site())
    runs = planned(LEAVES, scope={"skip": ["*.experts*"]}, calibration=CALIBRATION)
    assert runs[LEAVES_LABEL].unsupported == lacking
    if lacking is None:
        left = planned(LEAVES, scope={"skip": ["*.experts.0.*", "*.experts.1.*"]}, calibration=CALIBRATION)
        assert "(67% of the scope)" in str(left[LEAVES_LABEL].unsupported)


@pytest.mark.parametrize("given", [SHAPE, {"num_hidden_layers": 1}], ids=["all sizes", "the class's own experts"])
def test_a_synthetic_mixture_is_known_by_what_transformers_makes_of_it(
    planned: Callable[..., dict[str, PlannedRun]], given: dict[str, Any]
) -> None:
    model = {"id": "synthetic:qwen3_moe", "label": "mixture", "config": given}
    runs = planned({"rtn": {"group_size": 32}}, model=model)
    assert runs["rtn group_size=32"].unsupported is None
    assert runs["none"].unsupported is None
    assert runs["none"].weight_bytes is not None


def test_a_sweep_over_a_mixture_quantizes_its_experts(tmp_path: Path, tiny: Path, sweeps: Any) -> None:
    """gpt-oss stores experts fused and transposed, with gate and up in turns; one expert is left, one has 8 bits."""
    folder = made("gpt_oss", tmp_path / "gpt-oss", tiny)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    records = sweeps.run(
        {
            "models": [{"id": str(folder), "dtype": "float32", "label": "mixture"}],
            "methods": ["none", {"rtn": {"group_size": 32}}, "bnb-nf4"],
            "scope": {"skip": ["*.experts.3.*"], "overrides": {"*.experts.2.down_proj": {"bits": 8}}},
            "measure": {"memory": {}, "perplexity": {"text": str(text), "context": 32}},
        }
    )
    quality = {record.spec.method.name: record for record in records if record.spec.kind == "quality"}
    assert {name: record.outcome.failure for name, record in quality.items()} == dict.fromkeys(quality)
    layers = {name: record.outcome.fact("layers").arguments for name, record in quality.items()}
    assert layers["none"] == {"Linear": 4, "GptOssExperts by grouped_mm": 1}
    assert layers["rtn"] == {"Linear": 3, "PackedLinear": 4 + 9}
    assert layers["bnb-nf4"] == {"Linear": 3, "Linear4bit of Params4bit": 4 + 9}
    for name in ("rtn", "bnb-nf4"):
        assert quality[name].find("coverage").values == (1.0,)


def test_weights_are_planned_with_the_experts_as_they_are(planned: Callable[..., dict[str, PlannedRun]]) -> None:
    """In float32: 4 bytes a number, but for the codes of the method that quantizes experts."""
    runs = planned(LEAVES, {"rtn": {"group_size": 32}}, calibration=CALIBRATION)
    plain, left, packed = (runs[label].weight_bytes for label in ("none", LEAVES_LABEL, "rtn group_size=32"))
    assert plain is not None
    assert left is not None
    assert packed is not None
    assert plain > left > 4 * EXPERTS > packed


def test_an_estimate_from_the_configuration_is_that_of_the_weights(mixture: Path) -> None:
    """The checkpoint has 12 matrices of experts where transformers makes 2 parameters."""
    whole, alone = read(str(mixture)), read(str(mixture / "config.json"))
    assert whole.parameters == alone.parameters
    assert whole.expert_parameters == alone.expert_parameters == EXPERTS
    assert (len(whole.experts), len(alone.experts)) == (12, 2)
    assert whole.active == alone.active == whole.parameters - EXPERTS // 2


@pytest.mark.parametrize(
    ("name", "dimensions", "expected"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", 3, True),
        ("model.layers.0.mlp.experts.7.down_proj.weight", 2, True),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", 2, True),
        ("model.layers.0.block_sparse_moe.input_linear.weight", 3, True),  # granite's
        ("blk.3.ffn_gate_exps.weight", 3, True),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", 2, False),
        ("model.layers.0.mlp.shared_expert.gate_proj.weight", 2, False),
        ("model.layers.0.mlp.shared_experts.gate_proj.weight", 2, False),
        ("blk.3.ffn_gate_shexp.weight", 2, False),
        ("model.layers.0.mamba.conv1d.weight", 3, False),
        ("model.layers.0.mlp.gate_proj.weight", 2, False),
    ],
)
def test_experts_by_name(name: str, dimensions: int, expected: bool) -> None:
    assert holds_experts(name, dimensions) == expected
    assert in_decoder(name, dimensions) == (not name.endswith("_bias") and "conv1d" not in name)
