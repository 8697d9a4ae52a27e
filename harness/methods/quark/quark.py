"""AMD Quark: int4 by round to nearest, AWQ (arXiv:2306.00978) or GPTQ (arXiv:2210.17323); float8 and MXFP4.

MXFP4 is the microscaling format of the Open Compute Project (Rouhani et al., arXiv:2310.10537): 4-bit floats in blocks
of 32 that share a power of two. transformers reloads Quark's checkpoints as ``QParamsLinear``, which unpacks its codes
before every product, and quantizes and at once dequantizes its inputs; AMD's GPUs multiply float8 directly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import model_validator

from harness.core.format import Activations, Codes
from harness.core.method import Beside, Method, MethodParams, Needs, QuantizeJob
from harness.models.scope import TRIED

ROWS = 8
"""Calibration rows per forward pass."""
WORD = 8
"""4-bit codes in a word: rows are packed together."""
MX_BLOCK = 32
ONLY_CLIPPED = "matrices_only_clipped"
"""The note of how many matrices AWQ clipped and did not scale. The library scales no gate and up projections of
experts, because the router reads the same, and of down projections those that its table names.
"""
MODEL_TYPES = frozenset(
    {
        "chatglm",
        "cohere",
        "dbrx",
        "deepseek",
        "deepseek_v2",
        "deepseek_v3",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma4",
        "glm4_moe",
        "gpt_oss",
        "gptj",
        "granitemoehybrid",
        "hunyuan_v1_dense",
        "instella",
        "kimi_k2",
        "lfm2",
        "llama",
        "llama4",
        "mistral",
        "mixtral",
        "mllama",
        "olmo",
        "opt",
        "phi",
        "phi3",
        "qwen",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "qwen3_next",
    }
)
"""The model types that the library knows."""
NO_TABLE = {
    "rtn": frozenset[str](),
    "awq": frozenset(
        {"cohere", "dbrx", "deepseek", "glm4_moe", "kimi_k2", "mllama", "qwen3", "qwen3_moe", "qwen3_next"}
    ),
    "gptq": frozenset(
        {"cohere", "dbrx", "glm4_moe", "instella", "kimi_k2", "mllama"}
        | {"qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"}
    ),
}
"""Those of them for which the library has no table of the layers that an algorithm works on, without which it fails."""


class QuarkParams(MethodParams):
    """``scheme``: ``int4`` (symmetric) and ``uint4`` (with zero points) quantize only weights; ``fp8`` has one scale
    per matrix and one per layer's activations, from calibration; ``mxfp4`` quantizes weights and activations in blocks
    of 32, ``mxfp4_weight_only`` only weights.

    ``algorithm`` chooses the codes of int4 and uint4: ``rtn`` rounds to nearest. ``group_size`` is the number of input
    columns that share a scale in those schemes.
    """

    scheme: Literal["int4", "uint4", "fp8", "mxfp4", "mxfp4_weight_only"] = "int4"
    algorithm: Literal["rtn", "awq", "gptq"] = "rtn"
    group_size: Literal[32, 64, 128] = 128

    @property
    def integer(self) -> bool:
        return self.scheme in ("int4", "uint4")

    @model_validator(mode="after")
    def _fits(self) -> QuarkParams:
        if self.algorithm != "rtn" and not self.integer:
            raise ValueError(f"{self.algorithm} chooses the codes of int4 and uint4, not of {self.scheme}")
        return self


def quantize(job: QuantizeJob[QuarkParams]) -> None:
    from quark.torch import LLMTemplate, ModelQuantizer, export_safetensors

    params = job.params
    from harness.models.unfuse import unfuse

    model = job.load()
    unfuse(model, job.untouched)
    configuration = LLMTemplate.get(model.config.model_type).get_config(
        scheme=f"{params.scheme}_wo_{params.group_size}" if params.integer else params.scheme,
        algorithm=None if params.algorithm == "rtn" else params.algorithm,
        exclude_layers=list(job.untouched),
    )
    quantizer = ModelQuantizer(configuration)
    rows = _rows(job, model.device) if _calibrated(params) else None
    with worked_on() as worked:
        model = quantizer.quantize_model(model, rows)
    if params.algorithm != "rtn":
        quantizes = [each for each in model.named_modules() if getattr(each[1], "_weight_quantizer", None)]
        job.rounded([name for name, layer in quantizes if layer not in worked.any])
    if params.algorithm == "awq":
        job.note(ONLY_CLIPPED, sum(layer in worked.clipped - worked.scaled for _, layer in quantizes))
    frozen = quantizer.freeze(model)
    job.probe(frozen)  # the export packs in place
    export_safetensors(frozen, str(job.out))


@dataclass(frozen=True)
class _WorkedOn:
    """The layers for which GPTQ chose codes, or AWQ factors or a smaller range."""

    chosen: set[Any] = field(default_factory=set)
    scaled: set[Any] = field(default_factory=set)
    clipped: set[Any] = field(default_factory=set)

    @property
    def any(self) -> set[Any]:
        return self.chosen | self.scaled | self.clipped


@contextmanager
def worked_on() -> Iterator[_WorkedOn]:
    """Collects the layers that GPTQ or AWQ works on within this context; all others are rounded to nearest.

    GPTQ works on the layers that the library's table names for a type of model: of Mixtral those of attention alone.
    GPTQ would make all weights zero of a layer that no calibration token reaches, because every column of its Hessian
    is zero. Such a layer is rounded to nearest instead, which is what GPTQ does with a Hessian that prefers no column.

    AWQ scales the layers that its table names, of these mixtures none of the experts, and clips all but queries and
    keys that calibration reaches.
    """
    import torch
    from quark.torch.algorithm.awq.awq import AwqProcessor
    from quark.torch.algorithm.gptq.gptq import GPTQ

    choose, scale, clip = GPTQ.quantize, AwqProcessor._search_best_scale, AwqProcessor._search_best_clip
    worked = _WorkedOn()

    def chosen(self: Any, *settings: Any) -> None:
        if self.nsamples:
            worked.chosen.add(self.layer)
        else:
            self.H, self.nsamples = torch.eye(self.columns, device=self.device), 1  # by which it divides a loss
        choose(self, *settings)

    def scaled(self: Any, block: Any, prev_op: Any, layers: Any, *settings: Any, **options: Any) -> Any:
        worked.scaled.update(layers)
        return scale(self, block, prev_op, layers, *settings, **options)

    def clipped(self: Any, layers: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        ranges = clip(self, layers, inputs)
        worked.clipped.update(layers[name] for name, _ in ranges)
        return ranges

    GPTQ.quantize, AwqProcessor._search_best_scale, AwqProcessor._search_best_clip = chosen, scaled, clipped
    try:
        yield worked
    finally:
        GPTQ.quantize, AwqProcessor._search_best_scale, AwqProcessor._search_best_clip = choose, scale, clip


def enable() -> None:
    """Imports what loads the checkpoints; its search for kernels takes seconds."""
    import quark.torch  # noqa: F401


def _rows(job: QuantizeJob[QuarkParams], device: Any) -> Any:
    import torch
    from torch.utils.data import DataLoader

    texts = job.calibration_set.texts  # its GPTQ accepts a mask but counts the masked tokens
    rows = [{"input_ids": torch.tensor(row, device=device)} for row in texts]
    alike = len({len(row) for row in texts}) == 1
    return DataLoader(rows, batch_size=ROWS if alike else 1)  # type: ignore[arg-type]


def _calibrated(params: QuarkParams) -> bool:
    return params.scheme == "fp8" or params.algorithm != "rtn"


def _needs(params: QuarkParams) -> Needs:
    if params.integer:
        known = MODEL_TYPES - NO_TABLE[params.algorithm]
        return Needs(input_divisor=params.group_size, output_divisor=WORD, model_types=known)
    if params.scheme == "fp8":
        return Needs(model_types=MODEL_TYPES)
    return Needs(input_divisor=MX_BLOCK, model_types=MODEL_TYPES)


def _codes(params: QuarkParams) -> Codes:
    if params.integer:
        return Codes.grouped("quark", 4, params.group_size, asymmetric=params.scheme == "uint4")
    if params.scheme == "fp8":
        return Codes("quark", "float", 8, "tensor", activations=Activations("float", 8, "tensor", dynamic=False))
    inputs = Activations("float", 4, "group") if params.scheme == "mxfp4" else None
    return Codes("quark", "float", 4, "group", MX_BLOCK, activations=inputs)


def _bits(params: QuarkParams, plain_bits: float, width: int) -> float:
    """Zero points are stored for int4 too."""
    if params.integer:
        return 4 + (plain_bits + 4) / params.group_size
    return 8.0 if params.scheme == "fp8" else 4 + 8 / MX_BLOCK


QUARK = Method(
    name="quark",
    # 1 made experts zero in GPTQ that no token reached. The version is that of all algorithms and schemes, so
    # artifacts of rtn, fp8 and mxfp4 are made again too, although nothing changed for them.
    version=2,
    summary="AMD Quark: int4 (nearest, AWQ, GPTQ), float8, MXFP4; unpacked before each product",
    params=QuarkParams,
    packages=("amd-quark",),
    extra="quark",
    quantize=quantize,
    enable=enable,
    calibrated=_calibrated,
    needs=_needs,
    quantizes_experts=TRIED | {"qwen2_moe"},
    kernel="dequantize",
    codes=_codes,
    bits_per_weight=_bits,
    beside=lambda params, plain_bits, shape: Beside(8.0, 8.0) if params.scheme == "fp8" else Beside(),
)
