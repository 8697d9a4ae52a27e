"""The runs that make what others read: prepared checkpoints, calibration sets, probes, quantized artifacts."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.core.capability import Logits
from harness.core.engine import LoadRequest
from harness.core.job import MakeCalibration
from harness.core.method import CalibrationSet, QuantizeJob
from harness.core.record import Measurement
from harness.core.site import MAIN
from harness.core.workload import CalibrationRef
from harness.errors import UnsupportedError
from harness.execution.checks import reload as probe
from harness.execution.consumption import Consumption
from harness.execution.context import Bench, checked
from harness.models.headers import TOKENIZER_FILES
from harness.models.legacy import restore, view
from harness.plugins import engine

CONVERTED_KL = 0.01
"""Nats per token that another engine's arithmetic may make: its products round inputs to the weights' dtype."""


def prepare(bench: Bench, out: Path) -> None:
    """Makes the model's checkpoint: a GGUF dequantized, weights degridded, or random weights drawn.

    Raises InvalidRunError where the tokenizer that it holds reads text otherwise than the model's own.
    """
    from harness.models.prepare import prepare as make
    from harness.text.tokenizers import check_saved

    model = bench.spec.model
    with bench.phase("prepare"):
        made = make(model, out)
        if model.kind in ("directory", "hub"):
            _copy_tokenizer(Path(model.path), out, model.trust_remote_code)
    if made.tokenizer is not None:
        with bench.phase("read again"):
            check_saved(made.tokenizer, out, model.trust_remote_code)
    if made.degrid_kl is not None:
        bench.add([Measurement("degrid_kl", 1, "nat", "lower", "exact", (made.degrid_kl,))])


def calibrate(bench: Bench, out: Path) -> None:
    """Makes the token ids that every calibrated method gets, and looks whether they stand in the evaluation text."""
    from harness.text import calibration
    from harness.text.leakage import Leak
    from harness.text.windows import cut

    job = bench.spec.job
    assert isinstance(job, MakeCalibration)
    with bench.phase("import"):
        from transformers import AutoTokenizer
    if not any(bench.source().glob("tokenizer*")):
        raise UnsupportedError("calibration needs a tokenizer, and the model's checkpoint holds none")
    with bench.phase("text"):
        tokenizer = AutoTokenizer.from_pretrained(bench.source(), trust_remote_code=bench.spec.model.trust_remote_code)
        made = calibration.build(job.calibration, tokenizer)
        for workload in job.evaluations if not job.allow_leak else ():
            Leak.between(made, cut(workload, tokenizer)).refuse()  # early: what is quantized after it would not count
    calibration.save(made, out)
    describe(bench, job.calibration, made)


def describe(bench: Bench, ref: CalibrationRef, calibration: CalibrationSet) -> None:
    """What a calibrated variant's readers must know of its calibration."""
    from harness.text.calibration import LITTLE_TOKENS

    tokens = sum(calibration.lengths)
    bench.fact(
        "calibration",
        samples=len(calibration.tokens),
        length=calibration.length,
        text=ref.text.id,
        packing=ref.packing,
        seed=ref.seed,
        sha256=calibration.sha256[:12],
    )
    if len(calibration.tokens) < ref.samples:
        bench.fact("calibration_asked_for", samples=ref.samples, held=len(calibration.tokens))
    if tokens < LITTLE_TOKENS:
        bench.label("little_calibration", tokens=tokens)


def keep_probe(bench: Bench, out: Path) -> None:
    """Keeps the logits that the main stack's libraries give the source: another stack must read the same model."""
    with bench.phase("import"):
        import transformers  # noqa: F401
    with bench.phase("probe"):
        _keep(bench, _load(bench, bench.source()), bench.source(), out)


def convert(bench: Bench, out: Path) -> None:
    """Writes the unquantized model in its engine's own form, and holds what runs there against transformers' logits.

    Raises InvalidRunError where they differ by more than another program's rounding.
    """
    spec, runtime = bench.spec, engine(bench.spec.engine)
    assert runtime.convert is not None
    dtype = bench.method().run_dtype(bench.params(), spec.model.dtype)
    with bench.phase("import"):
        runtime.imports()
    with bench.phase("convert"):
        note = runtime.convert(bench.source(), out, dtype)
    if note is not None:
        bench.fact("converted_tokenizer", remark=note)
    _copy_tokenizer(bench.source(), out)
    with bench.phase("probe"):
        request = LoadRequest(out, dtype, spec.device, spec.job.conditions.attention)
        model = checked(runtime, runtime.load(request, runtime.params()), Logits)
        what = f"the model converted for {runtime.name} is another one"
        found = probe.compare(bench.cache.needed(spec, "probe"), model.logits, what, CONVERTED_KL)
        model.close()
    bench.fact("conversion_difference", **found.figures)


