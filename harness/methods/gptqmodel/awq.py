"""AWQ (Lin et al., arXiv:2306.00978), as gptqmodel implements it.

Input channels with large activations are scaled up before rounding, and the preceding layers down, by factors that
are searched on calibration text; then weights are clipped where that lowers the error. The checkpoint uses AutoAWQ's
"gemm" format: int32 words of codes and zero points, float16 scales. Which layers of a mixture are scaled together is
``harness.models.balance``'s: the library scales what a router reads and leaves the router as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from harness.core.format import Codes
from harness.core.method import Method, MethodParams, Needs, QuantizeJob
from harness.methods.gptqmodel import driver as gptqmodel
from harness.models.balance import balances
from harness.models.headers import read_config
from harness.models.scope import TRIED

HALF = "float16"
"""The dtype in which float32 models are quantized, so their plain weights are rounded to it. gptqmodel's layer rejects
float32, and its search would corrupt the weights: the copy from which it restores them is not a copy in float32.
Observed: a KL of 0.08 instead of float16's 0.006.
"""
TOKENS_LEFT_OUT = "calibration_tokens_left_out"
"""The note of how many tokens the search for one matrix left out of those that reached it, at most. gptqmodel searches
experts' scales on as many tokens as the row that gave most, or one of each row, and, if rows are of unequal length, all
other scales on the last row alone.
"""


class AwqParams(MethodParams):
    """``group_size``: input columns that share a scale. ``symmetric`` fixes the zero point at the grid's middle."""

    bits: Literal[4] = 4
    group_size: Literal[32, 64, 128] = 128
    symmetric: bool = False


def quantize(job: QuantizeJob[AwqParams], from_disk: bool = False) -> Any:
    """``from_disk``: with one decoder layer of the source in memory at a time."""
    from gptqmodel import BACKEND, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    rows = gptqmodel.calibration(job)
    dtype = HALF if job.dtype == "float32" else job.dtype
    job.note("quantized_in", dtype)
    backend = BACKEND.AUTO if job.device == "cuda" else BACKEND.AWQ_TORCH
    with gptqmodel.layers_on_disk(from_disk) as where:
        config = QuantizeConfig(
            bits=job.params.bits,
            group_size=job.params.group_size,
            sym=job.params.symmetric,
            quant_method=METHOD.AWQ,
            format=FORMAT.GEMM,
            dynamic=gptqmodel.dynamic(job),
            **where,
        )
        with _any_rows(), _unscaled() as unscaled, _balanced(read_config(job.source).get("model_type", "")):
            model = gptqmodel.quantize(job, config, dtype=dtype, calibration=rows, backend=backend)
        job.rounded(unscaled)
        left_out = [each["scale_raw_tokens"] - each["scale_retained_tokens"] for each in model.quant_log]
        if any(left_out):
            job.note(TOKENS_LEFT_OUT, max(left_out))
        # transformers does not read ``dynamic``: without this it would replace the plain layers by empty ones
        patterns = [gptqmodel.pattern(name) for name in job.untouched]
        gptqmodel.amend_config(job.out, modules_to_not_convert=patterns)
        return gptqmodel.as_loaded(model, job.device, job.dtype)


@contextmanager
def _any_rows() -> Iterator[None]:
    """Lets gptqmodel clip matrices of any height: rows are searched separately, so zero rows can be added."""
    import torch
    from gptqmodel.looper.awq_processor import AWQProcessor

    plain = AWQProcessor._compute_best_clip

    def padded(self: Any, weight: Any, *arguments: Any, **options: Any) -> Any:
        rows = weight.shape[0]
        whole = torch.nn.functional.pad(weight, (0, 0, 0, -rows % gptqmodel.CLIP_ROWS))
        return plain(self, whole, *arguments, **options)[:rows]

    AWQProcessor._compute_best_clip = padded
    try:
        yield
    finally:
        AWQProcessor._compute_best_clip = plain


