"""Runs a method's offline quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.capability import ScaleCheck
from harness.core.engine import LoadRequest
from harness.core.job import QuantizeModel
from harness.core.method import CalibrationSet, Method, QuantizeJob, Setting
from harness.core.model import MAIN_ENGINE
from harness.core.owner import temporary_folder
from harness.core.site import MAIN
from harness.core.variant import Variant
from harness.errors import InvalidRunError
from harness.execution.checkpoints import copy_tokenizer, load_source, some_logits
from harness.execution.checks import reload as probe
from harness.execution.checks.experts import audit_experts, record_rounded
from harness.execution.checks.scales import verify_scales
from harness.execution.consumption import Consumption
from harness.execution.context import Context
from harness.execution.jobs.calibrate import note_calibration
from harness.models.legacy import restore, view
from harness.models.loading import device_map
from harness.models.scales import check_stored
from harness.plugins import engine

if TYPE_CHECKING:
    import torch


def run(job: QuantizeModel, context: Context, out: Path) -> None:
    """Runs the method and saves a few logits of the in-memory model, to compare the reloaded one with."""
    if context.spec.stack == MAIN:
        _quantize(job, context, context.source(), out)
        return
    with temporary_folder() as shown:
        view(context.source(), shown)
        if job.conditions.residency == "resident" or context.method().calibrated(context.params()):
            with context.phase("check source"):  # otherwise its method reads the tensors without transformers
                _check_source(context, shown)
        _quantize(job, context, shown, out)
    restore(context.source(), out)  # the stack's transformers version rewrote the configuration


def _quantize(job: QuantizeModel, context: Context, source: Path, out: Path) -> None:
    import torch

    variant = job.variant
    with context.phase("import"):
        runtime = engine(MAIN_ENGINE)  # methods quantize a transformers model
        runtime.imports()
        runtime.import_model(source)
        chosen = context.method()
    calibration = _calibration(context, variant)
    consumption = Consumption(calibration) if calibration else None
    modules = context.modules()
    probed: dict[str, torch.Tensor] = {}

    def keep_logits(model: Any) -> None:
        probed.update(some_logits(context, model, source))

    params = context.params()
    order = QuantizeJob(
        params=params,
        source=source,
        out=out,
        device=job.conditions.device,
        dtype=chosen.run_dtype(params, variant.model.dtype) if chosen.load_config else variant.model.dtype,
        seed=variant.seed,
        load=partial(load_source, context, source),
        calibration=calibration,
        scope=modules.scope,
        untouched=modules.untouched,
        overrides=context.overrides(),
        trust_remote_code=variant.model.trust_remote_code,
        attention=job.conditions.attention,
        note=context.note,
        rounded=partial(record_rounded, context),
        probe=keep_logits,
        streaming=context.streaming(passes=1),
    )
    if calibration is not None:
        audit_experts(context, source, calibration)
    torch.manual_seed(variant.seed)
    in_parts = job.conditions.residency == "streamed"
    quantize, check = _way(chosen, in_parts, out)
    with context.phase("quantize"), consumption.watching() if consumption else nullcontext():
        model = quantize(order)
    if in_parts:
        context.label("quantized_in_parts")
    if consumption is not None and calibration is not None:
        _note_consumption(context, calibration, consumption.consumed())
    with context.phase("probe"):
        if model is not None:
            keep_logits(model)
        if not probed:
            raise InvalidRunError(f"{chosen.name} returned no model and gave none to probe: nothing to compare with")
        probe.save(probed, out)
    verify_scales(context, check)
    copy_tokenizer(context.source(), out)


def _way(
    chosen: Method[Any], in_parts: bool, out: Path
) -> tuple[Callable[[QuantizeJob[Any]], Any], Callable[[], ScaleCheck]]:
    """What quantizes, and what then looks at the scales."""
    if chosen.load_config is None:
        quantize = chosen.quantize_parts if in_parts else chosen.quantize
        assert quantize is not None
        return quantize, partial(check_stored, out)
    seen: list[ScaleCheck] = []

    def save(job: QuantizeJob[Any]) -> None:
        from harness.models.streaming.quantizing import save_parts

        assert chosen.load_config is not None
        setting = Setting(job.dtype, job.device, job.untouched)
        seen.append(save_parts(job, chosen.load_config(job.params, setting)))

    return save, seen.pop


def _check_source(context: Context, source: Path) -> None:
    """Raises InvalidRunError if the stack's libraries read the unquantized source differently from the main ones."""
    import transformers

    what = f"transformers {transformers.__version__} of stack {context.spec.stack} reads another model from the source"
    with _source_logits(context, source) as logits_of:
        read = probe.compare(context.cache.needed(context.spec, "probe"), logits_of, what)
    context.fact("source_in_stack", stack=context.spec.stack, **read.figures)


@contextmanager
def _source_logits(context: Context, source: Path) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Maps tokens (1, length) to the source's logits, with a layer in memory at a time if the run is streamed."""
    spec, streaming = context.spec, context.streaming(passes=1)
    if streaming is None:
        model = load_source(context, source)
        yield lambda ids: model(input_ids=ids.to(model.device)).logits
        return
    from harness.models.streaming.layerwise import LayerPasses
    from harness.models.streaming.parts import Parts

    remote = spec.model.trust_remote_code
    attention = spec.job.conditions.attention
    request = LoadRequest(
        source, spec.model.dtype, spec.device, attention, trust_remote_code=remote, streaming=streaming
    )
    with closing(Parts(request)) as parts:
        passes = LayerPasses(parts)
        yield lambda ids: passes.logits(ids.to(device_map(spec.device)))


def _calibration(context: Context, variant: Variant) -> CalibrationSet | None:
    from harness.text import calibration

    if variant.calibration is None:
        return None
    found = calibration.read(context.cache.needed(context.spec, "calibrate"))
    note_calibration(context, variant.calibration, found)
    return found


def _note_consumption(context: Context, given: CalibrationSet, consumed: CalibrationSet) -> None:
    """Records how much of the calibration the library used."""
    count, of = len(consumed.tokens), len(given.tokens)
    context.fact("calibration_consumed", samples=count, given=of, sha256=consumed.sha256[:12])
    if count < of:
        context.label("calibration_left_out", left_out=of - count, samples=of)
