"""What the engine vLLM reads from loaded modules, where vLLM's own models do not show it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness.core.capability import Product, ScaleCheck, ScaleFault, StoredTensor
from harness.engines.vllm.kernels import CheckpointWeights, describe, held_beside_codes
from harness.models.scales import check_tensors

pytestmark = pytest.mark.heavy

VOCABULARY, WIDTH = 7, 4


class UnquantizedMethod:
    """By such a name the harness knows that a layer is not quantized."""


class OtherMethod:
    pass


class VocabParallelEmbedding(nn.Embedding):
    org_vocab_size = VOCABULARY
    quant_method = UnquantizedMethod()


class LinearBase(nn.Module):
    """A layer of vLLM: its parameters, and what multiplies."""

    def __init__(self, method: object, **parameters: torch.Tensor) -> None:
        super().__init__()
        self.input_size, self.output_size, self.quant_method = WIDTH, 2 * WIDTH, method
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def model_of(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def weights(folder: Path, **tensors: torch.Tensor) -> CheckpointWeights:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return CheckpointWeights(folder)


@pytest.mark.parametrize("stored", [False, True], ids=["without a tensor", "with a copy"])
def test_a_head_that_is_the_embeddings_own_module_is_tied(tmp_path: Path, stored: bool) -> None:
    embedding, other = (VocabParallelEmbedding(VOCABULARY, WIDTH) for _ in range(2))
    model = model_of(per_layer=other, embed_tokens=embedding, lm_head=embedding)
    matrix = torch.zeros(VOCABULARY, WIDTH)
    head = {"lm_head__weight": matrix.clone(), "lm_head__bias": torch.zeros(VOCABULARY)} if stored else {}
    checkpoint = weights(tmp_path, per_layer__weight=matrix, embed_tokens__weight=matrix.clone(), **head)
    found = describe(model, checkpoint.modules, torch.float32)
    size = VOCABULARY * WIDTH
    entries = [
        StoredTensor("per_layer.weight", "embedding", "float32", size, 4 * size, 0, False),
        StoredTensor("embed_tokens.weight", "embedding", "float32", size, 4 * size, 0, False),
        StoredTensor("lm_head.weight", "head", "float32", size, 0, 0, False, tied=True),
    ]
    if stored:
        entries.append(StoredTensor("lm_head.bias", "other", "float32", VOCABULARY, 4 * VOCABULARY, 0, False))
    assert sorted(checkpoint.ledger(found), key=str) == sorted(entries, key=str)
    assert checkpoint.arithmetic(found)["lm_head"].activations == "float32"


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    model = model_of(embed_tokens=VocabParallelEmbedding(VOCABULARY, WIDTH), lm_head=LinearBase(OtherMethod()))
    assert describe(model, (), torch.float32).tied is None


def handler() -> SimpleNamespace:
    return SimpleNamespace(kernel=SimpleNamespace(dnnl_handler=SimpleNamespace(k=WIDTH, n=2 * WIDTH)))


def test_a_layer_that_multiplies_in_an_unknown_way_is_described_all_the_same() -> None:
    two = LinearBase(handler(), weight_scale=torch.zeros(3))
    two.scheme = handler()
    flat = LinearBase(OtherMethod(), codes=torch.zeros(5, dtype=torch.int32), scale=torch.zeros(2))
    found = describe(model_of(two=two, flat=flat, none=LinearBase(OtherMethod())), (), torch.bfloat16).layers
    held = {name: (each.value_bytes, each.scale_bytes, each.dtype) for name, each in found.items()}
    assert held == {"two": (2 * 2 * WIDTH**2, 12, "int8"), "flat": (20, 8, "int32"), "none": (0, 0, "bfloat16")}
    assert {(each.family, each.arithmetic) for each in found.values()} == {(None, None)}
    assert {each.parameters for each in found.values()} == {2 * WIDTH**2}


def test_scales_of_quantized_layers_are_looked_at_powers_of_two_among_them() -> None:
    codes, infinite = torch.zeros(4, 4, dtype=torch.int8), float("inf")
    model = model_of(
        channels=LinearBase(OtherMethod(), weight=codes, weight_scale=torch.tensor([[1.0], [infinite], [0.0], [2.0]])),
        powers=LinearBase(OtherMethod(), weight=codes, weight_scale=torch.tensor([[127, 255]], dtype=torch.uint8)),
        plain=LinearBase(UnquantizedMethod(), weight=torch.zeros(2, 2), scale=torch.tensor([infinite])),
    )
    faults = ScaleFault("channels.weight_scale", 4, 1, 1), ScaleFault("powers.weight_scale", 2, 1, 0)
    assert check_tensors(held_beside_codes(model)) == ScaleCheck(2, 6, faults)


class AutoAWQLinearMethod:
    """By this name vLLM has AWQ's own kernels, which a checkpoint gets where Marlin cannot be had."""


class ExllamaLinearKernel:
    def __init__(self, bits: int) -> None:
        self.config = SimpleNamespace(weight_type=SimpleNamespace(size_bits=bits))


class MarlinLinearKernel:
    pass


@pytest.mark.parametrize(
    ("method", "packed_rows"),
    [
        (AutoAWQLinearMethod(), 255),
        (SimpleNamespace(kernel=ExllamaLinearKernel(4)), 50),
        (SimpleNamespace(kernel=ExllamaLinearKernel(8)), 24),
        (SimpleNamespace(kernel=MarlinLinearKernel()), None),
    ],
    ids=["AWQ", "ExLlama 4 bits", "ExLlama 8 bits", "Marlin"],
)
def test_kernels_for_weights_unpack_above_their_rows(tmp_path: Path, method: object, packed_rows: int | None) -> None:
    name = "model.layers.0.mlp.down_proj"
    words = torch.zeros(WIDTH, 1, dtype=torch.int32)
    layer = model_of(mlp=model_of(down_proj=LinearBase(method, qweight=words)))
    model = model_of(model=model_of(layers=nn.ModuleList([layer])))
    checkpoint = weights(tmp_path, **{f"{name}.qweight": words})
    found = describe(model, checkpoint.modules, torch.float32)
    assert checkpoint.products(found, packed_rows or 10**6) == {name: Product("packed", "float32")}
    if packed_rows is not None:
        assert checkpoint.products(found, packed_rows + 1) == {name: Product("dequantize", "float32")}
