"""torchao's formats on the tiny model: what they store, what they cost, what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import pytest
import torch
from kernel_families import families
from thorough import all_thorough_but

from harness import plugins as registry
from harness.core.capability import Product
from harness.core.method import Setting
from harness.errors import UnsupportedError
from harness.models.kernels import product
from harness.models.memory import quantized

pytestmark = pytest.mark.heavy

SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (192, 64), (192, 64), (64, 192)]
WEIGHTS = 4 * sum(rows * columns for rows, columns in SHAPES)
SKIPPED = "model.layers.1.self_attn.q_proj"

Make = Callable[..., Any]


def expected_bits(made: Any, plain_bits: float) -> float:
    bits = made.method.bits_per_weight
    return sum(4 * r * c * bits(made.params, plain_bits, c) for r, c in SHAPES) / WEIGHTS


def classes(made: Any) -> set[str]:
    return set(made.model.kernels())


@pytest.mark.parametrize(
    ("name", "given", "weight", "family"),
    [
        ("torchao-int8-dynamic", {}, "Int8Tensor", "packed"),
        ("torchao-intx", {"bits": 3, "group_size": 32}, "IntxUnpackedToInt8Tensor", "dequantize"),
        ("torchao-int4", {"group_size": 32}, "Int4OpaqueTensor", "packed"),
    ],
)
def test_every_decoder_matrix_is_quantized_and_takes_its_bits(make: Make, name, given, weight, family) -> None:
    made = make(name, **given)
    assert made.model.kernels() == {f"Linear of {weight}": 28}
    assert families(made.model) == {family: 28}
    assert made.linear_bits == pytest.approx(expected_bits(made, 32), rel=0.02)
    assert 0 < made.kl < 0.3
    quantized = {entry.role for entry in made.model.weight_ledger() if entry.quantized}
    assert quantized == {"linear"}


@pytest.mark.parametrize(
    ("name", "code", "block", "dtype", "weight"),
    [
        ("torchao-nvfp4", 4, 16, "float32", "NVFP4Tensor"),
        ("torchao-mxfp8", 8, 32, "bfloat16", "MXTensor"),
        ("torchao-mxfp4", 4, 32, "bfloat16", "MXTensor"),
    ],
)
def test_microscaled_matrices_pad_their_scales(make: Make, name, code, block, dtype, weight) -> None:
    """The scales of a matrix fill tiles of 128 rows and 4 blocks, a byte each; the tiny model has fewer rows."""
    made = make(name, dtype=dtype)
    assert made.method.run_dtype(made.params, "bfloat16") == "bfloat16"
    assert made.model.kernels() == {f"Linear of {weight}": 28}
    assert families(made.model) == {"dequantize": 28}  # emulated on a CPU
    scales = sum(4 * 128 * ceil(rows / 128) * 4 * ceil(columns / (4 * block)) for rows, columns in SHAPES)
    per_matrix = 28 * 4 if name == "torchao-nvfp4" else 0
    assert made.linear_bits == pytest.approx(code + 8 * (scales + per_matrix) / WEIGHTS, rel=1e-6)
    full_tiles = [(128, 576), (1536, 576)]
    for _, columns in full_tiles:
        assert made.method.bits_per_weight(made.params, 16, columns) == pytest.approx(code + 8 / block, rel=0.02)
    assert 0 < made.kl < 0.6


@pytest.mark.thorough
def test_more_bits_diverge_less_and_store_the_same(make: Make) -> None:
    variants = [make("torchao-intx", bits=bits, group_size=32) for bits in (8, 5, 4, 3, 2)]
    divergences = [made.kl for made in variants]
    assert divergences == sorted(divergences)
    assert len({made.linear_bits for made in variants}) == 1
    assert variants[0].linear_bits == 8 + (32 + 8) / 32


@pytest.mark.thorough
def test_wider_groups_diverge_more(make: Make) -> None:
    assert make("torchao-int4", group_size=32).kl < make("torchao-int4", group_size=64).kl


@pytest.mark.thorough
def test_microscaled_floats_of_more_bits_diverge_less(make: Make) -> None:
    assert make("torchao-mxfp8", dtype="bfloat16").kl < make("torchao-mxfp4", dtype="bfloat16").kl


@pytest.mark.parametrize(
    "name",
    all_thorough_but(
        ["torchao-int8-dynamic"], ["torchao-int8-dynamic", "torchao-intx", "torchao-int4", "torchao-nvfp4"]
    ),
)
def test_untouched_modules_stay_as_they_were(make: Make, name: str) -> None:
    made = make(name, untouched=("lm_head", SKIPPED), **({"group_size": 32} if "int4" in name else {}))
    entries = {entry.name: entry for entry in made.model.weight_ledger()}
    assert not entries[f"{SKIPPED}.weight"].quantized
    assert entries["model.layers.0.self_attn.q_proj.weight"].quantized
    assert entries["model.layers.1.self_attn.k_proj.weight"].quantized
    assert made.model.kernels()["Linear"] == 1
    assert not any(entry.quantized for entry in entries.values() if entry.role in ("head", "embedding"))


@pytest.mark.parametrize("name", ["torchao-int8-dynamic", "torchao-mxfp8"])
def test_a_token_does_not_see_what_else_is_in_the_batch(make: Make, name: str) -> None:
    """Scales of activations are per token: another row a thousand times as loud changes nothing."""
    made = make(name, dtype="bfloat16" if "mx" in name else "float32")
    layer = made.model._model.get_submodule("model.layers.0.mlp.down_proj")
    dtype = torch.bfloat16 if "mx" in name else torch.float32
    row = torch.randn(1, 8, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        alone = layer(row)
        together = layer(torch.cat([row, 1000 * row]))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert not made.method.batch_dependent


def test_int8_products_are_those_of_the_integers(make: Make) -> None:
    """Against float64 products of the same codes: no saturation on this machine."""
    from torchao.quantization.quantize_.common.quantize_tensor_kwargs import _choose_quant_func_and_quantize_tensor

    made = make("torchao-int8-dynamic")
    layer = made.model._model.get_submodule("model.layers.0.mlp.down_proj")
    x = torch.full((4, 192), 3.0)
    x[1] = torch.linspace(-5, 5, 192)
    with torch.inference_mode():
        codes = _choose_quant_func_and_quantize_tensor(x, layer.weight.act_quant_kwargs)
        exact = codes.dequantize().double() @ layer.weight.dequantize().double().T
        torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_what_a_format_cannot_do_is_told_before_it_runs() -> None:
    def needs(name: str, **given: Any) -> Any:
        chosen = registry.method(name)
        return chosen.needs(chosen.params.model_validate(given))

    assert needs("torchao-int4", group_size=128).input_divisor == 128
    assert needs("torchao-int4", group_size=128).device is None
    assert needs("torchao-int4", group_size=256).device == "cuda"
    assert needs("torchao-intx", group_size=32).input_divisor == 32
    fp8 = needs("torchao-fp8-dynamic")
    assert (fp8.device, fp8.capability) == ("cuda", (8, 9))
    assert needs("torchao-int8-dynamic").gpu_divisor == 8
    int4 = needs("torchao-int4")
    assert (int4.capability, int4.gpu_dtypes) == ((8, 0), ("bfloat16",))
    method = registry.method("torchao-int4")
    pytest.importorskip("torchao")
    with pytest.raises(UnsupportedError, match="bfloat16"):
        method.load_config(method.params(), Setting("float32", "cuda"))  # type: ignore[misc]


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("shape", [(4096, 14336), (4096, 4096), (1002, 1280), (576, 768)])
def test_int4_on_a_gpu_takes_its_padded_bits(monkeypatch: pytest.MonkeyPatch, group_size: int, shape) -> None:
    """torchao packs a matrix of no content: the shapes of what it stores are those of a GPU of capability 8.0."""
    pytest.importorskip("torchao")
    from torchao.quantization import quantize_

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    chosen = registry.method("torchao-int4")
    params = chosen.params.model_validate({"group_size": group_size})
    config: Any = chosen.load_config(params, Setting("bfloat16", "cuda"))  # type: ignore[misc]
    rows, columns = shape
    layer = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16, device="meta"))
    quantize_(layer, config.quant_type)
    weight: Any = layer[0].weight
    assert type(weight).__name__ == "Int4TilePackedTo4dTensor"
    assert product(layer[0], torch.bfloat16, 1) == Product("packed", "bfloat16")
    stored = sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])
    assert quantized(chosen, params, 16, [shape], "cuda").memory == stored
    padded = chosen.padded("cuda", shape)
    assert padded[0] % 8 == padded[1] % 1024 == 0
    assert quantized(chosen, params, 16, [shape]).memory <= stored, "on a CPU nothing is padded"
