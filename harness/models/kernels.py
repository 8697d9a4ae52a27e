"""How a linear layer multiplies: with packed codes, codes unpacked before each product, or a dense matrix.

Many kernels change with the number of rows that are multiplied at once. The rules here are those in the sources of
bitsandbytes 0.50, torchao 0.18, gptqmodel 7.6 and optimum-quanto 0.2.7; those for GPUs were read, not run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.capability import KernelFamily, Product
from harness.core.identity import DecodeMode
from harness.models.scope import in_decoder
from harness.numerics.traffic import DTYPE_BYTES

if TYPE_CHECKING:
    import torch

SIXTEEN_BITS = "16 bits"
"""In place of a dtype: a kernel for weights alone multiplies in the dtype of its inputs, on a GPU always in 16 bits."""
INT8, FLOAT8 = "int8", "float8_e4m3fn"
INT_MM_ROWS = 17
"""The fewest rows that torch._int_mm multiplies on a GPU. torchao catches its error and multiplies float32 matrices."""

SWORDFISH_LARGE_GPU = 100
"""The multiprocessors from which on gptqmodel's Swordfish kernel unpacks for fewer rows."""


@dataclass(frozen=True)
class Kernel:
    """How the layers of one class multiply.

    ``dtype`` is that of the numbers that are multiplied, or SIXTEEN_BITS; None if it is that of the inputs, or, for
    packed codes, not known. ``packed_rows`` is the most rows at once for which codes stay packed; None is no limit.
    """

    family: KernelFamily
    dtype: str | None = None
    packed_rows: int | None = None


_WEIGHTS_ONLY = Kernel("packed", SIXTEEN_BITS)
_EIGHT_BITS = Kernel("packed", INT8)
_FLOAT8 = Kernel("packed", FLOAT8)
_PACKED = Kernel("packed")
_UNPACKS = Kernel("dequantize")
_DENSE = Kernel("plain")

