"""optimum-quanto on the tiny model: offline, its own file format, no compiler."""

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
from safetensors.torch import load_file, save_file
from thorough import all_thorough_but

from harness import plugins as registry
from harness.core.capability import ScaleFault
from harness.errors import UnsupportedError
from harness.methods.quanto.quanto import unpack
from harness.models.scales import check_stored

pytestmark = pytest.mark.heavy

SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (192, 64), (192, 64), (64, 192)]
WEIGHTS = sum(rows * columns for rows, columns in SHAPES)
PLANTED = "model.layers.1.mlp.down_proj"

Make = Callable[..., Any]


def stored_bits(folder: Path) -> float:
    """Bits per decoder weight in the checkpoint's header."""
    with (folder / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    entries = [e for n, e in header.items() if "_proj.weight." in n]
    return 8 * sum(e["data_offsets"][1] - e["data_offsets"][0] for e in entries) / (4 * WEIGHTS)


@pytest.mark.parametrize("weights", all_thorough_but(["int8", "int4"], ["int8", "float8", "int4", "int2"]))
def test_a_checkpoint_is_what_quanto_quantized(make: Make, weights: str) -> None:
    made = make("quanto", weights=weights)
    assert made.reload_difference < 1e-5
    kind = "WeightQBytesTensor" if "8" in weights else "WeightQBitsTensor"
    assert made.model.kernels() == {f"QLinear of {kind}": 28}
    assert families(made.model) == {"dequantize": 28}
    expected = sum(r * c * made.method.bits_per_weight(made.params, 32, c) for r, c in SHAPES) / WEIGHTS
    assert made.linear_bits == pytest.approx(expected, rel=0.02)
    assert stored_bits(made.folder) == pytest.approx(expected, rel=0.02)
    assert {entry.role for entry in made.model.weight_ledger() if entry.quantized} == {"linear"}


def test_half_precision_scales_are_half_as_large(make: Make) -> None:
    made = make("quanto", weights="int4", dtype="float16")
    expected = sum(r * c * made.method.bits_per_weight(made.params, 16, c) for r, c in SHAPES) / WEIGHTS
    assert made.linear_bits == pytest.approx(expected, rel=0.02)
    assert made.reload_difference < 1e-3


@pytest.mark.parametrize("weights", all_thorough_but(["int4"], ["int8", "float8", "int4", "int2"]))
def test_a_planted_scale_is_found_in_the_checkpoint_and_in_the_loaded_model(make: Make, weights: str) -> None:
    made = make("quanto", weights=weights)
    stored = check_stored(made.folder)
    assert stored == made.model.check_scales()
    assert (stored.tensors, stored.faults) == (28, ())
    weight = made.model._model.get_submodule(PLANTED).weight
    with torch.inference_mode():
        weight._scale.view(-1)[1] = math.nan
    (fault,) = made.model.check_scales().faults
    assert fault == ScaleFault(f"{PLANTED}.weight._scale", weight._scale.numel(), 1, 0)
    file = made.folder / "model.safetensors"
    tensors = load_file(file)
    tensors[fault.name].view(-1)[1] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    assert check_stored(made.folder).faults == (fault,)


@pytest.mark.thorough
def test_more_bits_diverge_less(make: Make) -> None:
    divergences = [make("quanto", weights=weights).kl for weights in ("int8", "float8", "int4", "int2")]
    assert divergences == sorted(divergences)
    assert 0 < divergences[0] < 0.01


def test_untouched_modules_stay_as_they_were(make: Make) -> None:
    skipped = "model.layers.1.self_attn.q_proj"
    made = make("quanto", weights="int4", untouched=("lm_head", skipped))
    assert made.reload_difference < 1e-5
    assert made.model.kernels() == {"QLinear of WeightQBitsTensor": 27, "Linear": 1}
    assert not {e.name: e for e in made.model.weight_ledger()}[f"{skipped}.weight"].quantized


def test_its_own_choice_of_group_is_known() -> None:
    method = registry.method("quanto")

    def bits(width: int) -> float:
        return method.bits_per_weight(method.params.model_validate({"weights": "int4"}), 16, width)

    assert bits(4096) == 4 + 32 / 128
    assert bits(576) == 4 + 32 / 96
    assert bits(160) == 4 + 32 / 32
    assert bits(64) == 4 + 32 / 64  # a row no longer than 128 is one group
    assert bits(200) == 4 + 32 / 200  # nothing divides it


def test_unpacking_is_that_of_the_extension() -> None:
    """The codes of the low bits come first, as in quanto's unpack.cpp."""
    packed = torch.tensor([[0b11100100], [0b00011011]], dtype=torch.uint8)
    assert unpack(packed, 2).flatten().tolist() == [0, 3, 1, 2, 2, 1, 3, 0]
    assert unpack(packed, 4).flatten().tolist() == [4, 11, 14, 1]


def test_what_crashes_is_refused(make: Make) -> None:
    with pytest.raises(UnsupportedError, match="segmentation"):
        make("quanto", weights="int8", dtype="bfloat16")
