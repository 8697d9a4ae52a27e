"""Accuracy: any task of lm-eval, asked by its own definition and scored by its own metrics."""

from __future__ import annotations

from collections.abc import Iterator

from harness.contracts import LoadedModel, Metric
from harness.record import Measurement
from harness.spec import TaskWorkload
from harness.tasks.evaluate import VERSION

NOISE_REQUESTS = 16
"""Requests that are scored again in another layout."""


def measure(model: LoadedModel, workload: TaskWorkload, alone: bool) -> Iterator[Measurement]:
    """``task_score`` per score and filter, and what the layout of the batch alone changes.

    ``alone`` puts one request at a time to a model whose results depend on what stands beside it.
    """
    from harness.tasks.evaluate import evaluate
    from harness.tasks.lm import HarnessLM

    lm = HarnessLM(model, layout="alone" if alone else None, bos=workload.bos, seed=workload.seed)
    yield from evaluate(lm, workload)


TASKS = Metric(
    name="tasks",
    version=VERSION,
    kind="workload",
    summary="accuracy on any lm-eval task, question by question",
    make=measure,
)
