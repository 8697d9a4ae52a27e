"""Half-Quadratic Quantization by its authors' library (Badri and Shaji, "Half-Quadratic Quantization of Large Machine
Learning Models", Mobius Labs, 2023, https://mobiusml.github.io/hqq_blog/).

No calibration: half-quadratic splitting finds zero points that minimize a sparse norm of each group's weight error.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.core.engine import LoadRequest
from harness.core.method import MAX_GROUP, Beside, Method, MethodParams, Needs, QuantizeJob
from harness.models.scope import UNFUSES

WORD_CODES = 10
"""3-bit codes in a 32-bit word."""
LAYERS = "hqq.json"
"""The file beside the weights with the bits, group size and shape of each quantized layer."""
STORED = ("W_q", "scale", "zero")
"""Packed codes, and the scales and zero points of their groups; ``bias`` beside them if the layer has one."""


class HqqParams(MethodParams):
    """``bits`` of a weight; ``group_size`` is the number of input columns that share a scale and a zero point.

    In 3 bits, ten codes are packed into a 32-bit word.
    """

    bits: Literal[8, 4, 3, 2, 1] = 4
    group_size: Annotated[int, Field(gt=0, le=MAX_GROUP, multiple_of=8)] = 64


def quantize(job: QuantizeJob[HqqParams]) -> Any:
    import torch
    from hqq.core.quantize import HQQLinear
    from safetensors.torch import save_file

    from harness.models.scope import decoder_linears
    from harness.models.unfuse import unfuse

    model = job.load()
    unfuse(model, job.untouched)
    kept: dict[str, torch.Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, linear in decoder_linears(model, job.untouched):
        own = job.params.model_copy(update=dict(job.overrides.get(name, {})))
        layers[name] = {"bits": own.bits, "group_size": own.group_size, "shape": list(linear.weight.shape)}
        layer = HQQLinear(
            linear,
            configuration(own.bits, own.group_size),
            compute_dtype=getattr(torch, job.dtype),
            device=job.device,
        )
        model.set_submodule(name, layer)
        state = {"W_q": layer.W_q.data, **{key: layer.meta[key] for key in STORED[1:]}}
        if layer.bias is not None:
            state["bias"] = layer.bias
        kept |= {f"{name}.{key}": tensor.contiguous().cpu() for key, tensor in state.items()}
    tied = set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] not in layers and name not in tied:
            kept[name] = tensor.contiguous().cpu()
    model.config.save_pretrained(job.out)
    save_file(kept, job.out / "model.safetensors", metadata={"format": "pt"})
    (job.out / LAYERS).write_text(json.dumps(layers, indent=1), encoding="utf-8")
    return model


def read(request: LoadRequest) -> Any:
    import torch

    from harness.models.headers import read_json
    from harness.models.skeleton import skeleton, tensors
    from harness.models.unfuse import unfuse_named

    model = skeleton(request)
    state = tensors(request.path)
    dtype = getattr(torch, request.dtype)
    layers = read_json(request.path / LAYERS)
    unfuse_named(model, layers)
    for name, layer in layers.items():
        stored = {key: state.pop(f"{name}.{key}") for key in (*STORED, "bias") if f"{name}.{key}" in state}
        shape = (layer["shape"][0], layer["shape"][1])
        restored = restore(stored, layer["bits"], layer["group_size"], shape, dtype, request.device)
        model.set_submodule(name, restored)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.to(request.device).eval()


def _bits(params: HqqParams, plain_bits: float, width: int) -> float:
    code = 32 / WORD_CODES if params.bits == 3 else params.bits
    return code + 2 * plain_bits / params.group_size


def _beside(params: HqqParams, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """The padding of the last 3-bit word: one row of words holds as many groups as a word holds codes."""
    if params.bits != 3:
        return Beside()
    groups = math.prod(shape) // params.group_size
    padding = params.group_size * 4 * (math.ceil(groups / WORD_CODES) - groups / WORD_CODES)
    return Beside(memory=padding, disk=padding)


def configuration(bits: int, group_size: int) -> dict[str, Any]:
    """hqq's configuration: groups along the input columns, as its authors recommend."""
    from hqq.core.quantize import BaseQuantizeConfig

    return BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)  # type: ignore[no-any-return]


def restore(stored: dict[str, Any], bits: int, group_size: int, shape: tuple[int, int], dtype: Any, device: str) -> Any:
    """The HQQLinear of ``shape`` (outputs, inputs) with the stored tensors, on ``device``."""
    import torch
    from hqq.core.quantize import HQQLinear, Quantizer

    layer = HQQLinear(None, configuration(bits, group_size), compute_dtype=dtype, device=device, initialize=False)
    packing = Quantizer.bit_to_packing[bits]
    state = {
        "W_q": torch.nn.Parameter(stored["W_q"], requires_grad=False),
        "scale": stored["scale"],
        "zero": stored["zero"],
        "nbits": bits,
        "group_size": group_size,
        "shape": torch.Size(shape),
        "axis": 1,
        "packing": packing,
        "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
        "view_as_float": False,
        "quant_scale": False,
        "quant_zero": False,
    }
    if "bias" in stored:
        state["bias"] = stored["bias"]
    layer.load_state_dict(state)
    return layer


HQQ = Method(
    name="hqq",
    version=1,
    summary="HQQ: zero points by half-quadratic splitting, 8 to 1 bits, no calibration, unpacked before each product",
    params=HqqParams,
    packages=("hqq",),
    extra="hqq",
    quantize=quantize,
    read=read,
    quantizes_experts=UNFUSES,
    kernel="dequantize",
    overrides=True,
    needs=lambda params: Needs(input_divisor=params.group_size),
    bits_per_weight=_bits,
    beside=_beside,
)
