"""What llama.cpp's ``llama-perplexity -f FILE`` does (tools/perplexity/perplexity.cpp)."""

from __future__ import annotations

from typing import Any

from harness.core.workload import PerplexityWorkload
from harness.text.protocols.preset import Cut, Preset, begins_with_bos, encode, enough
from harness.text.sources import whole


def cut(workload: PerplexityWorkload, tokenizer: Any) -> Cut:
    """The file's text less one final newline, tokenized once; windows without overlap, the tail dropped.

    Where the model's tokenizer adds BOS, it takes the place of every window's first token. Scored are the tokens
    behind the window's middle: those at ``context // 2 + 1`` and after. Special tokens that stand written out in
    the text are text. Less than two windows are refused, as they are there.
    """
    text = whole(workload.text).removesuffix("\n")
    ids = enough(workload, encode(text, tokenizer, workload.bos, split_special_tokens=True), windows=2)
    size = workload.context
    tokens = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    bos = begins_with_bos(ids, tokenizer)
    if bos:
        tokens = [[ids[0], *window[1:]] for window in tokens]
    conditions = {"stride": size, "bos": "every window" if bos else "none", "joiner": ""}
    return Cut(text, tokens, [size // 2 + 1] * len(tokens), conditions)


LLAMA_CPP = Preset(
    name="llama.cpp",
    summary="the file as it is, windows without overlap that begin with BOS, their second half scored",
    context=512,
    cut=cut,
)