def quantize(bench: Bench, out: Path) -> None:
    """Lets the method quantize, and keeps a few logits of the model in memory to hold the reloaded one against."""
    if bench.spec.stack == MAIN:
        _quantize(bench, bench.source(), out)
        return
    with tempfile.TemporaryDirectory(prefix="qharness-view-") as folder:
        shown = Path(folder)
        view(bench.source(), shown)
        with bench.phase("check source"):
            _check_source(bench, shown)
        _quantize(bench, shown, out)
    restore(bench.source(), out)  # the stack's transformers has rewritten the configuration in its own terms


def _quantize(bench: Bench, source: Path, out: Path) -> None:
    import torch

    spec = bench.spec
    with bench.phase("import"):
        import transformers  # noqa: F401

        chosen = bench.method()
    assert chosen.quantize is not None
    calibration = _calibration(bench)
    consumption = Consumption(calibration) if calibration else None
    modules = bench.modules()
    job = QuantizeJob(
        params=bench.params(),
        source=source,
        out=out,
        device=spec.device,
        dtype=spec.model.dtype,
        seed=spec.variant.seed,
        load=lambda: _load(bench, source),
        calibration=calibration,
        scope=modules.scope,
        untouched=modules.untouched,
        overrides=bench.overrides(),
        trust_remote_code=spec.model.trust_remote_code,
        note=bench.note,
    )
    torch.manual_seed(spec.variant.seed)
    with bench.phase("quantize"), consumption.watching() if consumption else nullcontext():
        model = chosen.quantize(job)
    if consumption is not None and calibration is not None:
        _note_consumption(bench, calibration, consumption.consumed())
    with bench.phase("probe"):
        _keep(bench, model, source, out)
    _copy_tokenizer(bench.source(), out)


def _keep(bench: Bench, model: Any, source: Path, out: Path) -> None:
    vocabulary = model.config.get_text_config().vocab_size
    probe.save(model, probe.tokens(source, vocabulary, bench.spec.model.trust_remote_code), out)


def _load(bench: Bench, source: Path) -> Any:
    """The source as an unquantized transformers model, in transformers 4.51 as in 5."""
    import torch
    from transformers import AutoModelForCausalLM

    spec, attention = bench.spec, bench.spec.job.conditions.attention
    arguments: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    return AutoModelForCausalLM.from_pretrained(
        source,
        torch_dtype=spec.model.dtype if spec.model.dtype == "auto" else getattr(torch, spec.model.dtype),
        device_map=spec.device,
        use_safetensors=True,
        trust_remote_code=spec.model.trust_remote_code,
        **arguments,
    )


def _check_source(bench: Bench, source: Path) -> None:
    """Raises InvalidRunError where the stack's libraries read the unquantized source otherwise than the main ones."""
    import transformers

    model = _load(bench, source)
    read = probe.compare(
        bench.cache.needed(bench.spec, "probe"),
        lambda ids: model(input_ids=ids.to(model.device)).logits,
        f"transformers {transformers.__version__} of stack {bench.spec.stack} reads another model from the source",
    )
    bench.fact("source_in_stack", stack=bench.spec.stack, **read.figures)


def _calibration(bench: Bench) -> CalibrationSet | None:
    from harness.text import calibration

    ref = bench.spec.variant.calibration
    if ref is None:
        return None
    found = calibration.read(bench.cache.needed(bench.spec, "calibrate"))
    describe(bench, ref, found)
    return found


def _note_consumption(bench: Bench, given: CalibrationSet, consumed: CalibrationSet) -> None:
    """Says how much of the calibration the library used."""
    count, of = len(consumed.tokens), len(given.tokens)
    bench.fact("calibration_consumed", samples=count, given=of, sha256=consumed.sha256[:12])
    if count < of:
        bench.label("calibration_left_out", left_out=of - count, samples=of)


def _copy_tokenizer(source: Path, out: Path, code: bool = False) -> None:
    """The source's own tokenizer files: byte for byte, so that no library's rewriting changes the tokens.

    With ``code`` also what a tokenizer of the checkpoint's own is programmed in.
    """
    import shutil

    for pattern in (*TOKENIZER_FILES, *(["*.py"] if code else [])):
        for file in source.glob(pattern):
            shutil.copy(file, out / file.name)
