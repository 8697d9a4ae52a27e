"""Whether a variant may be asked what the baseline is asked: not what calibrated it, and in the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.capability import LoadedModel
from harness.core.job import AnswerTask, MeasureQuality
from harness.execution.context import Bench
from harness.text import calibration
from harness.text.leakage import Leak, overlap
from harness.text.tokenizers import check_tokenizer


def check_leak(bench: Bench, evaluation: Sequence[Sequence[int]]) -> None:
    """Raises InvalidRunError where evaluation text stands in the calibration, or labels that where it is allowed.

    ``evaluation`` are the rows of tokens that are scored: windows of a text, or a task's requests.
    """
    seen = calibration.read(bench.cache.needed(bench.spec, "calibrate"))
    leak = Leak(overlap(seen.tokens, evaluation))
    if bench.spec.task:
        bench.fact("task_overlap", task=bench.spec.task.name, **leak.figures)
    else:
        bench.fact("calibration_overlap", **leak.figures)
    job = bench.spec.job
    if not (isinstance(job, MeasureQuality | AnswerTask) and job.allow_leak):
        leak.refuse()
    elif leak.found:
        bench.label("leaked", **leak.figures)


def check_tokens(bench: Bench, model: LoadedModel) -> None:
    """Raises InvalidRunError where a checkpoint that others published reads text otherwise than its source.

    What is quantized here gets the source's tokenizer, byte for byte.
    """
    spec = bench.spec
    if spec.method.published is not None and model.tokenizer is not None:
        chat = spec.task is not None and spec.task.chat_template
        check_tokenizer(bench.source(), model.tokenizer, chat, spec.model.trust_remote_code)