MODULES: Mapping[str, Kernel] = {
    "PackedLinear": _UNPACKS,  # rtn
    "HQQLinear": _UNPACKS,
    "Linear8bitLt": _EIGHT_BITS,  # bitsandbytes
    "TorchAtenLinear": Kernel("packed", "bfloat16"),  # gptqmodel, GPTQ: int4 words repacked for ATen's product
    "TorchInt8Linear": _WEIGHTS_ONLY,
    "MarlinLinear": _WEIGHTS_ONLY,
    "MacheteLinear": _WEIGHTS_ONLY,
    "ExllamaV2Linear": Kernel("packed", "float16", packed_rows=50),
    "BitblasLinear": _WEIGHTS_ONLY,
    "W4AFP8Linear": _FLOAT8,
    "W4ANVFP4Linear": _PACKED,
    "TorchLinear": _UNPACKS,
    "TritonV2Linear": _UNPACKS,  # triton unpacks, then a dense product
    "TorchAtenAwqLinear": Kernel("packed", "bfloat16"),  # gptqmodel, AWQ
    "TorchInt8AwqLinear": _WEIGHTS_ONLY,
    "AwqMarlinLinear": _WEIGHTS_ONLY,
    "AwqMacheteLinear": _WEIGHTS_ONLY,
    "AwqExllamaV2Linear": Kernel("packed", "float16", packed_rows=50),
    "AWQBitBlasKernel": _WEIGHTS_ONLY,
    "AwqGEMMLinear": Kernel("packed", SIXTEEN_BITS, packed_rows=1024),
    "AwqGEMMTritonLinear": Kernel("packed", "float16"),
    "AwqGEMVLinear": Kernel("packed", "float16"),
    "AwqGEMVFastLinear": Kernel("packed", "float16"),
    "LLMAwqLinear": _WEIGHTS_ONLY,
    "GGUFTorchLinear": _UNPACKS,  # gptqmodel, other formats
    "GGUFCppKernel": _PACKED,
    "GGUFCudaKernel": _PACKED,
    "GGUFTritonKernel": _WEIGHTS_ONLY,
    "QQQLinear": _EIGHT_BITS,
    "QQQTorchLinear": _UNPACKS,
    "ParoLinear": _WEIGHTS_ONLY,  # dense without CUDA
    "ParoQuantTritonLinear": _WEIGHTS_ONLY,
    "ExllamaV3Linear": Kernel("packed", "float16", packed_rows=32),
    "ExllamaV3TorchLinear": _UNPACKS,
    "BitsAndBytesLinear": _PACKED,
    "TorchFP8Linear": _FLOAT8,  # unpacked if the scales do not suit torch's scaled product
    "TorchFP4Linear": _PACKED,
    "QuantLinear": _UNPACKS,  # auto-round
    "INCWeightOnlyLinear": _DENSE,  # neural-compressor: unpacked once, in the first product
    "QParamsLinear": _UNPACKS,  # quark; AMD's GPUs multiply float8 directly
    "WeightFP8ActFP8StaticQuantLinear": _UNPACKS,  # auto-round, codes held in bfloat16
    "CompressedTensorsFP8Linear": _FLOAT8,  # transformers, if a checkpoint asks for it (use_optimized_inference)
}
"""By the class name of a module."""
EXPERTS: Mapping[str, Kernel] = {
    "FP8Experts": _FLOAT8,  # transformers
    "Mxfp4GptOssExperts": _WEIGHTS_ONLY,
}
"""By the class name of a module that holds the matrices of a layer's experts."""
STACKS = ("gate_up_proj", "up_proj", "down_proj")
WEIGHTS: Mapping[str, Kernel] = {
    "Float8Tensor": _UNPACKS,
    "IntxUnpackedToInt8Tensor": _UNPACKS,
    "NVFP4Tensor": _UNPACKS,
    "Int4OpaqueTensor": _WEIGHTS_ONLY,
    "Int4Tensor": _WEIGHTS_ONLY,
    "Int4TilePackedTo4dTensor": Kernel("packed", "bfloat16"),  # torchao on a GPU: ATen's tinygemm
    "WeightQBytesTensor": _UNPACKS,  # quanto
    "WeightQBitsTensor": _UNPACKS,
    "TinyGemmWeightQBitsTensor": _WEIGHTS_ONLY,
    "AWQWeightQBitsTensor": _WEIGHTS_ONLY,
    "MarlinInt4WeightQBitsTensor": _WEIGHTS_ONLY,
    "MarlinF8QBytesTensor": _WEIGHTS_ONLY,
}
"""By the class name of a torch.nn.Linear's weight, if that is a tensor subclass."""


def products(
    model: torch.nn.Module, inputs: torch.dtype, rows: int, mode: DecodeMode = "eager", prefix: str = ""
) -> Mapping[str, Product]:
    """How the linear layers of a model's decoder multiply, by layer; stacks of experts by the name of the stack.

    An expert of several multiplies as many rows as it gets if all get the same. Stacks of a known kind multiply all
    numbers of rows alike. ``prefix`` is the name of a module that is a part of a model.
    """
    found: dict[str, Product] = {}
    shares: dict[str, float] = {}
    for name, module in model.named_modules(prefix=prefix):
        if not in_decoder(f"{name}.weight", 2):
            continue
        own: Any = module
        unfused = type(module).__name__ == "UnfusedExperts"
        shares[name] = share = own.share if unfused else shares.get(name.rpartition(".")[0], 1.0)
        known = product(module, inputs, math.ceil(rows * share), mode)
        if known is not None:
            found[name] = known
        experts = EXPERTS.get(type(module).__name__)
        if experts is not None:
            alike = Product(experts.family, _dtype(experts, module, inputs))
            found |= {f"{name}.{stack}": alike for stack in STACKS if getattr(module, stack, None) is not None}
    return found


def product(module: torch.nn.Module, inputs: torch.dtype, rows: int, mode: DecodeMode = "eager") -> Product | None:
    """How a layer multiplies ``rows`` rows of ``inputs`` at once; None if it is no linear layer of a known kind."""
    import torch

    if hasattr(module, "base_layer"):  # peft's wrapper: the layer inside it is visited separately
        return None
    rule = _RULES.get(type(module).__name__)
    if rule is not None:
        return rule(module, inputs, rows, mode)
    kernel = MODULES.get(type(module).__name__)
    if kernel is None and isinstance(module, torch.nn.Linear):
        weight: Any = module.weight
        rule = _RULES.get(type(weight).__name__)
        if rule is not None:
            return rule(module, inputs, rows, mode)
        kernel = _DENSE if type(weight) is torch.nn.Parameter else _of_weight(weight)
    if kernel is None:
        return None
    if kernel.packed_rows is not None and rows > kernel.packed_rows:
        return Product("dequantize", _dtype(kernel, module, inputs))
    return Product(kernel.family, _dtype(kernel, module, inputs))


