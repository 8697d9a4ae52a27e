"""hqq on the tiny model: its own layers, stored as safetensors."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_families import families
from thorough import all_thorough_but
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from harness.core.capability import ScaleFault
from harness.core.engine import LoadRequest
from harness.core.method import QuantizeJob
from harness.methods.hqq.hqq import HQQ, HqqParams
from harness.models.scales import check_stored

pytestmark = pytest.mark.heavy

Make = Callable[..., Any]


def layers(made: Any) -> dict[str, int]:
    """By class alone: transformers gives HQQLinear an empty ``weight`` in passing."""
    return {name.partition(" of ")[0]: count for name, count in made.model.kernels().items()}


SKIPPED = "model.layers.1.self_attn.q_proj"
WEIGHTS = 4 * 49152  # of the decoder's matrices


def stored_bits(folder: Path) -> float:
    """Bits per decoder weight in the checkpoint's header."""
    with (folder / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    entries = [e for n, e in header.items() if "_proj." in n]
    return 8 * sum(e["data_offsets"][1] - e["data_offsets"][0] for e in entries) / WEIGHTS


@pytest.mark.parametrize("bits", all_thorough_but([4], [8, 4, 3, 2, 1]))
def test_a_checkpoint_is_what_hqq_quantized(make: Make, bits: int) -> None:
    made = make("hqq", bits=bits, group_size=32)
    assert made.reload_difference < 1e-5
    assert layers(made) == {"HQQLinear": 28}
    assert families(made.model) == {"dequantize": 28}
    expected = made.method.bits_per_weight(made.params, 32, 64)
    assert stored_bits(made.folder) == pytest.approx(expected, rel=0.02)
    assert made.linear_bits == pytest.approx(expected, rel=0.02)
    assert {entry.role for entry in made.model.weight_ledger() if entry.quantized} == {"linear"}
    assert not list(made.folder.glob("*.pt"))


@pytest.mark.parametrize("bits", all_thorough_but([4], [8, 4, 3]))
def test_a_planted_scale_is_found_in_the_loaded_model_as_in_the_checkpoint(make: Make, bits: int) -> None:
    made = make("hqq", bits=bits, group_size=32)
    loaded = made.model.check_scales()
    assert loaded == check_stored(made.folder)
    assert (loaded.tensors, loaded.scales, loaded.faults) == (28, WEIGHTS // 32, ())
    meta = made.model._model.get_submodule(SKIPPED).meta
    meta["scale"][1] = math.nan
    assert made.model.check_scales().faults == (ScaleFault(f"{SKIPPED}.scale", 64 * 64 // 32, 1, 0),)


@pytest.mark.thorough
def test_more_bits_diverge_less(make: Make) -> None:
    divergences = [make("hqq", bits=bits, group_size=32).kl for bits in (8, 4, 3, 2)]
    assert divergences == sorted(divergences)
    assert 0 < divergences[0] < 0.001


@pytest.mark.thorough
def test_smaller_groups_are_nearer_to_the_weights(make: Make, tiny: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    exact = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).get_submodule(name).weight
    errors = []
    for group in (16, 32, 64):
        layer = make("hqq", bits=4, group_size=group).model._model.get_submodule(name)
        errors.append(float((layer.dequantize() - exact).norm() / exact.norm()))
    assert errors == sorted(errors)
    assert errors[-1] < 0.12


def test_single_modules_can_differ(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    own = {SKIPPED: {"bits": 8, "group_size": 16}}

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()

    job = QuantizeJob(
        HqqParams(bits=2), tiny, tmp_path, "cpu", "float32", 0, load, untouched=("lm_head",), overrides=own
    )
    model = HQQ.quantize(job)  # type: ignore[misc]
    again = HQQ.read(LoadRequest(tmp_path, "float32", "cpu"))  # type: ignore[misc]
    kept = again.get_submodule(SKIPPED).meta
    assert (kept["nbits"], kept["group_size"]) == (8, 16)
    assert again.get_submodule("model.layers.0.self_attn.q_proj").meta["nbits"] == 2
    tokens = torch.arange(2, 34).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)


def test_untouched_modules_stay_as_they_were(make: Make) -> None:
    made = make("hqq", bits=4, untouched=("lm_head", SKIPPED))
    assert layers(made) == {"HQQLinear": 27, "Linear": 1}
    entries = {entry.name: entry for entry in made.model.weight_ledger()}
    assert not entries[f"{SKIPPED}.weight"].quantized
    assert entries["lm_head.weight"].tied
    assert made.reload_difference < 1e-5


def test_half_precision_reloads_too(make: Make) -> None:
    made = make("hqq", bits=4, group_size=64, dtype="bfloat16")
    assert made.reload_difference < 1e-3
    assert made.linear_bits == pytest.approx(4 + 2 * 16 / 64, rel=0.02)


def test_single_experts_that_are_skipped_are_read_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    experts = {"num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=64, intermediate_size=64, head_dim=16, **shape, **experts)
    source = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    source.save_pretrained(tmp_path / "source")
    skipped = [f"model.layers.0.mlp.experts.3.{name}_proj" for name in ("gate", "up", "down")]
    untouched = ("lm_head", "model.layers.0.mlp.gate", *skipped)
    job = QuantizeJob(
        HqqParams(group_size=32), tmp_path, tmp_path / "out", "cpu", "float32", 0, lambda: source, untouched=untouched
    )
    model = HQQ.quantize(job)  # type: ignore[misc]
    again = HQQ.read(LoadRequest(tmp_path / "out", "float32", "cpu", untouched=untouched))  # type: ignore[misc]
    tokens = torch.arange(2, 34).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
