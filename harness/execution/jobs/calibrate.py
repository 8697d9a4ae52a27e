"""Makes the calibration set that all calibrated methods of a model share."""

from __future__ import annotations

from pathlib import Path

from harness.core.job import MakeCalibration
from harness.core.method import CalibrationSet
from harness.core.workload import CalibrationRef
from harness.errors import UnsupportedError
from harness.execution.context import Context
from harness.models.headers import has_tokenizer


def run(job: MakeCalibration, context: Context, out: Path) -> None:
    """Makes the token ids that every calibrated method gets, and checks their overlap with the evaluation texts."""
    from harness.text import calibration
    from harness.text.leakage import Leak
    from harness.text.windows import cut

    with context.phase("import"):
        from transformers import AutoTokenizer
    if not has_tokenizer(context.source()):
        raise UnsupportedError("calibration needs a tokenizer, and the model's checkpoint holds none")
    with context.phase("text"):
        tokenizer = AutoTokenizer.from_pretrained(context.source(), trust_remote_code=job.model.trust_remote_code)
        made = calibration.build(job.calibration, tokenizer)
        for workload in job.evaluations if not job.allow_leak else ():
            Leak.between(made, cut(workload, tokenizer)).reject()  # before anything is quantized with it
    calibration.save(made, out)
    note_calibration(context, job.calibration, made)


def note_calibration(context: Context, ref: CalibrationRef, calibration: CalibrationSet) -> None:
    """Adds the facts and labels that readers of a calibrated variant's figures need."""
    from harness.text.calibration import LITTLE_TOKENS

    tokens = sum(calibration.lengths)
    context.fact(
        "calibration",
        samples=len(calibration.tokens),
        length=calibration.length,
        text=ref.text.id,
        packing=ref.packing,
        seed=ref.seed,
        sha256=calibration.sha256[:12],
    )
    if len(calibration.tokens) < ref.samples:
        context.fact("calibration_asked_for", samples=ref.samples, held=len(calibration.tokens))
    if tokens < LITTLE_TOKENS:
        context.label("little_calibration", tokens=tokens)
