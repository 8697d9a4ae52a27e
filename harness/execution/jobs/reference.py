"""Saves the reference that the divergence of a model's variants is measured against."""

from __future__ import annotations

from pathlib import Path

from harness.core.capability import Logits
from harness.core.job import MakeReference
from harness.core.metric import Windows
from harness.errors import RunError
from harness.execution import reference as references
from harness.execution.checks import noise
from harness.execution.checks.routers import readable_routers
from harness.execution.checks.variant import record_streaming
from harness.execution.context import Context
from harness.execution.windows import cut_windows
from harness.metrics.divergence import QUANTITIES
from harness.storage.evidence import find_excess


def run(job: MakeReference, context: Context, out: Path) -> None:
    """Runs the baseline over the text, saves its states, and measures what another batch size or dtype changes."""
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
    noise.other_dtype(context, ledger, windows, kept, whole=job.perplexity.generation is not None)


def _refuse_too_many(windows: Windows) -> None:
    """Raises RunError, before anything is measured, if a record cannot have the divergence of all scored tokens."""
    scored = sum(len(tokens) - first for tokens, first in zip(windows.tokens, windows.firsts, strict=True))
    excess = find_excess(len(QUANTITIES) * scored)
    if excess is not None:
        raise RunError(
            f"{excess}: {len(QUANTITIES)} values of divergence for each of {scored:,} tokens of the text; limit its "
            "'windows', or leave out 'divergence'"
        )
