"""Formats that transformers keeps packed on a GPU only: what their layers store, and how they multiply.

The classes are transformers' own, on the meta device or without content.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.compressed_tensors import CompressedTensorsFP8Linear
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8GroupedLinear, FP8Linear
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

from harness.core.capability import Product, StoredTensor
from harness.models.kernels import products
from harness.numerics.storage import ledger

pytestmark = pytest.mark.heavy

OUTPUTS, INPUTS, EXPERTS = 256, 512, 4
FLOAT8 = Product("packed", "float8_e4m3fn")


class Layer(nn.Module):
    """A model of one layer, with one module in it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"part": module})])


def looked_at(module: nn.Module) -> tuple[dict[str, StoredTensor], dict[str, Product]]:
    """The ledger's matrices and the products of a module, by name within it."""
    model, prefix = Layer(module), "layers.0.part"
    matrices = {each.name: each for each in ledger(model, None, None) if each.role == "linear"}
    multiplied = products(model, torch.bfloat16, rows=1)
    return (
        {name.removeprefix(prefix).removeprefix("."): entry for name, entry in matrices.items()},
        {name.removeprefix(prefix).removeprefix("."): each for name, each in multiplied.items()},
    )


@pytest.mark.parametrize(
    "module",
    [
        FP8Linear(INPUTS, OUTPUTS, block_size=(128, 128)),
        FP8GroupedLinear(INPUTS, OUTPUTS, n_groups=2, block_size=(128, 128)),
    ],
)
def test_a_float8_layer_in_blocks_has_its_scales_and_multiplies_float8(module: nn.Module) -> None:
    matrices, multiplied = looked_at(module)
    (entry,) = matrices.values()
    assert (entry.parameters, entry.value_bytes) == (OUTPUTS * INPUTS, OUTPUTS * INPUTS)
    assert entry.scale_bytes == 4 * (OUTPUTS // 128) * (INPUTS // 128)
    assert entry.quantized
    assert multiplied == {"": FLOAT8}


def test_a_float8_layer_that_was_unpacked_while_loading_is_dense() -> None:
    module = FP8Linear(INPUTS, OUTPUTS, block_size=(128, 128))
    module.weight = nn.Parameter(torch.empty(OUTPUTS, INPUTS, dtype=torch.bfloat16))
    matrices, multiplied = looked_at(module)
    assert not matrices["weight"].quantized
    assert multiplied == {"": Product("plain")}


def test_a_float8_layer_of_compressed_tensors_has_a_scale_per_row() -> None:
    matrices, multiplied = looked_at(CompressedTensorsFP8Linear(INPUTS, OUTPUTS))
    (entry,) = matrices.values()
    assert (entry.value_bytes, entry.scale_bytes, entry.quantized) == (OUTPUTS * INPUTS, 4 * OUTPUTS, True)
    assert multiplied == {"": FLOAT8}


@pytest.mark.parametrize(("kind", "bits"), [("fp8", 8), ("fp4", 4)])
def test_experts_in_float8_or_in_pairs_of_float4_are_stacks_with_their_scales(kind: str, bits: int) -> None:
    config = SimpleNamespace(
        hidden_size=INPUTS,
        num_local_experts=EXPERTS,
        moe_intermediate_size=OUTPUTS,
        hidden_act="silu",
        expert_dtype=kind,
    )
    matrices, multiplied = looked_at(FP8Experts(config, block_size=(128, 128)))
    sizes = {"gate_up_proj": EXPERTS * 2 * OUTPUTS * INPUTS, "down_proj": EXPERTS * OUTPUTS * INPUTS}
    assert {name: entry.parameters for name, entry in matrices.items()} == sizes
    assert {name: entry.value_bytes for name, entry in matrices.items()} == {
        name: size * bits // 8 for name, size in sizes.items()
    }
    blocks = {name: size // 128**2 if kind == "fp8" else size // 32 for name, size in sizes.items()}
    assert {name: entry.scale_bytes for name, entry in matrices.items()} == {
        n: 4 * count for n, count in blocks.items()
    }
    assert multiplied == dict.fromkeys(sizes, FLOAT8)


def triton_tensor(shape: tuple[int, ...], size: int) -> Any:
    """What OpenAI's Triton kernels keep: a logical shape over a tensor of bytes in a layout of their own."""
    return SimpleNamespace(shape=torch.Size(shape), storage=SimpleNamespace(data=torch.zeros(size, dtype=torch.uint8)))


def test_experts_in_mxfp4_are_counted_though_they_are_no_parameters() -> None:
    module = Mxfp4GptOssExperts(
        SimpleNamespace(num_local_experts=EXPERTS, intermediate_size=OUTPUTS, hidden_size=INPUTS)
    )
    sizes = {"gate_up_proj": (INPUTS, 2 * OUTPUTS), "down_proj": (OUTPUTS, INPUTS)}
    for name, (rows, columns) in sizes.items():  # as transformers does once it has loaded a stack
        del module._parameters[name]
        count = EXPERTS * rows * columns
        setattr(module, name, triton_tensor((EXPERTS, rows, columns), count // 2))
        scale = triton_tensor((EXPERTS, rows // 32, columns), count // 32)
        setattr(module, f"{name}_precision_config", SimpleNamespace(weight_scale=scale))
    matrices, multiplied = looked_at(module)
    stacks = {name: entry for name, entry in matrices.items() if not name.endswith("bias")}
    assert {name: entry.parameters for name, entry in stacks.items()} == {
        name: EXPERTS * rows * columns for name, (rows, columns) in sizes.items()
    }
    for entry in stacks.values():
        assert 8 * (entry.value_bytes + entry.scale_bytes) / entry.parameters == 4.25
        assert entry.quantized
    assert multiplied == dict.fromkeys(sizes, Product("packed", "bfloat16"))
