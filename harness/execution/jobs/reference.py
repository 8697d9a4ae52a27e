"""Saves the reference that the divergence of a model's variants is measured against."""

from __future__ import annotations

from pathlib import Path

from harness.core.capability import Logits
from harness.core.job import MakeReference
from harness.execution import reference as references
from harness.execution.checks import noise
from harness.execution.checks.routers import readable_routers
from harness.execution.checks.variant import record_streaming
from harness.execution.context import Context
from harness.execution.windows import cut_windows


def run(job: MakeReference, context: Context, out: Path) -> None:
    """Runs the baseline over the text, saves its states, and measures what another batch size or dtype changes."""
    import torch

    model = context.load(Logits)
    windows = cut_windows(context, job.perplexity, model)
    routers = readable_routers(context, model)
    with context.phase("forward"), torch.inference_mode():
        references.write(model, windows, out, routers)
    kept, ledger = references.Reference(out, job.conditions.device), model.weight_ledger()
    noise.other_batch(context, model, windows, kept)
    record_streaming(context, model)
    model.close()
    noise.other_dtype(context, ledger, windows, kept, whole=job.perplexity.generation is not None)
