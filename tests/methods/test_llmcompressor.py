"""llm-compressor's methods: what their checkpoints hold, and that a reload computes what was quantized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import quantized
from kernel_families import families
from safetensors.torch import load_file
from thorough import all_thorough_but
from transformers import AutoModelForCausalLM

from harness import plugins as registry
from harness.core.engine import LoadRequest
from harness.core.method import CalibrationSet, QuantizeJob
from harness.errors import UnsupportedError
from harness.execution.local import local_site
from harness.models import headers, stored
from harness.models.compressed import dense_shapes
from harness.models.loading import load_transformers

pytestmark = pytest.mark.heavy

LAYERS = 28
TOKENS = torch.arange(2, 34).unsqueeze(0)

VARIANTS: list[tuple[str, dict[str, Any], str]] = [
    ("llmc-rtn", {"bits": 8, "group_size": 32}, "I32"),
    ("llmc-rtn", {"bits": 4, "group_size": 32}, "I32"),
    ("llmc-rtn", {"bits": 3, "group_size": 64, "symmetric": False}, "I32"),
    ("llmc-rtn", {"bits": 2, "group_size": "channel", "symmetric": False}, "I32"),
    ("llmc-gptq", {"bits": 8, "group_size": 64}, "I32"),
    ("llmc-gptq", {"bits": 4, "group_size": 32, "symmetric": False}, "I32"),
    ("llmc-gptq", {"bits": 3, "group_size": "channel", "act_order": False, "damping": 0.05}, "I32"),
    ("llmc-gptq", {"bits": 2, "group_size": 32}, "I32"),
    ("llmc-fp8", {}, "F8_E4M3"),
    ("llmc-fp8", {"scheme": "static"}, "F8_E4M3"),
    ("llmc-fp8", {"scheme": "block", "block_size": 32}, "F8_E4M3"),
    ("llmc-fp8", {"scheme": "weight_only"}, "F8_E4M3"),
    ("llmc-int8", {}, "I8"),
    ("llmc-int8", {"activations": "static"}, "I8"),
    ("llmc-int8", {"smoothquant": True, "strength": 0.8}, "I8"),
    ("llmc-w4a8", {"group_size": 32}, "I8"),
    ("llmc-w4a8", {"group_size": "channel", "gptq": True}, "I8"),
    ("llmc-nvfp4", {}, "U8"),
    ("llmc-nvfp4", {"activations": False}, "U8"),
    ("llmc-mxfp4", {}, "U8"),
    ("llmc-mxfp4", {"activations": False}, "U8"),
    ("llmc-mxfp8", {}, "F8_E4M3"),
    ("llmc-mxfp8", {"activations": False}, "F8_E4M3"),
    ("llmc-awq", {"group_size": 32, "grid": 5}, "I32"),
]


@contextmanager
def embedded() -> Iterator[set[tuple[int, ...]]]:
    """The rows of ids that reach any embedding while this lasts."""
    seen: set[tuple[int, ...]] = set()

    def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding):
            seen.update(tuple(row) for row in inputs[0].tolist())

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


FIRST = [next(each for each in VARIANTS if each[0] == name) for name in dict(variant[:2] for variant in VARIANTS)]
"""One variant of each method."""


@pytest.mark.parametrize(("name", "params", "dtype"), all_thorough_but(FIRST, VARIANTS), ids=str)
def test_a_variant_is_stored_and_reloaded_as_it_was_quantized(
    make, tiny, calibration, tmp_path_factory, monkeypatch, name: str, params: dict[str, Any], dtype: str
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    with embedded() as seen:
        made = make(name, **params)
    assert not list(here.iterdir())

    assert made.reload_difference < 1e-6
    assert 1e-6 < made.kl < 3
    samples = {tuple(row) for row in calibration.tokens}
    assert samples & seen == (samples if made.method.calibrated(made.params) else set())

    source = headers.read_directory(tiny).shapes
    layers = stored.layers(source, made.folder)
    assert dense_shapes(made.folder) == source
    assert len(layers) == LAYERS
    assert [layer.quantized for layer in layers] == [layer.parameters for layer in layers]
    weights = sum(layer.parameters for layer in layers)
    shapes = [source[f"{layer.name}.weight"] for layer in layers]
    expected = sum(rows * width * made.method.bits_per_weight(made.params, 32.0, width) for rows, width in shapes)
    assert 8 * sum(layer.value_bytes + layer.scale_bytes for layer in layers) == pytest.approx(expected, rel=0.02)
    held = {tensor.name: tensor.dtype for tensor in headers.tensors(made.folder)}
    codes = [held.get(f"{layer.name}.weight_packed", held.get(f"{layer.name}.weight")) for layer in layers]
    assert codes == [dtype] * LAYERS

    assert families(made.model) == {"plain": LAYERS}
    assert made.linear_bits == 32
    assert sum(entry.parameters for entry in made.model.weight_ledger() if entry.role == "linear") == weights


@pytest.mark.thorough
def test_more_bits_diverge_less(make) -> None:
    for method in ("llmc-rtn", "llmc-gptq"):
        divergences = [make(method, bits=bits, group_size=32).kl for bits in (8, 4, 3, 2)]
        assert divergences == sorted(divergences), method
    assert make("llmc-mxfp8").kl < make("llmc-mxfp4").kl


@pytest.mark.parametrize(
    ("name", "with_activations", "without"),
    [
        ("llmc-fp8", {"scheme": "dynamic"}, {"scheme": "weight_only"}),
        *(
            pytest.param(name, {"activations": True}, {"activations": False}, marks=pytest.mark.thorough)
            for name in ("llmc-nvfp4", "llmc-mxfp4", "llmc-mxfp8")
        ),
    ],
)
def test_a_reloaded_model_quantizes_its_activations(make, name, with_activations, without) -> None:
    """The two variants hold the same codes: what differs when they run is what happens to the activations."""
    both, weights = make(name, **with_activations), make(name, **without)
    difference = (both.loaded - weights.loaded).abs().max() / weights.loaded.abs().max()
    assert difference > 0.01
    assert both.kl > weights.kl


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llmc-nvfp4", "llmc-mxfp4", "llmc-mxfp8"])
def test_small_floats_run_in_the_dtype_that_is_asked_for(make, name: str, dtype: str) -> None:
    """transformers alone makes bfloat16 of them, whatever the model's dtype."""
    made = make(name, dtype=dtype)
    assert made.reload_difference < 1e-3
    assert {entry.storage for entry in made.model.weight_ledger() if entry.role == "linear"} == {dtype}


