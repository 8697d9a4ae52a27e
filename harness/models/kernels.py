"""What a linear layer multiplies with: packed codes, codes unpacked before each product, or a dense matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.core.capability import KernelFamily

if TYPE_CHECKING:
    import torch

MODULES: Mapping[str, KernelFamily] = {
    "PackedLinear": "dequantize",  # rtn
    "HQQLinear": "dequantize",
    "Linear4bit": "packed",  # bitsandbytes
    "Linear8bitLt": "packed",
    "TorchAtenLinear": "packed",  # gptqmodel, GPTQ: int4 words repacked for ATen's product, activations to bfloat16
    "TorchFusedLinear": "packed",
    "TorchInt8Linear": "packed",
    "MarlinLinear": "packed",
    "MacheteLinear": "packed",
    "SwordfishLinear": "packed",
    "ExllamaV2Linear": "packed",
    "BitblasLinear": "packed",
    "W4AFP8Linear": "packed",
    "W4ANVFP4Linear": "packed",
    "TorchLinear": "dequantize",
    "TritonV2Linear": "dequantize",  # triton unpacks, then a dense product
    "TorchAtenAwqLinear": "packed",  # gptqmodel, AWQ
    "TorchFusedAwqLinear": "packed",
    "TorchInt8AwqLinear": "packed",
    "AwqMarlinLinear": "packed",
    "AwqMacheteLinear": "packed",
    "AwqSwordfishLinear": "packed",
    "AwqExllamaV2Linear": "packed",
    "AWQBitBlasKernel": "packed",
    "AwqGEMMLinear": "packed",  # above 1024 rows it unpacks first
    "AwqGEMMTritonLinear": "packed",
    "AwqGEMVLinear": "packed",
    "AwqGEMVFastLinear": "packed",
    "LLMAwqLinear": "packed",
    "AwqTorchLinear": "dequantize",
    "GGUFTorchLinear": "dequantize",  # gptqmodel, other formats
    "GGUFCppKernel": "packed",
    "GGUFCudaKernel": "packed",
    "GGUFTritonKernel": "packed",
    "QQQLinear": "packed",
    "QQQTorchLinear": "dequantize",
    "ParoLinear": "packed",  # dense without CUDA
    "ParoQuantTritonLinear": "packed",
    "ExllamaV3Linear": "packed",
    "ExllamaV3TorchLinear": "dequantize",
    "BitsAndBytesLinear": "packed",
    "TorchFP8Linear": "packed",  # unpacked if the scales do not suit torch's scaled product
    "TorchFP4Linear": "packed",
    "QuantLinear": "dequantize",  # auto-round
    "INCWeightOnlyLinear": "plain",  # neural-compressor: unpacked once, in the first product
    "QParamsLinear": "dequantize",  # quark; AMD's GPUs multiply float8 directly
    "WeightFP8ActFP8StaticQuantLinear": "dequantize",  # auto-round, codes held in bfloat16
}
"""By the class name of a module."""
WEIGHTS: Mapping[str, KernelFamily] = {
    "Int8Tensor": "dequantize",
    "Float8Tensor": "dequantize",
    "IntxUnpackedToInt8Tensor": "dequantize",
    "NVFP4Tensor": "dequantize",
    "Int4OpaqueTensor": "packed",
    "Int4Tensor": "packed",
    "Int4TilePackedTo4dTensor": "packed",  # torchao on a GPU: ATen's tinygemm
    "WeightQBytesTensor": "dequantize",  # quanto
    "WeightQBitsTensor": "dequantize",
    "TinyGemmWeightQBitsTensor": "packed",
    "AWQWeightQBitsTensor": "packed",
    "MarlinF8QBytesTensor": "packed",
}
"""By the class name of a torch.nn.Linear's weight, if that is a tensor subclass."""


def family(module: torch.nn.Module) -> KernelFamily | None:
    """The kernel family of one layer; None for a module that is not a linear layer of a known kind."""
    import torch

    if hasattr(module, "base_layer"):  # peft's wrapper: the layer inside it is visited separately
        return None
    name = type(module).__name__
    if name in MODULES:
        return MODULES[name]
    if not isinstance(module, torch.nn.Linear):
        return None
    weight = module.weight
    if getattr(weight, "act_quant_kwargs", None) is not None:  # torchao, activations quantized too
        emulated = getattr(getattr(weight, "kernel_preference", None), "name", None) == "EMULATED"
        return "dequantize" if emulated else "packed"
    return "plain" if type(weight) is torch.nn.Parameter else WEIGHTS.get(type(weight).__name__)
