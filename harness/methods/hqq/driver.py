"""hqq's layers as a checkpoint stores them, and how transformers loads such a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from harness.models.unfuse import unfuse_named

QUANT_METHOD = "qharness-hqq"


class HqqCodes(torch.nn.Module):
    """What is stored of a quantized matrix (rows, columns). ``forward`` multiplies as the layer that hqq makes of it.

    ``W_q`` holds packed codes, ``scale`` and ``zero`` (groups, 1) those of their groups along the columns, in the dtype
    of the model.
    """

    W_q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bias: torch.nn.Parameter | None

    def __init__(
        self, rows: int, columns: int, bits: int, group_size: int, dtype: torch.dtype, bias: torch.nn.Parameter | None
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.bits, self.group_size = rows, columns, bits, group_size
        groups = rows * columns // group_size
        pack = Quantizer.pack[Quantizer.bit_to_packing[bits]]
        shape = pack(torch.empty(groups, group_size, dtype=torch.uint8, device="meta"))
        self.register_buffer("W_q", torch.empty(shape.shape, dtype=shape.dtype))
        self.register_buffer("scale", torch.empty(groups, 1, dtype=dtype))
        self.register_buffer("zero", torch.empty(groups, 1, dtype=dtype))
        self.register_parameter("bias", bias)
        self._layer: tuple[HQQLinear, ...] = ()  # in a tuple, so that its tensors are not this module's too

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, bits: int, group_size: int, dtype: torch.dtype) -> HqqCodes:
        """The quantized layer; of a layer on the meta device one with shapes but no numbers."""
        device = linear.weight.device
        with torch.device(device):
            made = cls(linear.out_features, linear.in_features, bits, group_size, dtype, linear.bias)
        if device.type == "meta":
            return made
        layer = HQQLinear(linear, _configuration(bits, group_size), compute_dtype=dtype, device=str(device))
        made._layer = (layer,)
        made.W_q = layer.W_q.data.contiguous()
        made.scale, made.zero = layer.meta["scale"].contiguous(), layer.meta["zero"].contiguous()
        if layer.bias is not None:
            made.bias = torch.nn.Parameter(layer.bias, requires_grad=False)
        return made

    def as_layer(self, dtype: torch.dtype) -> HQQLinear:
        """hqq's own layer with the stored tensors, which computes in ``dtype``."""
        device = str(self.W_q.device)
        layer = HQQLinear(
            None, _configuration(self.bits, self.group_size), compute_dtype=dtype, device=device, initialize=False
        )
        packing = Quantizer.bit_to_packing[self.bits]
        state = {
            "W_q": torch.nn.Parameter(self.W_q, requires_grad=False),
            "scale": self.scale,
            "zero": self.zero,
            "nbits": self.bits,
            "group_size": self.group_size,
            "shape": torch.Size((self.rows, self.columns)),
            "axis": 1,
            "packing": packing,
            "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
            "view_as_float": False,
            "quant_scale": False,
            "quant_zero": False,
        }
        layer.load_state_dict(state if self.bias is None else {**state, "bias": self.bias.data})
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self._layer[0](x)
        return product


def _configuration(bits: int, group_size: int) -> dict[str, Any]:
    """hqq's configuration: groups along the input columns, as its authors recommend."""
    return BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)  # type: ignore[no-any-return]


class HqqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Bits and group size of each quantized layer by name, and the dtype to compute in."""

    def __init__(self, layers: Mapping[str, Mapping[str, Any]], dtype: str, **kwargs: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.layers, self.dtype = layers, dtype


class HqqQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts empty codes where the checkpoint holds some, and makes hqq's own layers of them once they are loaded."""

    def __init__(self, quantization_config: HqqConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **{**kwargs, "pre_quantized": True})

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        layers = self.quantization_config.layers
        unfuse_named(model, layers)
        for name, layer in layers.items():
            linear, (rows, columns) = model.get_submodule(name), layer["shape"]
            with torch.device(linear.weight.device):
                empty = HqqCodes(rows, columns, layer["bits"], layer["group_size"], self._dtype, linear.bias)
            model.set_submodule(name, empty)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, HqqCodes):
                model.set_submodule(name, module.as_layer(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.quantization_config.dtype)
        return dtype

    def is_serializable(self, **kwargs: Any) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Registers the format with transformers; calling it once is enough."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(HqqConfig)
        register_quantizer(QUANT_METHOD)(HqqQuantizer)
