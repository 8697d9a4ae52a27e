"""optimum-quanto's weights: linear quantization as in Jacob et al. (arXiv:1712.05877).

8-bit weights are symmetric and have a scale per output channel. In 4 and 2 bits a group of input columns shares a
scale and a shift. quanto itself chooses the group size: the largest of 128, 96, 64 and 32 that divides the width, or
the whole row if none does or the row is no longer than 128. In bfloat16, groups of 128 run on a packed kernel.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from harness.core.engine import LoadRequest
from harness.core.format import Codes
from harness.core.method import Beside, Method, MethodParams, QuantizeJob
from harness.errors import UnsupportedError
from harness.models.scope import UNFUSES

if TYPE_CHECKING:
    import torch

GROUPS = (128, 96, 64, 32)
CODES = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}
MAP = "quanto_qmap.json"
"""quanto's own file beside the weights, which gives each module's type."""


class QuantoParams(MethodParams):
    """``weights`` is the type of the codes; float8 is E4M3."""

    weights: Literal["int8", "float8", "int4", "int2"] = "int8"


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes in packed bytes, lowest bits first, along the first dimension."""
    import torch

    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def enable() -> None:
    """Uses ``unpack`` for int4 and int2 on a CPU.

    quanto would compile the same operations as C++ in the first forward pass: this takes minutes and writes to its own
    package's folder.
    """
    from optimum.quanto.library.extensions.cpp import ext

    ext._lib = SimpleNamespace(unpack=unpack)


def quantize(job: QuantizeJob[QuantoParams]) -> Any:
    """Raises UnsupportedError for models that crash quanto's kernels."""
    import torch
    from optimum.quanto import QuantizedModelForCausalLM, qtypes

    from harness.models.unfuse import unfuse

    _refuse_crash(job.params.weights, job.dtype, job.device)
    with torch.inference_mode():  # products transpose weights, which fails here for tensors made outside
        model = job.load()
        unfuse(model, job.untouched)
        wrapped = QuantizedModelForCausalLM.quantize(
            model, weights=qtypes[f"q{job.params.weights}"], exclude=list(job.untouched)
        )
        wrapped.save_pretrained(job.out)
    return wrapped._wrapped


def read(request: LoadRequest) -> Any:
    """Raises UnsupportedError for models that crash quanto's kernels."""
    import torch
    from optimum.quanto import requantize

    from harness.models.headers import read_json
    from harness.models.skeleton import skeleton, tensors
    from harness.models.unfuse import unfuse_named

    types: dict[str, dict[str, str]] = read_json(request.path / MAP)
    for kind in {entry["weights"].removeprefix("q") for entry in types.values()}:
        _refuse_crash(kind, request.dtype, request.device)
    with torch.inference_mode():
        model = skeleton(request)
        unfuse_named(model, types)
        requantize(model, tensors(request.path), types, torch.device(request.device))
        model.tie_weights()
    return model.eval()


def _refuse_crash(weights: str, dtype: str, device: str) -> None:
    if (weights, dtype, device) == ("int8", "bfloat16", "cpu"):
        raise UnsupportedError("quanto's int8 in bfloat16 on a CPU ends in a segmentation fault of its kernel")


def _bits(params: QuantoParams, plain_bits: float, width: int) -> float:
    code = CODES[params.weights]
    if code == 8:
        return 8 + plain_bits / width
    group = next((size for size in GROUPS if width % size == 0), width) if width > GROUPS[0] else width
    return code + 2 * plain_bits / group


def _beside(params: QuantoParams, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """One scale each for a layer's inputs and outputs, which nothing here uses."""
    scales = 2 * plain_bits / 8
    return Beside(disk=scales, modules=scales)


QUANTO = Method(
    name="quanto",
    version=1,
    summary="optimum-quanto weights: int8 or float8 per channel, int4 or int2 per group, unpacked before each product",
    params=QuantoParams,
    packages=("optimum-quanto",),
    extra="quanto",
    quantize=quantize,
    read=read,
    enable=enable,
    quantizes_experts=UNFUSES,
    kernel="dequantize",
    codes=lambda params: Codes("quanto", "float" if params.weights == "float8" else "int", CODES[params.weights]),
    bits_per_weight=_bits,
    beside=_beside,
)
