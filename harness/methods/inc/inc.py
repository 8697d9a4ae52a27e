"""neural-compressor (INC) for PyTorch: round to nearest, GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978).

AWQ scales columns by the magnitude of their inputs; each layer keeps these factors and multiplies its input by them at
run time, because nothing is folded into other layers.

In the first forward pass a layer unpacks its codes into a dense float32 matrix and keeps it beside the codes: the
checkpoint is small, but the running model is larger than the unquantized one and no faster. It runs only in float32 on
a CPU.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from harness.core.layers import is_layer
from harness.core.method import Beside, GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.models.scope import TRIED

PACKAGES = ("neural-compressor-pt",)
EXTRA = "inc"
WORD = 32
"""Bits of a packed word; with 3-bit codes, 2 bits are unused."""
SCALE_BITS = 16
BIAS_BYTES = 2
FACTOR_BYTES = 4
"""Bytes of AWQ's factor of a column."""
DTYPE = "float32"
OF_A_LAYER = ("attention_mask", "position_embeddings", "position_ids")
"""What a decoder layer is given beside its states."""


class IncParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale, or ``channel``: one scale per output channel.

    ``symmetric`` fixes the zero point at the middle of the grid; it is still stored.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel"] = 32
    symmetric: bool = True


class IncGptqParams(IncParams):
    """``group_size`` is the number of input columns that share a scale, or ``channel``: one scale per output channel.

    ``symmetric`` fixes the zero point at the middle of the grid; it is still stored. ``damping`` is the fraction of the
    Hessian's mean diagonal that is added to its diagonal.
    """

    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01


def enable() -> None:
    """Keeps the library on the CPU and its working folder out of the current one; registers the checkpoint format."""
    os.environ.setdefault("INC_TARGET_DEVICE", "cpu")
    from neural_compressor.common import set_workspace

    set_workspace(tempfile.gettempdir())
    from harness.methods.inc import format as inc_format

    inc_format.register()


def quantize(job: QuantizeJob[Any], kind: str, settings: Mapping[str, Any], calibrated: bool) -> Any:
    """Runs the library with its configuration class ``kind``, saves the packed model and returns it."""
    import torch
    from neural_compressor.torch import quantization

    from harness.methods.inc import format as inc_format
    from harness.models.unfuse import unfuse

    configure = getattr(quantization, kind)
    configuration = configure(**_format(job.params), **settings)
    for name in job.untouched:
        configuration.set_local(_exactly(name), configure(dtype="fp32"))
    for name, own in job.overrides.items():
        configuration.set_local(
            _exactly(name), configure(**_format(job.params.model_copy(update=dict(own))), **settings)
        )
    rows = [torch.tensor([row]) for row in job.calibration_set.texts] if calibrated else []  # padding would be counted
    with torch.no_grad():
        model = job.load()
        unfuse(model, job.untouched)
        with own_arguments(model, rows), _mended_gptq(model) as unreached, _mended_awq() as unscaled:
            model = quantization.prepare(model, configuration, example_inputs=rows[0] if rows else None)
            for row in rows:
                model(input_ids=row, use_cache=False)  # AWQ would replay each layer with a cache that grows each time
            model = quantization.convert(model)
    job.rounded([*unreached, *unscaled])
    model.config.quantization_config = inc_format.describe(model)
    model.save_pretrained(job.out)
    return model


def needs(params: IncParams) -> Needs:
    return Needs(device="cpu", input_divisor=params.group_size if isinstance(params.group_size, int) else None)


def bits_per_weight(params: IncParams, plain_bits: float, width: int) -> float:
    """Codes in words, and per group a float16 scale and a zero point that is packed in the same way."""
    per_word = WORD // params.bits
    groups = 1 if params.group_size == "channel" else math.ceil(width / params.group_size)
    return (math.ceil(width / per_word) * WORD + groups * (SCALE_BITS + WORD / per_word)) / width


def beside(shape: tuple[int, int], factors: int = 0) -> Beside:
    """A layer has a float16 bias, whether or not the source had one; ``factors`` is AWQ's bytes per column."""
    rows, width = shape
    return Beside(disk=factors * width, modules=BIAS_BYTES * rows + factors * width)


def _format(params: Any) -> dict[str, Any]:
    group_size = -1 if params.group_size == "channel" else params.group_size
    return {"bits": params.bits, "group_size": group_size, "use_sym": params.symmetric, "use_layer_wise": False}


def _exactly(name: str) -> str:
    """A pattern for the library that matches exactly this layer's name."""
    return f"{re.escape(name)}$"


@contextmanager
def _mended_gptq(model: Any) -> Iterator[list[str]]:
    """Makes GPTQ skip the layers that its configuration does not name, and take inputs of four dimensions.

    3.10 should look for a matching pattern, but accepts any layer: ``len(regex.findall(name)) is not None``. It takes
    rows, or batches of rows; the second projections of latent attention read more.

    It also makes all weights zero of a layer that no calibration token reaches, because every column of its Hessian is
    zero. Such a layer is rounded to nearest instead, which is what GPTQ does with a Hessian that prefers no column.
    Collects their names.
    """
    import torch
    from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ, RAWGPTQuantizer

    lookup, add, choose = RAWGPTQuantizer.get_layer_config, GPTQ.add_batch, GPTQ.fasterquant
    names = WeakKeyDictionary({module: name for name, module in model.named_modules()})
    unreached: list[str] = []

    def add_rows(self: Any, inputs: Any, outputs: Any) -> None:
        add(self, inputs.flatten(1, -2) if inputs.ndim > 3 else inputs, outputs)

    def chosen(self: Any, weights: Any, **options: Any) -> Any:
        if not self.nsamples:
            unreached.append(names[self.layer])
            self.H = torch.eye(self.columns, device=self.device)
        return choose(self, weights, **options)

    RAWGPTQuantizer.get_layer_config = lambda self, name: self.weight_config.get(name)
    GPTQ.add_batch, GPTQ.fasterquant = add_rows, chosen
    try:
        yield unreached
    finally:
        RAWGPTQuantizer.get_layer_config, GPTQ.add_batch, GPTQ.fasterquant = lookup, add, choose


