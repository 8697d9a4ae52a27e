"""What a checkpoint of neural-compressor's layers looks like, and how transformers loads it.

The library's own ways of saving are pickles, or a folder that says it is GPTQ's, which for 3 bits it is not (ten codes
to a word) and which has no place for AWQ's factors. Here its layers are saved as they are, by transformers.
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

QUANT_METHOD = "qharness-inc"


class IncConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What a checkpoint's ``quantization_config`` holds. ``layers`` says [bits, group size, scaled] of every layer.

    The group size is -1 for one group per output channel; a scaled layer multiplies its input by factors (AWQ).
    """

    def __init__(self, layers: dict[str, list[Any]] | None = None, **kwargs: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.layers = layers or {}


class IncQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts the library's empty layers where the checkpoint holds packed weights."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        for name, linear in decoder_linears(model):
            if name in self.quantization_config.layers:
                bits, group_size, scaled = self.quantization_config.layers[name]
                with torch.device("cpu"):  # where the layer puts its own tensors; a model being loaded is on none
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
    """Makes transformers know the format; once is enough."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(IncConfig)
        register_quantizer(QUANT_METHOD)(IncQuantizer)
