"""The layer that ``rtn`` makes, and how transformers loads a checkpoint of such layers."""

from __future__ import annotations

from typing import Any

import torch
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from harness.models.scope import decoder_linears
from harness.models.unfuse import unfuse
from harness.numerics import affine, packing
from harness.numerics.affine import GroupSize

QUANT_METHOD = "qharness-rtn"


class PackedLinear(torch.nn.Module):
    """A linear layer whose matrix (rows, columns) is packed; ``forward`` unpacks it to the input's dtype."""

    packed: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    bias: torch.nn.Parameter | None

    def __init__(self, rows: int, columns: int, bits: int, group_size: GroupSize, bias: torch.nn.Parameter | None):
        super().__init__()
        self.rows, self.columns, self.bits = rows, columns, bits
        groups = columns // group_size if isinstance(group_size, int) else 1
        self.scales = (1, 1) if group_size == "tensor" else (rows, groups)
        count = self.scales[0] * self.scales[1]
        self.register_buffer("packed", torch.empty(packing.packed_bytes(rows * columns, bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.empty(self.scales, dtype=torch.float16))
        self.register_buffer("zero_point", torch.empty(packing.packed_bytes(count, bits), dtype=torch.uint8))
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, bits: int, group_size: GroupSize, symmetric: bool) -> PackedLinear:
        """The quantized layer; of a layer on the meta device one with shapes but no numbers."""
        with torch.device(linear.weight.device):
            layer = cls(linear.out_features, linear.in_features, bits, group_size, linear.bias)
        if linear.weight.is_meta:
            return layer
        weight = affine.quantize(linear.weight, bits, group_size, symmetric)
        layer.packed = packing.pack(weight.codes, bits)
        layer.scale = weight.scale
        layer.zero_point = packing.pack(weight.zero_point, bits)
        return layer

    def packed_weight(self) -> tuple[tuple[int, ...], list[torch.Tensor], dict[str, torch.Tensor]]:
        beside = {"scale": self.scale, "zero_point": self.zero_point}
        return (self.rows, self.columns), [self.packed], beside

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The dequantized matrix (rows, columns)."""
        codes = packing.unpack(self.packed, self.bits, (self.rows, self.columns))
        zero_point = packing.unpack(self.zero_point, self.bits, self.scales)
        return affine.dequantize(codes, self.scale, zero_point, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.dense(x.dtype), self.bias)


class RtnConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The contents of a checkpoint's ``quantization_config``."""

    def __init__(
        self,
        bits: int = 4,
        group_size: GroupSize = 64,
        symmetric: bool = False,
        untouched: list[str] | None = None,
        overrides: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD
        self.bits, self.group_size, self.symmetric = bits, group_size, symmetric
        self.untouched, self.overrides = untouched or [], overrides or {}

    def layout(self, name: str) -> tuple[int, GroupSize]:
        """Bits and group size of one layer."""
        own = self.overrides.get(name, {})
        return own.get("bits", self.bits), own.get("group_size", self.group_size)


class RtnQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts empty packed layers where the checkpoint holds packed weights."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config = self.quantization_config
        unfuse(model, config.untouched)
        for name, linear in decoder_linears(model, config.untouched):
            bits, group_size = config.layout(name)
            with torch.device(linear.weight.device):
                empty = PackedLinear(linear.out_features, linear.in_features, bits, group_size, linear.bias)
            model.set_submodule(name, empty)

    def is_serializable(self, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Registers the format with transformers; calling it once is enough."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(RtnConfig)
        register_quantizer(QUANT_METHOD)(RtnQuantizer)
