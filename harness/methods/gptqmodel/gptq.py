"""GPTQ (Frantar et al., arXiv:2210.17323), as gptqmodel implements it.

Weights are rounded column by column, and the remaining columns compensate for each rounding error, weighted by the
inputs' second moments (the Hessian) on calibration text. The checkpoint uses the format that auto-gptq introduced:
int32 words of codes and zero points, float16 scales, and per input column the int32 index of its group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.core.engine import LoadRequest
from harness.core.format import Codes
from harness.core.method import Method, MethodParams, Needs, QuantizeJob
from harness.methods.gptqmodel import driver as gptqmodel
from harness.models.scope import TRIED, module_name


class GptqParams(MethodParams):
    """``bits`` of a code. ``group_size`` is the number of input columns that share a scale; ``channel`` means all of
    them.

    ``desc_act`` rounds columns, together with their groups, by decreasing activations (act-order); without it gptqmodel
    orders columns within groups ("group aware"). ``damp`` is the fraction of the Hessian's mean diagonal that is added
    to its diagonal. ``symmetric`` fixes the zero point at the middle of the grid.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: Literal[32, 64, 128, 256, 512, 1024, "channel"] = 128
    desc_act: bool = False
    damp: Annotated[float, Field(gt=0, lt=1)] = 0.05
    symmetric: bool = True


NAMES = {"bits": "bits", "group_size": "group_size", "desc_act": "desc_act", "symmetric": "sym", "damp": "damp_percent"}
"""gptqmodel's names for the parameters."""


def _settings(values: Any) -> dict[str, Any]:
    return {NAMES[name]: -1 if value == "channel" else value for name, value in values.items()}


def _within_groups(job: QuantizeJob[GptqParams]) -> bool:
    """Whether gptqmodel may order columns within groups: it rejects that without groups and with act-order."""
    sizes = {job.params.group_size, *(values.get("group_size") for values in job.overrides.values())}
    ordered = job.params.desc_act or any(values.get("desc_act") for values in job.overrides.values())
    return "channel" not in sizes and not ordered


def quantize(job: QuantizeJob[GptqParams], from_disk: bool = False) -> Any:
    """``from_disk``: with one decoder layer of the source in memory at a time."""
    from gptqmodel import QuantizeConfig

    rows = gptqmodel.calibration(job)
    overrides = {name: _settings(values) for name, values in job.overrides.items()}
    with gptqmodel.layers_on_disk(from_disk) as where:
        config = QuantizeConfig(
            **_settings(job.params.model_dump()),
            act_group_aware=_within_groups(job),
            dynamic=gptqmodel.dynamic(job, overrides),
            **where,
        )
        model = gptqmodel.quantize(job, config, calibration=rows)
        job.rounded(_given_up(job, model.quant_log))
        # transformers and optimum do not read ``dynamic``: they would replace the plain layers by empty ones
        gptqmodel.amend_config(job.out, modules_in_block_to_quantize=[list(job.scope)])
        return gptqmodel.as_loaded(model, job.device, job.dtype)


def _given_up(job: QuantizeJob[GptqParams], log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The modules that the library rounded to nearest, as its log says where the error of others is.

    Those are the ones that fewer than 0.5% of the calibration tokens reached (``Fallback.threshold``), and those whose
    Hessian it could not invert.
    """
    given_up = tuple(
        module_name(f".{each['layer']}.{each['module']}") for each in log if "fallback" in str(each["loss"])
    )
    return [name for name in job.scope if given_up and name.endswith(given_up)]


def read(request: LoadRequest) -> Any:
    """Loads with transformers. optimum does not look for modules with their own settings, so they are passed to it."""
    dynamic = gptqmodel.quantization_config(request.path).get("dynamic") or {}
    overrides = [
        (key[len("+:^") : -1].replace(r"\.", "."), {k: v for k, v in values.items() if k != "damp_percent"})
        for key, values in dynamic.items()
        if key.startswith("+:")
    ]
    with gptqmodel.mixed_layers(overrides):
        return gptqmodel.read_gptq(request)


def _bits(params: GptqParams, plain_bits: float, width: int) -> float:
    """A code, and its share of a float16 scale and a zero point."""
    group = width if params.group_size == "channel" else params.group_size
    return params.bits + (16 + params.bits) / group


GPTQ = Method(
    name="gptq",
    version=1,
    summary="GPTQ by gptqmodel: error-compensating rounding in 8, 4, 3 or 2 bits",
    params=GptqParams,
    packages=("gptqmodel", "optimum"),
    extra="gptq",
    enable=gptqmodel.enable,
    quantize=quantize,
    quantize_parts=partial(quantize, from_disk=True),
    offloads=True,
    gathers_parts=True,
    parts_peak=gptqmodel.gptq_peak,
    read=read,
    streams=True,
    calibrated=lambda params: True,
    overrides=True,
    multimodal=frozenset({"gemma3", "mistral3"}),
    quantizes_experts=TRIED | {"deepseek_v2", "olmoe"},
    kernel="packed",
    needs=lambda params: Needs(input_divisor=None if params.group_size == "channel" else params.group_size),
    codes=lambda params: Codes.grouped(
        "gptq", params.bits, params.group_size, asymmetric=not params.symmetric, scattered=params.desc_act
    ),
    bits_per_weight=_bits,
    beside=lambda params, plain_bits, shape: gptqmodel.beside_gptq(params.bits, shape),
)
