"""Whether a variant may be evaluated as the baseline is: not on its own calibration text, and in the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.capability import LoadedModel
from harness.execution.context import Context
from harness.text import calibration
from harness.text.leakage import Leak, overlap
from harness.text.tokenizers import check_tokenizer


def check_leak(context: Context, evaluation: Sequence[Sequence[int]], allowed: bool, task: str | None = None) -> None:
    """Raises InvalidRunError if the calibration contains evaluation text; labels the run if that is ``allowed``.

    ``evaluation`` are the rows of tokens that are scored: windows of a text, or the requests of the named ``task``.
    """
    seen = calibration.read(context.cache.needed(context.spec, "calibrate"))
    leak = Leak(overlap(seen.tokens, evaluation))
    if task is not None:
        context.fact("task_overlap", task=task, **leak.figures)
    else:
        context.fact("calibration_overlap", **leak.figures)
    if not allowed:
        leak.reject()
    elif leak.is_leak:
        context.label("leaked", **leak.figures)


def check_tokens(context: Context, model: LoadedModel, chat: bool = False) -> None:
    """Raises InvalidRunError if a published checkpoint tokenizes text differently from its source.

    A checkpoint quantized here has the source's tokenizer, byte for byte. ``chat``: the chat template is used too.
    """
    spec = context.spec
    if spec.method.published is not None and model.tokenizer is not None:
        check_tokenizer(context.source(), model.tokenizer, chat, spec.model.trust_remote_code)
