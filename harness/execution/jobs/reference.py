"""Saves the reference that the divergence of a model's variants is measured against."""

from __future__ import annotations

from pathlib import Path

from harness.core.capability import Logits
from harness.core.job import MakeReference
from harness.core.label import Fact
from harness.core.metric import Windows
from harness.core.record import UNFINISHED
from harness.errors import RunError
from harness.execution import reference as references
from harness.execution.checks import noise
from harness.execution.checks.routers import readable_routers
from harness.execution.checks.variant import record_streaming
from harness.execution.context import Context, Later
from harness.execution.windows import cut_windows
from harness.metrics.divergence import QUANTITIES
from harness.storage.evidence import find_excess


def run(job: MakeReference, context: Context, out: Path) -> Later:
    """Runs the baseline over the text, saves its states, and measures what another batch size changes.

    What another dtype changes is measured once the reference is published: it loads a second copy of the model, and if
    the system ends the run for that, the reference stays.
    """
    import torch

    model = context.load(Logits)
    windows = cut_windows(context, job.perplexity, model)
    _refuse_too_many(windows)
    routers = readable_routers(context, model)
    with context.phase("forward"), torch.inference_mode():
        references.write(model, windows, out, routers)
    kept, ledger = references.Reference(out, job.conditions.device), model.weight_ledger()
    noise.other_batch(context, model, windows, kept)
    record_streaming(context, model)
    model.close()
    dtype = noise.other_dtype_of(kept)

    def measure(published: Path) -> None:
        whole = job.perplexity.generation is not None
        noise.other_dtype(context, ledger, windows, references.Reference(published, job.conditions.device), whole)

    return Later(Fact("dtype_noise_not_measured", {"dtype": dtype, "reason": UNFINISHED}), measure)


def _refuse_too_many(windows: Windows) -> None:
    """Raises RunError, before anything is measured, if a record cannot have the divergence of all scored tokens."""
    scored = sum(len(tokens) - first for tokens, first in zip(windows.tokens, windows.firsts, strict=True))
    excess = find_excess(len(QUANTITIES) * scored)
    if excess is not None:
        raise RunError(
            f"{excess}: {len(QUANTITIES)} values of divergence for each of {scored:,} tokens of the text; limit its "
            "'windows', or leave out 'divergence'"
        )
