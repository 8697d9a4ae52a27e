"""Checkpoints of compressed-tensors, whose matrices are made dense while they are loaded.

transformers does that in the first call of the whole model, so that a call of its decoder alone fails; and it unpacks
4-bit floats and microscaled formats to bfloat16, which a model of another dtype cannot multiply. Input quantization
stays in place. The quantizer does it after loading, so that a streamed model does it by part.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness.models import headers, safetensors
from harness.models.safetensors import Placed

if TYPE_CHECKING:
    import torch

QUANT_METHOD = "compressed-tensors"
_PACKED = ".weight_packed"
_BESIDE = re.compile(r"[._](weight|input|output)_(scale|global_scale|zero_point|g_idx|shape)$")
"""What is stored beside a matrix of codes: a dense one has none of it."""
_SHAPE = ".weight_shape"
"""The shape of a matrix whose integers are packed: two or three numbers of 64 bits."""
_MOST_DIMENSIONS = 3


def dense_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the dense model, by what a checkpoint's files say of each matrix: layers may differ in width.

    Raises SourceError if they cannot be read.
    """
    stored: dict[str, Placed] = {}
    stated: dict[str, bytes] = {}
    for file in headers.weight_files(folder):
        held = safetensors.read(file)
        stored |= held
        stated |= safetensors.contents(file, {name: each for name, each in held.items() if _states_shape(name, each)})
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in stored.items():
        if name.endswith(_PACKED):
            module = name.removesuffix(_PACKED)
            found[f"{module}.weight"] = _unpacked(tensor, stated.get(f"{module}{_SHAPE}", b""))
        elif not _BESIDE.search(name):
            found[name] = tensor.shape
    return found


def _states_shape(name: str, tensor: Placed) -> bool:
    return name.endswith(_SHAPE) and tensor.dtype == "I64" and tensor.end - tensor.begin <= 8 * _MOST_DIMENSIONS


def _unpacked(packed: Placed, stated: bytes) -> tuple[int, ...]:
    """The shape of a matrix by that of its codes: two 4-bit floats are in a byte, integers have theirs ``stated``.

    That of the codes if nothing is stated that they could be: 1 to 32 of them are in a package of 32 bits.
    """
    if len(packed.shape) < 2:
        return packed.shape
    *rows, columns = packed.shape
    if packed.dtype == "U8":
        return (*rows, 2 * columns)
    shape = struct.unpack(f"<{len(stated) // 8}q", stated)
    return shape if shape[:-1] == tuple(rows) and columns <= shape[-1] <= 32 * columns else packed.shape


@contextmanager
def made_dense(config: Mapping[str, Any], dtype: str) -> Iterator[None]:
    """Within this context transformers loads such a checkpoint with dense matrices in ``dtype``.

    ``config`` is the checkpoint's quantization_config. One whose matrices are stored dense is left as it is.
    """
    if config.get("quant_method") != QUANT_METHOD or config.get("quantization_status") != "compressed":
        yield
        return
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.offload import remove_dispatch
    from transformers import PreTrainedModel
    from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

    wanted: torch.dtype = getattr(torch, dtype)

    def make_dense(quantizer: Any, part: torch.nn.Module, **_: Any) -> None:
        with _unpacking_to(wanted):
            quantizer.compressor.decompress_model(part)
        for module in part.modules():
            if isinstance(module, torch.nn.Linear) and hasattr(module, "quantization_scheme"):
                module.weight.data = module.weight.data.to(wanted)
                for name in [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight_")]:
                    delattr(module, name)  # scales and zero points, which a dense matrix does not need
        if not isinstance(part, PreTrainedModel):  # a part of a streamed model, which is emptied and filled again
            remove_dispatch(part, onload_tensors=True)

    with (
        mock.patch.object(CompressedTensorsHfQuantizer, "_process_model_after_weight_loading", make_dense),
        mock.patch.object(ModelCompressor, "add_decompress_hook"),
    ):
        yield


def _unpacking_to(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Scales 4-bit floats in ``dtype`` within this context, not in bfloat16, which would round them once more."""
    from compressed_tensors.compressors.nvfp4 import base

    return mock.patch.object(base, "unpack_fp4_from_uint8", partial(base.unpack_fp4_from_uint8, dtype=dtype))