MARKERS: tuple[tuple[str, Product], ...] = (
    (r"kDequantizeBlockwise", Product("dequantize")),  # bitsandbytes
    (r"k?gemm_4bit_", Product("packed")),
    (r"dequantize_weights|awq_dequantize", Product("dequantize")),  # AWQ
    (r"gemm_forward_4bit|awq_gemm", Product("packed")),
    (r"reconstruct", Product("dequantize")),  # ExLlama
    (r"gemm_half_q_half|exl3_gemm", Product("packed")),
    (r"dequant_kernel", Product("dequantize")),  # gptqmodel's Triton kernels
    (r"(?i)marlin|machete", Product("packed")),
    (r"swordfish_dequant", Product("dequantize")),  # gptqmodel on Blackwell
    (r"swordfish_decode|SwordfishPrefill", Product("packed")),
    (r"tinygemm", Product("packed")),  # ATen's int4
    (r"dequantize_block", Product("dequantize")),  # llama.cpp
    (r"mul_mat_q|mul_mat_vec_q", Product("packed")),
    (r"i8816|i16832|gemm_i8|_s8_|_int_mm", Product("packed", INT8)),  # cuBLAS, CUTLASS, Inductor
    (r"nvjet_(sm\d+_)?qq|gemm.*(?<!u)e4m3", Product("packed", FLOAT8)),  # cuBLAS, CUTLASS
)
"""Patterns of the names of CUDA kernels that only unpack, and of those that multiply packed codes.

A copy of float8 numbers has ``e4m3`` in its name too, and NVFP4 has scales of type ``ue4m3``.
"""


def observed(names: Sequence[str]) -> Product | None:
    """What the names of the CUDA kernels that ran reveal of the quantized layers.

    None if they reveal nothing, or if some layers unpacked and others did not.
    """
    found = {product for pattern, product in MARKERS if any(re.search(pattern, name) for name in names)}
    families, dtypes = {product.family for product in found}, {product.dtype for product in found}
    if len(families) != 1:
        return None
    return Product(families.pop(), dtypes.pop() if len(dtypes) == 1 else None)


def corrected(ruled: Mapping[str, Product], seen: Product | None) -> Mapping[str, Product]:
    """The products of a pass by the libraries' rules, after what was ``observed`` in it; dense layers stay."""
    if seen is None:
        return ruled
    return {
        name: product
        if product.family in ("plain", seen.family)
        else Product(seen.family, seen.dtype or (product.dtype if product.dtype in DTYPE_BYTES else None))
        for name, product in ruled.items()
    }


def _of_weight(weight: Any) -> Kernel | None:
    """By a weight that is a tensor subclass. torchao quantizes activations too where it has arguments for them."""
    name = type(weight).__name__
    if getattr(weight, "act_quant_kwargs", None) is None:
        return WEIGHTS.get(name)
    if getattr(getattr(weight, "kernel_preference", None), "name", None) == "EMULATED":
        return _UNPACKS
    return _FLOAT8 if name == "Float8Tensor" else _PACKED


def _dtype(kernel: Kernel, module: Any, inputs: torch.dtype) -> str | None:
    if kernel.dtype != SIXTEEN_BITS:
        return kernel.dtype
    return _name(inputs) if inputs.itemsize == 2 or _device(module) == "cpu" else "float16"


