"""AutoAWQ's AWQ (Lin et al., arXiv:2306.00978): 4-bit groups, columns scaled by their inputs' magnitude.

This is the original AWQ library and is no longer maintained. It needs transformers 4, so it quantizes in its own
environment, from a view of the checkpoint that transformers 4 reads correctly (harness/models/legacy.py).
transformers 5 loads its GEMM-format checkpoints with GPT-QModel's kernels.
"""

from __future__ import annotations

from typing import Any

from harness.core.engine import LoadRequest
from harness.core.format import Codes
from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.errors import UnsupportedError
from harness.methods.gptqmodel import driver as gptqmodel
from harness.models.loading import attention_option, load_transformers

BITS = 4
CLIP_ROWS = 64
"""The library searches clipping ranges in blocks of this many rows and rejects a remainder."""
MODEL_TYPES = frozenset(
    {
        *("bloom", "cohere", "falcon", "gemma", "gemma2", "gpt_bigcode", "gpt_neox", "gptj", "llama", "mistral"),
        *("mixtral", "mpt", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "stablelm", "starcoder2"),
    }
)
"""The library's model types that transformers 4.51 also supports and that take only text."""


class AutoAwqParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale and a zero point.

    ``clip`` searches a narrower range for every group (except in query and key projections). ``duo_scaling`` computes
    the columns' scales from the magnitudes of both weights and inputs, not of inputs alone. Both work as in
    the library.
    """

    group_size: GroupSize = 128
    clip: bool = True
    duo_scaling: bool = True


def quantize(job: QuantizeJob[AutoAwqParams]) -> Any:
    import torch
    from awq import AutoAWQForCausalLM
    from awq.modules.linear import gemm

    if job.device == "cpu":  # the triton kernels may be importable there, but do not run
        gemm.awq_ext, gemm.TRITON_AVAILABLE = None, False
    wrapper = AutoAWQForCausalLM.from_pretrained(
        str(job.source),
        torch_dtype=getattr(torch, job.dtype),
        trust_remote_code=job.trust_remote_code,
        device_map={"": job.device},
        **attention_option(job.attention),
    )
    rows, length = _rows(job)
    wrapper.quantize(
        tokenizer=None,
        quant_config={"w_bit": BITS, "q_group_size": job.params.group_size, "zero_point": True, "version": "gemm"},
        calib_data=rows,
        max_calib_samples=len(rows),
        max_calib_seq_len=length,
        duo_scaling=job.params.duo_scaling,
        apply_clip=job.params.clip,
        quantizer_cls=_quantizer(frozenset(job.untouched)),
    )
    wrapper.quant_config.modules_to_not_convert = [gptqmodel.pattern(name) for name in job.untouched]
    wrapper.save_quantized(str(job.out))
    return wrapper.model.to(job.device).eval()


def _rows(job: QuantizeJob[AutoAwqParams]) -> tuple[list[list[int]], int]:
    """The calibration rows and their length. The library joins all rows and cuts the result into blocks of that length.

    Raises UnsupportedError if rows are padded: the library takes no mask, and would join and cut them differently.
    """
    texts = job.calibration_set
    if set(texts.lengths) != {texts.length}:
        raise UnsupportedError("autoawq takes rows of one length; use the packing concat or crop for its calibration")
    return [list(row) for row in texts.tokens], texts.length


def _quantizer(untouched: frozenset[str]) -> type:
    """The library's quantizer, extended to match exact module names and accept matrices with any number of rows.

    The library's own list of excluded modules holds parts of names within a layer, not full names.
    """
    import torch
    from awq.quantize.quantizer import AwqQuantizer
    from awq.utils.module import get_op_name

    class Quantizer(AwqQuantizer):  # type: ignore[misc]
        def _wanted(self, layer: Any, linears: dict[str, Any]) -> dict[str, Any]:
            prefix = get_op_name(self.model, layer)
            return {name: linear for name, linear in linears.items() if f"{prefix}.{name}" not in untouched}

        def _apply_quant(self, module: Any, named_linears: dict[str, Any]) -> None:
            super()._apply_quant(module, self._wanted(module, named_linears))

        def _search_best_clip(self, layer: Any, named_linears: dict[str, Any], input_feat: Any) -> Any:
            return super()._search_best_clip(layer, self._wanted(layer, named_linears), input_feat)

        def _compute_best_clip(self, w: torch.Tensor, input_feat: torch.Tensor) -> Any:
            added = -len(w) % CLIP_ROWS  # each row has its own ranges, so extra rows change nothing
            padded = torch.cat([w, w.new_zeros(added, w.shape[1])]) if added else w
            return super()._compute_best_clip(padded, input_feat)[: len(w)]

    return Quantizer


def read(request: LoadRequest) -> Any:
    """Loads the checkpoint with GPT-QModel's kernels; on a CPU, with those that multiply in float16 as AutoAWQ does.

    GPT-QModel's preferred CPU kernels round scales and inputs to bfloat16 (observed error: 0.75% of the largest logit),
    so they are used only for bfloat16.
    """
    if request.device != "cpu" or request.dtype == "bfloat16":
        return load_transformers(request)
    from transformers import AwqConfig

    return load_transformers(request, quantization_config=AwqConfig(backend="torch_awq"))


AUTOAWQ = Method(
    name="autoawq",
    version=2,  # 2: the source is loaded with the recipe's attention
    summary="AutoAWQ 4 bits, asymmetric per group, columns scaled and ranges clipped by activations",
    leaves_experts_because="it runs in transformers 4, and no mixture that it wrote was read back by this one",
    params=AutoAwqParams,
    packages=("autoawq",),
    extra="gptq",
    stack="autoawq",
    readers=("gptqmodel",),
    quantize=quantize,
    read=read,
    calibrated=lambda params: True,
    passes=lambda params, samples: 30.0,  # it tries 20 scales for each layer
    kernel="packed",
    needs=lambda params: Needs(
        input_divisor=params.group_size,
        output_divisor=32,
        model_types=MODEL_TYPES,
    ),
    codes=lambda params: Codes.grouped("awq", BITS, params.group_size, asymmetric=True),
    bits_per_weight=lambda params, plain_bits, width: BITS + (16 + BITS) / params.group_size,
)
