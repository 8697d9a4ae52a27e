"""Accuracy on any lm-eval task, with the task's own prompts and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from harness.core.capability import Encode, LoadedModel
from harness.core.metric import Metric
from harness.core.record import Measurement
from harness.core.workload import TaskWorkload
from harness.tasks.evaluate import VERSION, evaluate
from harness.tasks.sampling import Sampling

if TYPE_CHECKING:
    from harness.tasks.lm import HarnessLM
    from harness.tasks.scoring import Layout

NOISE_QUESTIONS = 8
"""Number of questions that are scored again in another layout."""


def measure(
    model: LoadedModel,
    workload: TaskWorkload,
    alone: bool,
    watch: Callable[[Sequence[Sequence[int]]], None] | None,
    keeping: Callable[[Encode], Encode] = lambda encode: encode,
) -> Iterator[Measurement]:
    """``task_score`` per score and filter; what happened in answers that were written; the effect of another batch
    layout; the work done.

    ``alone`` sends one request at a time, for a model whose results depend on the rest of the batch. ``watch`` gets the
    tokens of every request; None saves the time to tokenize them again. ``keeping`` makes a way to tokenize one that
    keeps what it made.
    """
    from harness.tasks.generating import WritingRules
    from harness.tasks.lm import HarnessLM, encode

    layout: Layout | None = "alone" if alone else None
    sampling = None
    if workload.temperature is not None:
        sampling = Sampling(workload.samples, workload.temperature, workload.top_p, workload.seed)
    lm = HarnessLM(
        model,
        layout=layout,
        bos=workload.bos,
        encode=keeping(encode),
        writing=WritingRules(workload.seed, sampling, workload.new_tokens, workload.think_end_token),
    )
    asked = evaluate(lm, workload)
    if watch is not None:
        texts = ("".join(part for part in request.args if isinstance(part, str)) for request in asked.requests)
        watch([lm.tok_encode(text) for text in dict.fromkeys(texts)])
    yield from asked.scores
    yield from asked.answers
    yield from _effort(lm, workload)
    scored = [request for request in asked.requests if request.request_type == "loglikelihood"]
    if scored:
        yield _noise(lm, workload, scored)


def _noise(lm: HarnessLM, workload: TaskWorkload, requests: Sequence[Any]) -> Measurement:
    """The largest change of a log-likelihood when the first questions are scored in another layout."""
    questions = [list(group) for _, group in groupby(requests, key=lambda each: (each.task_name, each.doc_id))]
    noise = lm.batch_noise([request for question in questions[:NOISE_QUESTIONS] for request in question])
    protocol = {"task": workload.name, "layout": noise.layouts[0], "other": noise.layouts[1]}
    return Measurement(
        metric="task_batch_noise",
        version=VERSION,
        unit="nat",
        direction="lower",
        evidence="exact",
        values=(noise.nat,),
        protocol={**protocol, "questions": noise.items, "changed": noise.changed},
    )


def _effort(lm: HarnessLM, workload: TaskWorkload) -> Iterator[Measurement]:
    """The number of tokens and predictions computed; those shared by several requests count once."""
    counts = {"task_tokens": lm.effort.tokens, "task_head_rows": lm.effort.head_rows}
    for metric, count in counts.items():
        unit = "token" if metric == "task_tokens" else "row"
        protocol = {"task": workload.name, "layout": lm.layout}
        yield Measurement(metric, VERSION, unit, "neither", "exact", (float(count),), protocol)


TASKS = Metric(
    name="tasks",
    version=VERSION,
    kind="workload",
    summary="accuracy on any lm-eval task, question by question",
    make=measure,
)
