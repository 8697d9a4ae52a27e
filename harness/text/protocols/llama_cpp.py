"""The protocol of llama.cpp's ``llama-perplexity -f FILE`` (tools/perplexity/perplexity.cpp)."""

from __future__ import annotations

from typing import Any

from harness.core.workload import PerplexityWorkload
from harness.text.protocols.preset import Cut, Preset, begins_with_bos, encode, enough
from harness.text.sources import whole


def cut(workload: PerplexityWorkload, tokenizer: Any) -> Cut:
    """The file's text without one final newline, tokenized once; windows do not overlap, and the tail is dropped.

    If the tokenizer adds BOS, BOS replaces the first token of every window. The tokens after the window's middle are
    scored: those from ``context // 2 + 1`` on. Special tokens written in the text count as plain text. As in llama.cpp,
    fewer than two windows are an error: UnsupportedError.
    """
    text = whole(workload.text).removesuffix("\n")
    ids = enough(workload, encode(text, tokenizer, workload.bos, split_special_tokens=True), windows=2)
    size = workload.context
    tokens = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    bos = begins_with_bos(ids, tokenizer)
    if bos:
        tokens = [[ids[0], *window[1:]] for window in tokens]
    conditions = {"stride": size, "bos": "every window" if bos else "none", "joiner": ""}
    return Cut(text, tokens, [_unscored(size)] * len(tokens), conditions)


def _unscored(context: int) -> int:
    return context // 2 + 1


LLAMA_CPP = Preset(
    name="llama.cpp",
    summary="the file as it is, windows without overlap that begin with BOS, their second half scored",
    context=512,
    cut=cut,
    unscored=_unscored,
)