@pytest.mark.parametrize("name", all_thorough_but(("llmc-rtn",), ("llmc-rtn", "llmc-gptq", "llmc-int8", "llmc-mxfp4")))
def test_an_untouched_module_stays(make, tiny: Path, name: str) -> None:
    kept = "model.layers.1.mlp.down_proj.weight"
    params = {"group_size": 32} if name in ("llmc-rtn", "llmc-gptq") else {}
    made = make(name, untouched=("lm_head", kept.removesuffix(".weight")), **params)
    assert torch.equal(load_file(made.folder / "model.safetensors")[kept], load_file(tiny / "model.safetensors")[kept])
    quantized = [layer for layer in stored.layers(headers.read_directory(tiny).shapes, made.folder) if layer.quantized]
    assert len(quantized) == LAYERS - 1
    assert made.reload_difference < 1e-6


def quantize(
    name: str, tiny: Path, out: Path, calibration: CalibrationSet, overrides: dict[str, dict[str, Any]], **params: Any
) -> tuple[torch.Tensor, list[str]]:
    """The logits of a model in memory and the modules only rounded to nearest, without the fixture: for other jobs."""
    chosen = registry.method(name)
    if lacking := registry.missing(chosen, local_site()):
        pytest.skip(lacking)
    rounded: list[str] = []

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny, dtype="float32").eval()

    job = QuantizeJob(
        chosen.params.model_validate(params),
        tiny,
        out,
        "cpu",
        "float32",
        0,
        load,
        calibration,
        untouched=("lm_head",),
        overrides=overrides,
        rounded=rounded.extend,
    )
    return quantized(chosen, job, lambda model: model(TOKENS).logits), rounded


