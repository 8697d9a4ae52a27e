"""The run that puts one task's questions to a variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.core.capability import Logits
from harness.core.job import AnswerTask
from harness.execution.checks.leak import check_leak, check_tokens
from harness.execution.checks.variant import note_repacking, take_stock
from harness.execution.context import Bench
from harness.plugins import metric


def task(bench: Bench, out: Path) -> None:
    """The score of every question; the seen calibration text is looked for in them."""
    import torch

    spec, job = bench.spec, bench.spec.job
    assert isinstance(job, AnswerTask)
    model = bench.load(Logits)
    if job.verify:
        take_stock(bench, model)
    check_tokens(bench, model)

    def watch(requests: Sequence[Sequence[int]]) -> None:
        if "calibrate" in spec.needs:
            check_leak(bench, requests)

    with bench.phase("questions"), torch.inference_mode():
        bench.add(metric("tasks").make(model, job.task, bench.method().batch_dependent, watch))
    note_repacking(bench, model)
