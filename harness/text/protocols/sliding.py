"""The strided evaluation of the Hugging Face documentation ("Perplexity of fixed-length models")."""

from __future__ import annotations

from typing import Any

from harness.core.workload import PerplexityWorkload
from harness.text.protocols.preset import JOINER, Cut, Preset, begins_with_bos, joined


def cut(workload: PerplexityWorkload, tokenizer: Any) -> Cut:
    """Windows that begin a stride apart; each scores the tokens that no earlier window contains, up to the text's end.

    So every token except the first is scored once, and all beyond the first window follow at least
    ``context - stride`` others.
    """
    text, ids = joined(workload, tokenizer)
    assert workload.stride is not None
    tokens: list[list[int]] = []
    firsts: list[int] = []
    scored = 0
    for start in range(0, len(ids), workload.stride):
        end = min(start + workload.context, len(ids))
        first = max(scored - start, 1)  # if the stride is the whole context, a window's first token has none before it
        if first < end - start:
            tokens.append(ids[start:end])
            firsts.append(first)
        scored = end
        if end == len(ids):
            break
    bos = "once" if begins_with_bos(ids, tokenizer) else "none"
    return Cut(text, tokens, firsts, {"stride": workload.stride, "bos": bos, "joiner": JOINER})


SLIDING = Preset(
    name="sliding",
    summary="rows joined by a blank line, overlapping windows, every token scored once with much before it",
    context=2048,
    cut=cut,
    strided=True,
)
