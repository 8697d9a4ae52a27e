"""Half-Quadratic Quantization by its authors' library (Badri and Shaji, "Half-Quadratic Quantization of Large Machine
Learning Models", Mobius Labs, 2023, https://mobiusml.github.io/hqq_blog/).

No calibration: half-quadratic splitting finds zero points that minimize a sparse norm of each group's weight error.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.core.engine import LoadRequest
from harness.core.method import MAX_GROUP, Beside, Method, MethodParams, Needs, QuantizeJob
from harness.models.loading import load_transformers
from harness.models.scope import UNFUSES

if TYPE_CHECKING:
    import torch

    from harness.methods.hqq.driver import HqqCodes

WORD_CODES = 10
"""3-bit codes in a 32-bit word."""
LAYERS = "hqq.json"
"""The file beside the weights with the bits, group size and shape of each quantized layer."""
Layers = dict[str, dict[str, Any]]


class HqqParams(MethodParams):
    """``bits`` of a weight; ``group_size`` is the number of input columns that share a scale and a zero point.

    In 3 bits, ten codes are packed into a 32-bit word.
    """

    bits: Literal[8, 4, 3, 2, 1] = 4
    group_size: Annotated[int, Field(gt=0, le=MAX_GROUP, multiple_of=8)] = 64


def enable() -> None:
    """Imports the library."""
    import hqq.core.quantize  # noqa: F401


def quantize(job: QuantizeJob[HqqParams]) -> Any:
    from harness.models.scope import decoder_linears
    from harness.models.unfuse import unfuse

    model = job.load()
    unfuse(model, job.untouched)
    layers: Layers = {}
    for name, linear in decoder_linears(model, job.untouched):
        model.set_submodule(name, _codes(job, layers, name, linear))
    model.save_pretrained(job.out)
    _write(layers, job.out)
    return model


def quantize_parts(job: QuantizeJob[HqqParams]) -> None:
    from harness.models.streaming.quantizing import quantize_parts

    layers: Layers = {}
    quantize_parts(job, partial(_codes, job, layers), lambda model: None)
    _write(layers, job.out)


def _codes(job: QuantizeJob[HqqParams], layers: Layers, name: str, linear: torch.nn.Linear) -> HqqCodes:
    """The quantized layer, whose bits, group size and shape are added to ``layers``."""
    import torch

    from harness.methods.hqq.driver import HqqCodes

    own = job.params.model_copy(update=dict(job.overrides.get(name, {})))
    shape = [linear.out_features, linear.in_features]
    layers[name] = {"bits": own.bits, "group_size": own.group_size, "shape": shape}
    return HqqCodes.from_linear(linear, own.bits, own.group_size, getattr(torch, job.dtype))


def _write(layers: Layers, folder: Path) -> None:
    (folder / LAYERS).write_text(json.dumps(layers, indent=1, sort_keys=True), encoding="utf-8")


def read(request: LoadRequest) -> Any:
    from harness.methods.hqq.driver import HqqConfig, register
    from harness.models.headers import read_json

    register()
    return load_transformers(request, quantization_config=HqqConfig(read_json(request.path / LAYERS), request.dtype))


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


HQQ = Method(
    name="hqq",
    version=1,
    summary="HQQ: zero points by half-quadratic splitting, 8 to 1 bits, no calibration, unpacked before each product",
    params=HqqParams,
    packages=("hqq",),
    extra="hqq",
    quantize=quantize,
    quantize_parts=quantize_parts,
    read=read,
    streams=True,
    enable=enable,
    quantizes_experts=UNFUSES,
    kernel="dequantize",
    overrides=True,
    needs=lambda params: Needs(input_divisor=params.group_size),
    bits_per_weight=_bits,
    beside=_beside,
)