@contextmanager
def _unscaled() -> Iterator[list[str]]:
    """Collects the layers that gptqmodel neither scales nor clips within this context.

    It gives up on all layers of a group if one of them saw no calibration token or is not quantized, or if all of them
    together saw fewer than 0.5% of the tokens (``Fallback.threshold``).
    """
    from gptqmodel.looper.awq_processor import AWQProcessor

    names: list[str] = []
    decide = AWQProcessor._should_fallback_group

    def decided(self: Any, group: list[str], features: Mapping[str, Any]) -> bool:
        given_up = bool(decide(self, group, features))
        if given_up:
            held = self._get_layer_state(self._scale_context.layer_index).modules
            names.extend(held[name].full_name for name in group if name in held)
        return given_up

    AWQProcessor._should_fallback_group = decided
    try:
        yield names
    finally:
        AWQProcessor._should_fallback_group = decide


@contextmanager
def _balanced(model_type: str) -> Iterator[None]:
    """Has gptqmodel scale what may be scaled in a mixture, and the router with its readers."""
    if model_type not in TRIED:
        yield
        return
    import torch
    from gptqmodel.looper import awq_processor
    from gptqmodel.models.base import BaseQModel

    choose, apply = BaseQModel.awq_get_modules_for_scaling, awq_processor.apply_scale

    def chosen(self: Any, layer: Any, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        return list(_searches(layer, model_type, inputs, options))

    def scaled(layer: Any, found: Any, input_feat_dict: Any = None) -> None:
        apply(layer, found, input_feat_dict=input_feat_dict)
        routers = {balance.source: balance.router for balance in balances(layer, model_type)}
        with torch.inference_mode():
            for source, _, factors, _ in found:
                if routers[source]:
                    weight = layer.get_submodule(routers[source]).weight
                    weight.mul_(factors.view(1, -1).to(weight.device))

    BaseQModel.awq_get_modules_for_scaling, awq_processor.apply_scale = chosen, scaled
    try:
        yield
    finally:
        BaseQModel.awq_get_modules_for_scaling, awq_processor.apply_scale = choose, apply


def _searches(
    layer: Any, model_type: str, inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """gptqmodel's descriptions of the searches in a decoder layer, given the inputs of its modules by name.

    It gives up by itself on those that no calibration token reached, whose inputs are empty.
    """
    of_each = options["_awq_feature_kwargs"]
    for balance in balances(layer, model_type):
        known = [each for each in (balance.block, *balance.readers) if each in inputs]
        reached = [each for each in known if inputs[each].numel()] or known
        if not reached:  # none of them is quantized
            continue
        block = {"module2inspect": layer.get_submodule(balance.block)} if balance.block else {}
        yield {
            "prev_op": layer.get_submodule(balance.source),
            "layers": [layer.get_submodule(each) for each in balance.readers],
            "inp": inputs[reached[0]],
            "kwargs": {**options, **of_each.get(reached[0], {})},
            "_input_feature_name": reached[0],
            **block,
        }


AWQ = Method(
    name="awq",
    version=2,  # 1 changed the routing of mixtures
    summary="AWQ by gptqmodel: important channels are scaled up before rounding to 4 bits",
    params=AwqParams,
    packages=("gptqmodel", "optimum"),
    extra="gptq",
    enable=gptqmodel.enable,
    quantize=quantize,
    quantize_parts=partial(quantize, from_disk=True),
    offloads=True,
    gathers_parts=True,
    parts_peak=gptqmodel.awq_peak,
    multimodal=frozenset(),
    streams=True,
    calibrated=lambda params: True,
    passes=lambda params, samples: 30.0,  # it tries 20 scales for each layer
    quantizes_experts=TRIED,
    kernel="packed",
    needs=lambda params: Needs(input_divisor=params.group_size, output_divisor=8),
    codes=lambda params: Codes.grouped("awq", params.bits, params.group_size, asymmetric=not params.symmetric),
    bits_per_weight=lambda params, plain_bits, width: params.bits + (16 + params.bits) / params.group_size,
)
