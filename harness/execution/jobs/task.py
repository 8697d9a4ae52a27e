"""Answers one task with a variant."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from harness.core.capability import LoadedModel, Logits
from harness.core.job import AnswerTask
from harness.execution.checks.kernels import record_cuda_kernels
from harness.execution.checks.leak import check_leak, check_tokens
from harness.execution.checks.variant import record_repacking, verify_variant
from harness.execution.context import Context
from harness.plugins import metric
from harness.text.kept_requests import keeping


def run(job: AnswerTask, context: Context, out: Path) -> None:
    """Scores every question and checks the questions for calibration text."""
    import torch

    model = context.load(LoadedModel)
    verified = model if job.verify and isinstance(model, Logits) else None  # what a server has is not shown
    if verified is not None:
        verify_variant(context, verified)
    check_tokens(context, model, job.task.chat_template)

    def watch(requests: Sequence[Sequence[int]]) -> None:
        check_leak(context, requests, job.allow_leak, job.task.name)

    calibrated = "calibrate" in context.spec.needs
    with context.phase("questions"), torch.inference_mode():
        asked = (model, job.task, context.method().batch_dependent, watch if calibrated else None)
        context.add(metric("tasks").make(*asked, partial(keeping, context.cache)))
    record_repacking(context, model)
    if verified is not None:
        record_cuda_kernels(context, verified)