@contextmanager
def _mended_awq() -> Iterator[list[str]]:
    """Makes AWQ search all linear layers but those that no calibration token reaches; collects the names of these.

    3.10 looks up the inputs of every layer, and ends in a KeyError where there are none. Layers that are left out are
    rounded to nearest at the end like all others, without factors of their own.

    It also tries to trace the model with the first row, to fold factors into what comes before. That fails for the
    models seen, whose linear layers it then takes each by itself; so it does here for all: a trace would lack the
    layers that the row does not reach.
    """
    from neural_compressor.torch.algorithms.weight_only.awq import ActAwareWeightQuant
    from neural_compressor.torch.algorithms.weight_only.utility import GraphTrace

    scale, clip, trace = ActAwareWeightQuant.search_scale, ActAwareWeightQuant.search_clip, GraphTrace.trace
    unreached: list[str] = []

    def reached(block_name: str, groups: Sequence[tuple[str, ...]], inputs: Mapping[str, Any]) -> list[tuple[str, ...]]:
        return [group for group in groups if group[0].removeprefix(f"{block_name}.") in inputs]

    def scaled(self: Any, block: Any, block_name: str, groups: Sequence[tuple[str, ...]], inputs: Any) -> Any:
        searched = reached(block_name, groups, inputs)
        unreached.extend(name for group in groups if group not in searched for name in group)
        return scale(self, block, block_name, searched, inputs)

    def clipped(self: Any, block_name: str, groups: Sequence[tuple[str, ...]], inputs: Any) -> None:
        clip(self, block_name, reached(block_name, groups, inputs), inputs)

    ActAwareWeightQuant.search_scale, ActAwareWeightQuant.search_clip = scaled, clipped
    GraphTrace.trace = lambda self, model, inputs: None
    try:
        yield unreached
    finally:
        ActAwareWeightQuant.search_scale, ActAwareWeightQuant.search_clip = scale, clip
        GraphTrace.trace = trace


@contextmanager
def own_arguments(model: Any, rows: Sequence[Any]) -> Iterator[None]:
    """Gives each decoder layer the mask and the rotary embedding of its own kind, within this context.

    The library replays all layers with what the first one was given. Those with sliding windows have other masks than
    the rest, and in some models other frequencies. All of that depends on a row's length alone.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ())
    seen: dict[tuple[str, int], dict[str, Any]] = {}

    def of_layer(name: str) -> Callable[..., Any]:
        def replaced(layer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
            states = given[0] if given else options["hidden_states"]
            own = {each: value for each, value in options.items() if each in OF_A_LAYER}
            return given, options | seen.setdefault((name, int(states.shape[1])), own)

        return replaced

    layers = [(name, module) for name, module in model.named_modules() if is_layer(name) and len(kinds) > 1]
    handles = [layer.register_forward_pre_hook(of_layer(name), with_kwargs=True) for name, layer in layers]
    try:
        for row in {each.shape[1]: each for each in rows if handles}.values():
            model(input_ids=row, use_cache=False)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _method(name: str, summary: str, quantized: Callable[[QuantizeJob[Any]], Any], **own: Any) -> Method[Any]:
    """A method of the library; ``own`` holds what is specific to it, beside what all of them share."""
    common: dict[str, Any] = {
        "version": 1,
        "params": IncParams,
        "packages": PACKAGES,
        "extra": EXTRA,
        "enable": enable,
        "quantizes_experts": TRIED,
        "needs": needs,
        "overrides": True,
        "kernel": "plain",
        "loaded": "both",
        "bits_per_weight": bits_per_weight,
        "beside": lambda params, plain_bits, shape: beside(shape),
        "run_dtype": lambda params, dtype: DTYPE,
    }
    summary = f"neural-compressor's {summary}, packed when stored, dense when run"
    return Method(name=name, summary=summary, quantize=quantized, **common | own)


INC_RTN = _method("inc-rtn", "round to nearest", lambda job: quantize(job, "RTNConfig", {}, calibrated=False))

INC_GPTQ = _method(
    "inc-gptq",
    "GPTQ",
    lambda job: quantize(job, "GPTQConfig", {"percdamp": job.params.damping}, calibrated=True),
    version=3,  # 1 calibrated all layers with the first one's mask, 2 made experts zero that no token reached
    params=IncGptqParams,
    calibrated=lambda params: True,
)

INC_AWQ = _method(
    "inc-awq",
    "AWQ, factors applied while running",
    lambda job: quantize(job, "AWQConfig", {}, calibrated=True),
    version=2,  # 1 replayed attention with old keys and values, and all layers with the first one's mask
    calibrated=lambda params: True,
    passes=lambda params, samples: 30.0,  # it tries 20 scales for each layer
    beside=lambda params, plain_bits, shape: beside(shape, FACTOR_BYTES),
)
