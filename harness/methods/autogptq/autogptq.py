"""AutoGPTQ's GPTQ (Frantar et al., arXiv:2210.17323): rounds one column at a time and lets the rest compensate.

This library made the format common and is no longer maintained. It needs transformers 4 and CUDA, so it quantizes in
its own environment, from a view of the checkpoint that transformers 4 reads correctly (harness/models/legacy.py).
transformers 5 loads its checkpoints through optimum with GPT-QModel's kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.core.format import Codes
from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.methods.gptqmodel import driver as gptqmodel
from harness.models.loading import attention_option

if TYPE_CHECKING:
    import torch

WORD = 32
"""Bits of a packed word: codes are packed along the inputs for weights, along the outputs for zero points."""
MODEL_TYPES = frozenset(
    {"bloom", "codegen", "falcon", "gemma", "gpt_bigcode", "gpt_neox", "gptj", "llama", "mistral", "opt", "qwen2"}
)
"""The library's model types that transformers 4.51 also supports, built from torch.nn.Linear and without experts."""


class AutoGptqParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale, or ``channel``; scales are symmetric.

    ``desc_act`` processes columns by decreasing magnitude of their inputs. ``damp`` is the fraction of the Hessian's
    mean diagonal that is added to its diagonal.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel"] = 128
    desc_act: bool = False
    damp: Annotated[float, Field(gt=0, lt=1)] = 0.01


def quantize(job: QuantizeJob[AutoGptqParams]) -> Any:
    import torch
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
    from auto_gptq.modeling import _base

    params = job.params
    wrapper = AutoGPTQForCausalLM.from_pretrained(
        str(job.source),
        BaseQuantizeConfig(
            bits=params.bits,
            group_size=-1 if params.group_size == "channel" else params.group_size,
            damp_percent=params.damp,
            desc_act=params.desc_act,
            sym=True,
            model_file_base_name="model",  # otherwise transformers would not find the weights
        ),
        torch_dtype=getattr(torch, job.dtype),
        **attention_option(job.attention),
    )
    model = wrapper.model.to(job.device)  # otherwise rotary embeddings would stay on the CPU
    kept = {module for name, module in model.named_modules() if name in job.untouched}
    find = _base.find_layers
    _base.find_layers = lambda layer: {name: part for name, part in find(layer).items() if part not in kept}
    try:
        wrapper.quantize(_examples(job))
    finally:
        _base.find_layers = find
    wrapper.save_quantized(str(job.out))
    _unpack(job, model)
    return model.to(job.device).eval()


def _examples(job: QuantizeJob[AutoGptqParams]) -> list[dict[str, list[int]]]:
    """Every calibration row without its padding: the library's Hessians would count padding despite the mask."""
    texts = job.calibration_set
    rows = [list(row[:length]) for row, length in zip(texts.tokens, texts.lengths, strict=True) if length]
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def _unpack(job: QuantizeJob[AutoGptqParams], model: Any) -> None:
    """Replaces the packed layers by dense ones and lists those in the checkpoint's config.

    The packed layers run on many kinds of kernels, some of which need their own set-up; the weights are the same.
    """
    import torch

    quantized = [name for name, module in model.named_modules() if type(module).__name__ == "QuantLinear"]
    for name in quantized:
        packed = model.get_submodule(name)
        linear = torch.nn.Linear(packed.infeatures, packed.outfeatures, bias=packed.bias is not None)
        with torch.no_grad():
            linear.weight = torch.nn.Parameter(dense(packed, job.params.bits), requires_grad=False)
            if packed.bias is not None:
                linear.bias = torch.nn.Parameter(packed.bias.clone(), requires_grad=False)
        model.set_submodule(name, linear)
    gptqmodel.amend_config(job.out, modules_in_block_to_quantize=[quantized])


def dense(packed: Any, bits: int) -> torch.Tensor:
    """The matrix (outputs, inputs) of a layer with GPTQ's packed ``qweight``, ``qzeros``, ``scales`` and ``g_idx``."""
    codes = _fields(packed.qweight.t(), bits).t()  # (inputs, outputs)
    zeros = (_fields(packed.qzeros, bits) + 1) & (2**bits - 1)  # (groups, outputs): the format stores one less
    group = packed.g_idx.long()
    matrix: torch.Tensor = (codes - zeros[group]) * packed.scales[group]
    return matrix.t().contiguous()


def _fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The unsigned ``bits``-wide numbers in rows of int32 words, lowest bits first; int32."""
    import torch

    places = torch.arange(WORD, device=words.device, dtype=torch.int32)
    stream = (words.unsqueeze(-1) >> places & 1).reshape(len(words), -1, bits)
    return torch.sum(stream << places[:bits], dim=-1, dtype=torch.int32)


def _bits(params: AutoGptqParams, plain_bits: float, width: int) -> float:
    """A code, and its share of the group's scale (read as float16, whatever the file holds) and zero point."""
    group = width if params.group_size == "channel" else params.group_size
    return params.bits + (16 + params.bits) / group


AUTOGPTQ = Method(
    name="autogptq",
    version=2,  # 2: the source is loaded with the recipe's attention
    summary="AutoGPTQ in 8, 4, 3 or 2 bits, symmetric per group; quantizes on CUDA only",
    leaves_experts_because="it runs in transformers 4, and no mixture that it wrote was read back by this one",
    params=AutoGptqParams,
    packages=("auto-gptq",),
    extra="gptq",
    stack="autogptq",
    readers=("gptqmodel", "optimum"),
    quantize=quantize,
    read=gptqmodel.read_gptq,
    calibrated=lambda params: True,
    kernel="packed",
    needs=lambda params: Needs(
        device="cuda",
        input_divisor=WORD if params.group_size == "channel" else params.group_size,
        output_divisor=WORD,
        model_types=MODEL_TYPES,
    ),
    codes=lambda params: Codes.grouped("gptq", params.bits, params.group_size, scattered=params.desc_act),
    bits_per_weight=_bits,
    beside=lambda params, plain_bits, shape: gptqmodel.beside_gptq(params.bits, shape),
)
