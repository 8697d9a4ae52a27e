"""GPTQ's protocol (Frantar et al., arXiv:2210.17323, as in the authors' published code)."""

from __future__ import annotations

from typing import Any

from harness.core.workload import PerplexityWorkload
from harness.text.protocols.preset import JOINER, Cut, Preset, begins_with_bos, joined


def cut(workload: PerplexityWorkload, tokenizer: Any) -> Cut:
    """Joins and tokenizes the rows once. Windows do not overlap; their first tokens and the tail are not scored."""
    text, ids = joined(workload, tokenizer)
    size = workload.context
    tokens = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    bos = "once" if begins_with_bos(ids, tokenizer) else "none"
    return Cut(text, tokens, [1] * len(tokens), {"stride": size, "bos": bos, "joiner": JOINER})


GPTQ = Preset(
    name="gptq",
    summary="rows joined by a blank line, windows without overlap, every token but a window's first scored",
    context=2048,
    cut=cut,
)
