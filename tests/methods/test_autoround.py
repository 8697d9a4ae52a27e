"""auto-round on the tiny model: what it stores, whether a reload is what was in memory, whether it saw all rows."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_families import families
from transformers import AutoModelForCausalLM

from harness.core.method import CalibrationSet, QuantizeJob
from harness.methods.autoround import driver as autoround
from harness.methods.autoround.autoround import AUTOROUND, AutoRoundParams
from harness.methods.autoround.fp8 import AUTOROUND_FP8
from harness.models import stored
from harness.models.headers import read_directory

pytestmark = pytest.mark.heavy


def checkpoint_bits(tiny, made) -> dict[str, float]:
    """Bits of a quantized weight in the checkpoint, by layer."""
    layers = stored.layers(read_directory(tiny).shapes, made.folder)
    return {layer.name: 8 * (layer.value_bytes + layer.scale_bytes) / layer.parameters for layer in layers}


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "dtype", "most_kl"),
    [(4, 32, False, "float32", 0.05), (3, 32, True, "bfloat16", 0.2)],
)
def test_the_reload_is_what_was_in_memory(
    make, bits: int, group_size: object, symmetric: bool, dtype: str, most_kl: float
) -> None:
    made = make("autoround", dtype=dtype, bits=bits, group_size=group_size, symmetric=symmetric, iterations=1)
    assert made.reload_difference < 1e-4
    assert 0 < made.kl < most_kl
    assert made.model.kernels() == {"QuantLinear": 28}
    assert families(made.model) == {"dequantize": 28}
    assert made.model.attention == "sdpa"


def test_it_stores_what_it_says_in_the_layers_that_it_was_told_to(make, tiny, monkeypatch) -> None:
    from auto_round.calibration.llm import LLMCalibrator

    seen = []
    calib = LLMCalibrator.calib

    def count(self, nsamples: int, batch_size: int) -> None:
        calib(self, nsamples, batch_size)
        seen.append(len(self.inputs["input_ids"]))

    monkeypatch.setattr(LLMCalibrator, "calib", count)
    kept = "model.layers.1.mlp.down_proj"
    made = make("autoround", untouched=("lm_head", kept), bits=2, group_size=32, iterations=1)
    assert seen == [16]
    assert made.reload_difference < 1e-4
    assert 0.2 < made.kl < 5
    assert made.model.kernels() == {"QuantLinear": 27, "Linear": 1}
    bits = checkpoint_bits(tiny, made)
    assert bits.pop(kept) == 32
    expected = AUTOROUND.bits_per_weight(AutoRoundParams(bits=2, group_size=32), 32.0, 64)
    assert list(bits.values()) == pytest.approx([expected] * 27, rel=0.02)
    entries = [entry for entry in made.model.weight_ledger() if entry.quantized]
    assert {entry.name.removesuffix(".weight") for entry in entries} == set(bits)
    assert sum(entry.value_bytes for entry in entries) * 8 == 2 * sum(entry.parameters for entry in entries)


@pytest.mark.thorough
@pytest.mark.usefixtures("eager", "frozen_heap")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_disk_it_writes_the_same_files_and_leaves_no_others(
    tiny: Path, tmp_path: Path, calibration: CalibrationSet, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever dtype the checkpoint has: it is read in that of the recipe, and the library works in float32."""
    folders = {name: tmp_path / name for name in ("whole", "parts", "current", "temporary")}
    for name in ("current", "temporary"):
        folders[name].mkdir()
    monkeypatch.chdir(folders["current"])
    monkeypatch.setattr(tempfile, "tempdir", str(folders["temporary"]))
    autoround.enable()
    probe = torch.arange(2, 34).unsqueeze(0)
    logits: dict[str, torch.Tensor] = {}
    for way, quantize in (("whole", AUTOROUND.quantize), ("parts", AUTOROUND.quantize_parts)):
        assert quantize is not None
        job = QuantizeJob(
            AutoRoundParams(bits=4, group_size=32, symmetric=False, iterations=1),
            tiny,
            folders[way],
            "cpu",
            dtype,
            0,
            partial(AutoModelForCausalLM.from_pretrained, tiny, dtype=getattr(torch, dtype)),
            calibration,
            untouched=("lm_head", "model.layers.1.mlp.down_proj"),
            overrides={"model.layers.0.mlp.up_proj": {"bits": 8}},
            probe=lambda model, way=way: logits.update({way: model(input_ids=probe).logits.detach()}),
        )
        quantize(job)
    assert torch.equal(logits["parts"], logits["whole"])
    written = {way: {file.name: file.read_bytes() for file in folders[way].iterdir()} for way in logits}
    assert "model.safetensors" in written["parts"]
    assert written["parts"] == written["whole"]
    assert not [*folders["current"].iterdir(), *folders["temporary"].iterdir()]


def test_static_float8_does_not_come_back_as_it_was(make, tiny) -> None:
    """A live case for the reload check: see harness/methods/autoround_fp8.py."""
    made = make("autoround-fp8")
    assert not made.reload_difference <= 1e-3, (
        f"auto-round's float8 now reloads as it was: {made.reload_difference:.3g} of the largest logit"
    )
    assert made.model.kernels() == {"WeightFP8ActFP8StaticQuantLinear": 28}
    assert families(made.model) == {"dequantize": 28}
    assert list(checkpoint_bits(tiny, made).values()) == pytest.approx([8 + 32 / 64] * 28, rel=0.06)
    assert made.linear_bits == pytest.approx(16 + 16 / 64, rel=0.02), "its codes are widened to bfloat16 on loading"


def test_what_was_made_before_it_said_what_it_only_rounded_is_made_again() -> None:
    """The float8 method learns nothing, so it has nothing to say."""
    assert AUTOROUND.version == 2
    assert AUTOROUND_FP8.version == 1