def _bitsandbytes_4bit(module: Any, inputs: torch.dtype, rows: int, mode: DecodeMode) -> Product:
    """bitsandbytes' 4-bit layer.

    On a CPU it multiplies packed codes in bfloat16 only after it has repacked them, which needs AVX512-BF16. On a GPU
    it asks a rule of its own, by the GPU, the shape and the rows.
    """
    weight, state = module.weight, module.weight.quant_state
    unpacked = module.compute_dtype or inputs
    if weight.device.type == "cpu":
        packed = getattr(state, "packing_format_for_cpu", False)
        return Product("packed", "bfloat16") if packed else Product("dequantize", _name(unpacked))
    outputs, width = state.shape
    packed = width % state.blocksize == 0 and _fused(weight.device.index, unpacked, rows, outputs, width)
    return Product("packed" if packed else "dequantize", _name(unpacked))


def _fused(gpu: int, inputs: torch.dtype, rows: int, outputs: int, width: int) -> bool:
    """Whether bitsandbytes multiplies packed codes on a GPU; before it had a rule, only in steps of a single row."""
    from bitsandbytes.backends.cuda import ops

    rule: Callable[..., bool] | None = getattr(ops, "_gemm_4bit_use_custom_fn", None)
    if rule is None:
        return rows == 1
    return rows <= ops._gemm_4bit_custom_max_m and rule(gpu, inputs, rows, outputs, width)


def _torchao_int8(module: Any, inputs: torch.dtype, rows: int, mode: DecodeMode) -> Product:
    """torchao's int8 weights. With int8 activations a GPU multiplies what torch._int_mm accepts.

    It multiplies fewer rows as float32 matrices, and widths that are no multiple of 8 as int32 matrices on the CPU.
    Compiled, Inductor has Triton kernels for all of them.
    """
    weight = module.weight
    if weight.act_quant_kwargs is None:
        return Product("dequantize")
    if weight.device.type == "cpu" or mode == "compiled":
        return Product("packed", INT8)
    if any(size % 8 for size in weight.shape):
        return Product("dequantize", "int32")
    return Product("packed", INT8) if rows >= INT_MM_ROWS else Product("dequantize", "float32")


def _swordfish(module: Any, inputs: torch.dtype, rows: int, mode: DecodeMode) -> Product:
    """gptqmodel's kernel for Blackwell. Many rows it multiplies with a dense matrix (``dense_tier_min_m``)."""
    import torch

    if torch.cuda.get_device_properties(module.qweight.device).multi_processor_count >= SWORDFISH_LARGE_GPU:
        unpacks = rows >= (1024 if module.bits == 8 else 4096)
    else:
        unpacks = module.bits == 8 and rows >= (8192 if module.in_features >= 2 * module.out_features else 2048)
    return Product("dequantize" if unpacks else "packed", _dtype(_WEIGHTS_ONLY, module, inputs))


def _transformers_float8(module: Any, inputs: torch.dtype, rows: int, mode: DecodeMode) -> Product:
    """transformers' layer of FP8 checkpoints, which multiplies float8 inputs unless its weight was unpacked on load."""
    return Product("packed", FLOAT8) if module.weight.element_size() == 1 else Product("plain")


_Rule = Callable[[Any, "torch.dtype", int, DecodeMode], Product]


def _in_16_bits(family: KernelFamily, narrowed: str) -> _Rule:
    """Of a layer that converts float32 inputs to the dtype ``narrowed``, and multiplies others in their own."""
    return lambda module, inputs, rows, mode: Product(family, _name(inputs) if inputs.itemsize == 2 else narrowed)


_RULES: Mapping[str, _Rule] = {
    "FP8Linear": _transformers_float8,
    "FP8GroupedLinear": _transformers_float8,
    "AwqTorchLinear": _in_16_bits("dequantize", "float16"),  # gptqmodel
    "TorchFusedLinear": _in_16_bits("packed", "bfloat16"),
    "TorchFusedAwqLinear": _in_16_bits("packed", "bfloat16"),
    "SwordfishLinear": _swordfish,
    "AwqSwordfishLinear": _swordfish,
    "Linear4bit": _bitsandbytes_4bit,
    "Int8Tensor": _torchao_int8,
}
"""By the class name of a module or of its weight, where the class alone does not tell."""


def _device(module: Any) -> str:
    """The type of the device that a layer's tensors are on."""
    held = next(iter([*module.parameters(recurse=False), *module.buffers(recurse=False)]), None)
    return "cpu" if held is None else str(held.device.type)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
