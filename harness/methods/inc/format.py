"""The checkpoint format of neural-compressor's layers, and how transformers loads it.

The library itself saves pickles, or a folder that claims GPTQ's format. For 3 bits that claim is false (ten codes per
word), and the format has no place for AWQ's factors. Here transformers saves the library's layers unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear, MulLinear
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from harness.models.scope import decoder_linears
from harness.models.unfuse import unfuse_named

QUANT_METHOD = "qharness-inc"


class IncConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The checkpoint's ``quantization_config``. ``layers`` gives [bits, group size, scaled] of every layer.

    A group size of -1 means one group per output channel; a scaled layer multiplies its input by factors (AWQ).
    """

    def __init__(self, layers: dict[str, list[Any]] | None = None, **kwargs: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.layers = layers or {}


class IncQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts the library's empty layers where the checkpoint holds packed weights."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        unfuse_named(model, self.quantization_config.layers)
        for name, linear in decoder_linears(model):
            if name in self.quantization_config.layers:
                bits, group_size, scaled = self.quantization_config.layers[name]
                with torch.device("cpu"):  # for the layer's own tensors; a model being loaded has no device
                    layer = INCWeightOnlyLinear(
                        linear.in_features, linear.out_features, bits=bits, group_size=group_size
                    )
                    factors = torch.ones(linear.in_features)
                model.set_submodule(name, MulLinear(layer, factors) if scaled else layer)

    def is_serializable(self, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def describe(model: Any) -> IncConfig:
    """The configuration of a model that the library quantized."""
    scaled = {name for name, module in model.named_modules() if isinstance(module, MulLinear)}
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, INCWeightOnlyLinear):
            outer = name.removesuffix(".linear") if name.removesuffix(".linear") in scaled else name
            layers[outer] = [module.bits, module.group_size, outer in scaled]
    return IncConfig(layers)


def register() -> None:
    """Registers the format with transformers; calling it once is enough."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(IncConfig)
        register_quantizer(QUANT_METHOD)(IncQuantizer)
