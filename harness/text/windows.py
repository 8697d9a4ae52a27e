"""Perplexity protocols: how a text becomes windows of tokens."""

from __future__ import annotations

import hashlib
from array import array
from typing import Any

from harness.contracts import Windows
from harness.errors import UnsupportedError
from harness.spec import PerplexityWorkload
from harness.text.sources import rows

VERSION = 1
"""Raised by every change of how a text becomes windows."""
GPTQ_JOINER = "\n\n"


def cut(workload: PerplexityWorkload, tokenizer: Any) -> Windows:
    """The windows of the GPTQ protocol (Frantar et al., arXiv:2210.17323, as in their published code).

    The rows are joined by two newlines and tokenized once, with BOS once if that is the tokenizer's
    default; windows of ``context`` tokens follow one another without overlap, the tail is dropped,
    and in each window every token but the first is scored.
    Raises UnsupportedError where the text is too short for one window.
    """
    joined = GPTQ_JOINER.join(rows(workload.text))
    ids: list[int] = tokenizer(joined, verbose=False)["input_ids"]
    whole = len(ids) // workload.context
    if whole == 0:
        raise UnsupportedError(
            f"text {workload.text.id!r} has {len(ids)} tokens, fewer than one window of {workload.context}"
        )
    count = whole if workload.windows is None else min(whole, workload.windows)
    tokens = [ids[i * workload.context : (i + 1) * workload.context] for i in range(count)]
    return Windows(
        tokens,
        [1] * count,
        [str(index) for index in range(count)],
        {
            "protocol": "gptq",
            "context": workload.context,
            "stride": workload.context,
            "bos": "once" if ids[0] == tokenizer.bos_token_id else "none",
            "joiner": GPTQ_JOINER,
            "windows": count,
            "tokens_scored": count * (workload.context - 1),
            "text": workload.text.id,
            "text_sha256": hashlib.sha256(joined.encode()).hexdigest(),
            "tokens_sha256": hashlib.sha256(array("q", [t for row in tokens for t in row]).tobytes()).hexdigest(),
        },
    )
