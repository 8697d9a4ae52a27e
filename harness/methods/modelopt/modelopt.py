"""nvidia-modelopt's float8 (E4M3; arXiv:2209.05433) and int8 with SmoothQuant (Xiao et al., arXiv:2211.10438).

In memory modelopt computes with fake-quantized matrices and activations; it exports real codes for TensorRT-LLM, vLLM
and SGLang. transformers cannot read that format: it only warns, drops every scale and loads the codes as if they were
the weights. Nothing raises, but the result no longer works as a language model; a reload check detects that.
In addition, the export gives layers that share an input one scale, so even a correct reader would differ slightly.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from harness.core.format import Activations, Codes
from harness.core.method import Beside, Method, MethodParams, QuantizeJob

ROWS = 8
"""Calibration rows per forward pass."""
CONFIGURATIONS = {"fp8": "FP8_DEFAULT_CFG", "int8_smoothquant": "INT8_SMOOTHQUANT_CFG"}


class ModeloptParams(MethodParams):
    """``format``: ``fp8`` has one scale per matrix and one per layer's activations. ``int8_smoothquant`` has one per
    output channel and one per layer's activations, after SmoothQuant of strength 0.5 moved the activation range into
    the weights.
    """

    format: Literal["fp8", "int8_smoothquant"] = "fp8"


def quantize(job: QuantizeJob[ModeloptParams]) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    tokens, masks = torch.tensor(job.calibration_set.tokens), torch.tensor(job.calibration_set.masks)

    def calibrate(model: Any) -> None:
        with torch.inference_mode():
            for start in range(0, len(tokens), ROWS):
                rows, mask = tokens[start : start + ROWS], masks[start : start + ROWS]
                model(input_ids=rows.to(model.device), attention_mask=mask.to(model.device))

    configuration = copy.deepcopy(getattr(mtq, CONFIGURATIONS[job.params.format]))
    configuration["quant_cfg"] += [{"quantizer_name": f"{name}.*", "enable": False} for name in job.untouched]
    model = mtq.quantize(job.load(), configuration, calibrate)
    job.probe(model)  # the export replaces the weights by codes
    export_hf_checkpoint(model, dtype=getattr(torch, job.dtype), export_dir=job.out)


def _codes(params: ModeloptParams) -> Codes:
    if params.format == "fp8":
        return Codes("modelopt", "float", 8, "tensor", activations=Activations("float", 8, "tensor", dynamic=False))
    return Codes("modelopt", "int", 8, "channel", activations=Activations("int", 8, "tensor", dynamic=False))


def _bits(params: ModeloptParams, plain_bits: float, width: int) -> float:
    return 8.0 if params.format == "fp8" else 8 + 32 / width


def _beside(params: ModeloptParams, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """A float32 scale for the inputs, and one for the matrix (fp8) or the smoothing factor of every column (int8)."""
    return Beside(disk=8.0 if params.format == "fp8" else 4 + shape[1] * plain_bits / 8)


MODELOPT = Method(
    name="modelopt",
    version=1,
    summary="nvidia-modelopt's float8, or int8 with SmoothQuant; transformers reloads its checkpoints wrongly",
    leaves_experts_because="transformers reads its codes as if they were weights, those of experts or others",
    params=ModeloptParams,
    packages=("nvidia-modelopt",),
    extra="modelopt",
    quantize=quantize,
    calibrated=lambda params: True,
    kernel="plain",
    codes=_codes,
    bits_per_weight=_bits,
    beside=_beside,
    loaded="dense",
)