@pytest.mark.parametrize("name", all_thorough_but(("llmc-rtn",), ("llmc-rtn", "llmc-gptq")))
def test_overrides_hold_for_their_layers_alone(tiny: Path, tmp_path: Path, calibration, name: str) -> None:
    apart = "model.layers.2.mlp.up_proj"
    overrides = {apart: {"bits": 8, "group_size": "channel", "symmetric": False}}
    in_memory, _ = quantize(name, tiny, tmp_path, calibration, overrides, bits=2, group_size=32)
    held = {tensor.name: tensor.shape for tensor in headers.tensors(tmp_path)}
    assert held[f"{apart}.weight_packed"] == (192, 64 * 8 // 32)
    assert held[f"{apart}.weight_zero_point"] == (192 * 8 // 32, 1)
    assert held["model.layers.2.mlp.gate_proj.weight_packed"] == (192, 64 * 2 // 32)
    assert "model.layers.2.mlp.gate_proj.weight_zero_point" not in held
    assert dense_shapes(tmp_path) == headers.read_directory(tiny).shapes
    reloaded = load_transformers(LoadRequest(tmp_path, "float32", "cpu"))
    with torch.inference_mode():
        torch.testing.assert_close(reloaded(TOKENS).logits, in_memory)


def test_gptq_refuses_an_override_that_it_cannot_keep_to_one_layer(tiny: Path, tmp_path: Path, calibration) -> None:
    with pytest.raises(UnsupportedError, match="one damping for all layers"):
        quantize("llmc-gptq", tiny, tmp_path, calibration, {"model.layers.0.mlp.up_proj": {"damping": 0.1}})


@pytest.mark.thorough
def test_padding_is_left_out_of_the_calibration(tiny: Path, tmp_path: Path, calibration: CalibrationSet) -> None:
    """GPTQ ignores the mask, so what is padding must not reach it: one checkpoint, whatever the padding is."""
    made = []
    for padding in (0, 7):
        rows = [[*row[:40], *[padding] * 24] if i == 15 else row for i, row in enumerate(calibration.tokens)]
        padded = CalibrationSet(rows, [*[64] * 15, 40], "")
        out = tmp_path / str(padding)
        quantize("llmc-gptq", tiny, out, padded, {}, group_size=32)
        made.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


@pytest.mark.thorough
def test_layers_that_gptq_gave_up_on_are_named(tiny: Path, tmp_path: Path, calibration, monkeypatch) -> None:
    from llmcompressor.modifiers.gptq import base

    _, rounded = quantize("llmc-gptq", tiny, tmp_path / "right", calibration, {}, group_size=32)
    assert rounded == []

    def broken(*args: Any, **kwargs: Any) -> Any:
        quantized, losses, fallback = kept(*args, **kwargs)
        return quantized, losses, torch.ones_like(fallback)

    kept = base.quantize_weight
    monkeypatch.setattr(base, "quantize_weight", broken)
    _, rounded = quantize("llmc-gptq", tiny, tmp_path / "wrong", calibration, {}, group_size=32)
    assert len(set(rounded)) == LAYERS
    assert "model.layers.3.mlp.down_proj" in rounded


@pytest.mark.thorough
def test_layers_that_awq_found_no_scales_for_are_named(tiny: Path, tmp_path: Path, calibration, monkeypatch) -> None:
    """A block whose calibration gives nothing, as that of an expert without a token."""
    from llmcompressor.modifiers.transform.awq import AWQModifier

    def run(self: Any, module: torch.nn.Module) -> list[torch.Tensor]:
        return [] if module is blocks[-1] else plain(self, module)

    def setup(self: Any) -> None:
        blocks.append(next(each.parent for each in self._resolved_mappings if each.parent_name == "model.layers.1.mlp"))
        begin(self)

    blocks: list[torch.nn.Module] = []
    plain, begin = AWQModifier._run_samples, AWQModifier._setup_activation_cache_hooks
    monkeypatch.setattr(AWQModifier, "_run_samples", run)
    monkeypatch.setattr(AWQModifier, "_setup_activation_cache_hooks", setup)
    _, rounded = quantize("llmc-awq", tiny, tmp_path, calibration, {}, group_size=32, grid=3)
    assert sorted(rounded) == [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up")]


@pytest.mark.thorough
def test_awq_searches_better_scales_than_none(make) -> None:
    """On tokens that it was not calibrated on, and in few bits, where scaling has something to win."""
    assert make("llmc-awq", bits=3, group_size=64).kl < make("llmc-rtn", bits=3, group_size=64, symmetric=False).kl
