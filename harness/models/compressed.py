"""Checkpoints of compressed-tensors, whose matrices are made dense while they are loaded.

transformers does that in the first call of the whole model, so that a call of its decoder alone fails; and it unpacks
4-bit floats and microscaled formats to bfloat16, which a model of another dtype cannot multiply. Input quantization
stays in place. The quantizer does it after loading, so that a streamed model does it by part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness.core.format import Codes

if TYPE_CHECKING:
    import torch

QUANT_METHOD = "compressed-tensors"
_PACKED = ".weight_packed"
_BESIDE = re.compile(r"[._](weight|input|output)_(scale|global_scale|zero_point|g_idx|shape)$")
"""What is stored beside a matrix of codes: a dense one has none of it."""
_BITS_OF_A_PACKAGE = {"int": 32, "float": 8}
"""Of the numbers that codes are packed into, by the kind of a code."""


def dense_shapes(shapes: Mapping[str, tuple[int, ...]], codes: Codes) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the dense model by those of the stored tensors.

    Those stored where the width of a code is not known, because layers differ.
    """
    package = _BITS_OF_A_PACKAGE[codes.number or "int"]
    if codes.bits is None or not 0 < codes.bits <= package:
        return shapes
    columns = package // codes.bits
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith(_PACKED):
            found[name.removesuffix("_packed")] = (*shape[:-1], shape[-1] * columns)
        elif not _BESIDE.search(name):
            found[name] = shape
    return found


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
