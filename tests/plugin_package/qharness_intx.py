"""torchao's IntxWeightOnly: integers of any width. They are stored one byte a weight, whatever their width."""

from typing import Annotated

from pydantic import Field

from harness.core.method import Method, MethodParams, Needs, Setting


class IntxParams(MethodParams):
    """``bits`` of a weight and ``group_size``, the input columns that share a scale."""

    bits: Annotated[int, Field(ge=1, le=8)] = 4
    group_size: Annotated[int, Field(gt=0)] = 32


def load_config(params: IntxParams, setting: Setting) -> object:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    width = getattr(torch, f"int{params.bits}")
    config = IntxWeightOnlyConfig(weight_dtype=width, granularity=PerGroup(params.group_size))
    return TorchAoConfig(config, modules_to_not_convert=list(setting.untouched))


INTX = Method(
    name="intx",
    version=1,
    summary="torchao integers of 1 to 8 bits per group, one byte a weight",
    params=IntxParams,
    packages=("torchao",),
    load_config=load_config,
    needs=lambda params: Needs(input_divisor=params.group_size),
    bits_per_weight=lambda params, plain_bits, width: 8 + (plain_bits + 8) / params.group_size,
)
