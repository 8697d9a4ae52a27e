"""Scales that are NaN, infinite or zero are found by the names of their tensors, whatever format stores them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.core.capability import ScaleFault
from harness.models.headers import GGUF_FILE
from harness.models.scales import check_stored

pytestmark = pytest.mark.heavy
Q = "model.layers.0.self_attn.q_proj"
EXPERT = "model.layers.0.mlp.experts.3.down_proj"
MXFP4 = "model.layers.0.mlp.experts.gate_up_proj"


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def codes(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("beside", "scale", "dtype"),
    [
        (f"{EXPERT}.packed", f"{EXPERT}.scale", torch.float16),
        (f"{EXPERT}.qweight", f"{EXPERT}.scales", torch.bfloat16),
        (f"{EXPERT}.weight_packed", f"{EXPERT}.weight_scale", torch.float8_e4m3fn),
        (f"{EXPERT}.weight_packed", f"{EXPERT}.weight_scale", torch.float8_e5m2),
        (f"{EXPERT}.weight_packed", f"{EXPERT}.weight_global_scale", torch.float32),
        (f"{EXPERT}.weight", f"{EXPERT}.weight_scale_inv", torch.float32),
        (f"{EXPERT}.weight", f"{EXPERT}.weight_scale_2", torch.float32),
        (f"{EXPERT}.weight", f"{EXPERT}.weight.absmax", torch.float32),
        (f"{EXPERT}.weight", f"{EXPERT}.weight.nested_absmax", torch.float32),
        (f"{EXPERT}.weight", f"{EXPERT}.SCB", torch.float32),
    ],
)
def test_a_planted_scale_is_found_in_every_format(tmp_path: Path, beside: str, scale: str, dtype: torch.dtype) -> None:
    values = torch.linspace(0.25, 2, 24).reshape(4, 6)
    values[1, 2], values[3, 0], values[3, 1] = math.nan, 0, -0.0
    folder = written(tmp_path, {beside: codes(4, 96), scale: values.to(dtype), f"{Q}.weight": torch.zeros(4, 4)})
    found = check_stored(folder)
    assert (found.tensors, found.scales) == (1, 24)
    assert found.faults == (ScaleFault(scale, 24, 1, 2),)
    assert found.faults[0].fatal


def test_the_powers_of_two_of_a_microscaling_format_have_a_nan_and_no_zero(tmp_path: Path) -> None:
    scales = torch.full((2, 8), 127, dtype=torch.uint8)
    scales[0, 0], scales[1, 1] = 0, 255
    folder = written(tmp_path, {f"{MXFP4}_blocks": codes(2, 8, 16), f"{MXFP4}_scales": scales})
    assert check_stored(folder).faults == (ScaleFault(f"{MXFP4}_scales", 16, 1, 0),)


def test_what_is_no_scale_of_codes_is_left_alone(tmp_path: Path) -> None:
    """A plain layer's own parameter, a bias of zeros, zero points, and the nested code of bitsandbytes' scales."""
    tensors = {
        "model.layers.0.router.scale": torch.zeros(4),
        "model.layers.0.router.weight": torch.zeros(4, 4),
        f"{Q}.weight": codes(64, 1),
        f"{Q}.bias": torch.zeros(4),
        f"{Q}.weight.absmax": torch.zeros(4, dtype=torch.uint8),
        f"{Q}.weight.quant_map": torch.zeros(16),
        f"{Q}.zero_point": torch.zeros(4, dtype=torch.uint8),
    }
    assert check_stored(written(tmp_path, tensors)).tensors == 0


def test_a_group_of_zeros_is_told_from_a_matrix_of_zeros(tmp_path: Path) -> None:
    some, none = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.zeros(2, 2)
    tensors = {f"{Q}.packed": codes(8), f"{Q}.scale": some, f"{EXPERT}.packed": codes(8), f"{EXPERT}.scale": none}
    fatal = {each.name: each.fatal for each in check_stored(written(tmp_path, tensors)).faults}
    assert fatal == {f"{Q}.scale": False, f"{EXPERT}.scale": True}


def test_float8_scales_decode_as_torch_decodes_them(tmp_path: Path) -> None:
    """Every code of both formats: what is zero and what is not finite are torch's own."""
    every = torch.arange(256, dtype=torch.uint8)
    for number, dtype in enumerate((torch.float8_e4m3fn, torch.float8_e5m2)):
        values = every.view(dtype)
        folder = tmp_path / str(number)
        folder.mkdir()
        (fault,) = check_stored(written(folder, {f"{Q}.weight": codes(4), f"{Q}.weight_scale": values})).faults
        assert fault.not_finite == int((~values.float().isfinite()).sum())
        assert fault.zero == int((values.float() == 0).sum())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_a_block_of_a_gguf_file_has_its_scale_where_the_gguf_package_decodes_it(tmp_path: Path, kind: str) -> None:
    """Only NaN in the block's scale makes the gguf package decode all of its weights to NaN."""
    import gguf
    from gguf.quants import dequantize

    from harness.models.scales import _BLOCK_SCALES

    quantization = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[quantization]
    assert _BLOCK_SCALES[kind][0] == size
    blocks = np.ones((4, size), np.uint8)
    at = _BLOCK_SCALES[kind][1]
    blocks[:, at : at + 2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    blocks[2, at : at + 2] = np.frombuffer(np.float16(math.nan).tobytes(), np.uint8)
    decoded = dequantize(blocks.reshape(1, -1), quantization).reshape(4, weights)
    assert np.isnan(decoded[2]).all()
    assert np.isfinite(decoded[[0, 1, 3]]).all()
    writer = gguf.GGUFWriter(tmp_path / GGUF_FILE, "llama")
    writer.add_tensor("blk.0.attn_q.weight", blocks.reshape(1, -1), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert check_stored(tmp_path).faults == (ScaleFault("blk.0.attn_q.weight", 4, 1, 0),)


@pytest.mark.parametrize(("bits", "layout", "kind"), [(4, "q_0", "Q4_0"), (6, "q_k", "Q6_K")])
def test_blocks_that_gptqmodel_stores_in_safetensors_have_their_scales_inside(
    tmp_path: Path, bits: int, layout: str, kind: str
) -> None:
    from harness.models.scales import _BLOCK_SCALES

    size, at = _BLOCK_SCALES[kind]
    rows = torch.full((2, 3 * size), 60, dtype=torch.uint8)
    rows[1, size + at : size + at + 2] = torch.tensor([0, 126], dtype=torch.uint8)  # the float16 that is NaN
    rows[0, at : at + 2] = 0
    written(tmp_path, {f"{EXPERT}.qweight": rows, f"{EXPERT}.bias": torch.zeros(2)})
    config = {"quantization_config": {"quant_method": "gguf", "bits": bits, "format": layout}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = check_stored(tmp_path)
    assert found.faults == (ScaleFault(f"{EXPERT}.qweight", 6, 1, 1),)
