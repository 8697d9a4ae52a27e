"""Makes the checkpoint that all other runs of a model read."""

from __future__ import annotations

from pathlib import Path

from harness.core.job import PrepareModel
from harness.core.record import Measurement
from harness.execution.checkpoints import copy_tokenizer
from harness.execution.context import Context


def run(job: PrepareModel, context: Context, out: Path) -> None:
    """Makes the model's checkpoint: dequantizes a GGUF file, degrids weights, or draws random ones.

    Raises InvalidRunError if the saved tokenizer reads text differently from the model's own.
    """
    from harness.models.prepare import prepare as make
    from harness.text.tokenizers import check_saved

    model = job.model
    with context.phase("prepare"):
        made = make(model, out, context.spec.limits.time_s)
        if model.kind in ("directory", "hub"):
            copy_tokenizer(Path(model.path), out, model.trust_remote_code)
    if made.tokenizer is not None:
        with context.phase("read again"):
            check_saved(made.tokenizer, out, model.trust_remote_code)
    if made.degrid_kl is not None:
        context.add([Measurement("degrid_kl", 1, "nat", "lower", "exact", (made.degrid_kl,))])
