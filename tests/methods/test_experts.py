"""Whether a mixture's experts are quantized: what methods say, what a tiny mixture shows, and what is planned.

transformers holds the experts of a layer in 3-D parameters, which libraries that look for torch.nn.Linear pass over.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import quantized
from transformers import AutoConfig, AutoModelForCausalLM

from harness import plugins as registry
from harness.api.plan import plan
from harness.core.engine import LoadRequest
from harness.core.method import QuantizeJob, Setting
from harness.engines.transformers.engine import TRANSFORMERS
from harness.execution.local import local_site
from harness.models import stored
from harness.models.headers import read_directory
from harness.models.scope import LEAST_COVERAGE, holds_experts, in_decoder, modules
from harness.models.shapes import read
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
    "vocab_size": 256,
    "max_position_embeddings": 256,
}
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
    ("llmc-rtn", {"group_size": 32}),
    ("llmc-fp8", {}),
]
PROBE = torch.arange(2, 34)[None]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE of one layer and random weights, stored as the hub stores them: expert by expert."""
    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_moe", **SHAPE)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "given"), QUICK, ids=[name for name, _ in QUICK])
def test_what_a_method_says_of_experts_is_what_a_mixture_shows(
    mixture: Path, tmp_path: Path, name: str, given: dict[str, Any]
) -> None:
    """Experts with codes in the loaded model or on disk are counted; what is loaded must be what was saved."""
    method = registry.method(name)
    if lacking := registry.missing(method, local_site()):
        pytest.skip(lacking)
    params = method.params.model_validate(given)
    if method.enable is not None:
        method.enable()
    shapes = read_directory(mixture).shapes
    scope = modules(shapes)
    dtype = method.run_dtype(params, "float32")

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(mixture, dtype=dtype).eval()

    source, config, saved = mixture, None, None
    if method.load_config is not None:
        config = method.load_config(params, Setting(dtype, "cpu", scope.untouched))
    else:
        assert method.quantize is not None
        job = QuantizeJob(
            params, mixture, tmp_path, "cpu", dtype, 0, load, scope=scope.scope, untouched=scope.untouched
        )
        saved = quantized(method, job, lambda model: model(input_ids=PROBE).logits[0].float())
        source = tmp_path
    model = TRANSFORMERS.load(
        LoadRequest(source, dtype, "cpu", quantization=config, read=method.read), TRANSFORMERS.params()
    )
    running = {entry.name for entry in model.weight_ledger() if entry.quantized and ".experts." in entry.name}
    on_disk = sum(layer.quantized for layer in stored.layers(shapes, source) if layer.name.endswith(".experts"))
    declared = "qwen3_moe" in method.quantizes_experts
    assert declared == (bool(running) or on_disk >= LEAST_COVERAGE * EXPERTS)
    if declared and saved is not None:
        with torch.inference_mode():
            loaded = model.logits(PROBE)[0].float()
        assert (loaded - saved).abs().max() < 0.05 * saved.abs().max(), "random experts would differ by more"


def test_a_method_that_says_nothing_is_taken_to_leave_them() -> None:
    says = {name for name in registry.method_names() if registry.method(name).quantizes_experts}
    assert says == {"llmc-rtn", "llmc-gptq", "llmc-fp8", "autoround", "gptqmodel-gguf"}, "all that were seen to"
    assert registry.method("rtn").leaves_experts("qwen3_moe")
    assert not registry.method("llmc-rtn").leaves_experts("qwen3_moe")
    assert registry.method("llmc-rtn").leaves_experts("mixtral"), "what it writes of those does not load"
    assert not any(registry.method(name).leaves_experts("qwen3_moe") for name in ("none", "checkpoint"))


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
    runs = planned("bnb-nf4", {"rtn": {"group_size": 32}}, {"llmc-rtn": {"group_size": 32}})
    share = EXPERTS / (EXPERTS + ATTENTION)
    assert runs["rtn group_size=32"].unsupported == (
        f"rtn is not known to quantize the experts of a qwen3_moe model ({share:.0%} of the scope) and to reload "
        "them; skip them with scope: {skip: ['*.experts*']}, or choose a method that can"
    )
    if not registry.missing(registry.method("bnb-nf4"), local_site()):
        assert "is not known to quantize the experts" in str(runs["bnb-nf4"].unsupported)
    assert runs["none"].unsupported is None
    assert runs["llmc-rtn group_size=32"].unsupported == registry.missing(registry.method("llmc-rtn"), local_site())


def test_experts_that_the_recipe_skips_are_in_nobody_s_way(planned: Callable[..., dict[str, PlannedRun]]) -> None:
    runs = planned({"rtn": {"group_size": 32}}, scope={"skip": ["*.experts*"]})
    assert runs["rtn group_size=32"].unsupported is None
    left = planned({"rtn": {"group_size": 32}}, scope={"skip": ["*.experts.0.*", "*.experts.1.*"]})
    assert "(67% of the scope)" in str(left["rtn group_size=32"].unsupported)


@pytest.mark.parametrize("given", [SHAPE, {"num_hidden_layers": 1}], ids=["all sizes", "the class's own experts"])
def test_a_synthetic_mixture_is_known_by_what_transformers_makes_of_it(
    planned: Callable[..., dict[str, PlannedRun]], given: dict[str, Any]
) -> None:
    model = {"id": "synthetic:qwen3_moe", "label": "mixture", "config": given}
    runs = planned({"rtn": {"group_size": 32}}, model=model)
    assert "is not known to quantize the experts" in str(runs["rtn group_size=32"].unsupported)
    assert runs["none"].unsupported is None
    assert runs["none"].weight_bytes is not None


def test_weights_are_planned_with_the_experts_as_they_are(planned: Callable[..., dict[str, PlannedRun]]) -> None:
    """In float32: 4 bytes a number, but for the codes of the method that quantizes experts."""
    runs = planned({"rtn": {"group_size": 32}}, {"gptqmodel-gguf": {"format": "q8_0"}})
    plain, left, packed = (
        runs[label].weight_bytes for label in ("none", "rtn group_size=32", "gptqmodel-gguf format=q8_0")
    )
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
    assert in_decoder(name, dimensions) == (not name.endswith("_bias"))
