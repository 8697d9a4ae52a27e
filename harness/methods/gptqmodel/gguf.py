"""llama.cpp's block formats, rounded to nearest and stored in safetensors by gptqmodel.

The formats are those of ggml (github.com/ggml-org/ggml): blocks of 32 with a float16 scale (q4_0, q8_0), and blocks of
256 whose scales are quantized too (q4_k, q5_k, q6_k). No calibration. transformers cannot read such a checkpoint: it
leaves the layers at random values and only warns. ``loader`` can reproduce this silent corruption.
"""

from __future__ import annotations

from typing import Any, Literal

from harness.core.engine import LoadRequest
from harness.core.method import Method, MethodParams, QuantizeJob
from harness.methods.gptqmodel import driver as gptqmodel
from harness.models.loading import device_map, load_transformers

BLOCKS = {"q4_0": (32, 18), "q8_0": (32, 34), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210)}
"""Weights and bytes of a block. A row's last block is padded."""
LOADER = "qharness_loader"


class GptqModelGgufParams(MethodParams):
    """``format`` of the blocks. ``loader`` reloads the checkpoint: ``transformers`` cannot, and fails silently."""

    format: Literal["q4_0", "q8_0", "q4_k", "q5_k", "q6_k"] = "q4_k"
    loader: Literal["gptqmodel", "transformers"] = "gptqmodel"


def quantize(job: QuantizeJob[GptqModelGgufParams]) -> Any:
    from gptqmodel.quantization.config import GGUFConfig

    config = GGUFConfig(
        bits=int(job.params.format[1]),
        format=f"q{job.params.format[2:]}",
        dynamic=gptqmodel.dynamic(job),
        offload_to_disk=False,
    )
    model = gptqmodel.quantize(job, config)
    gptqmodel.amend_config(job.out, **{LOADER: job.params.loader})
    return model.model.to(device_map(job.device)).eval()


def read(request: LoadRequest) -> Any:
    """Loads with the loader that the checkpoint was made for."""
    if gptqmodel.quantization_config(request.path)[LOADER] == "transformers":
        return load_transformers(request)
    return gptqmodel.read_own(request)


def _bits(params: GptqModelGgufParams, plain_bits: float, width: int) -> float:
    weights, size = BLOCKS[params.format]
    return 8 * size * -(-width // weights) / width


GPTQMODEL_GGUF = Method(
    name="gptqmodel-gguf",
    version=1,
    summary="ggml's blocks by gptqmodel, round to nearest: q4_0, q8_0, q4_k, q5_k, q6_k",
    params=GptqModelGgufParams,
    packages=("gptqmodel", "optimum"),
    extra="gptq",
    enable=gptqmodel.enable,
    quantize=quantize,
    offloads=True,
    read=read,
    multimodal=frozenset({"gemma3"}),
    quantizes_experts=frozenset({"deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen3_moe"}),
    kernel="dequantize",
    bits_per_weight=_bits,
)
