"""The protocol of lm-eval's ``wikitext`` task on its transformers backend (EleutherAI lm-evaluation-harness 0.4.13)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from harness.core.workload import PerplexityWorkload, TextRef
from harness.errors import UnsupportedError
from harness.text.protocols.detokenizer import detokenize
from harness.text.protocols.preset import Cut, Preset, begins_with_bos, encode
from harness.text.sources import is_plain, rows, whole


def cut(workload: PerplexityWorkload, tokenizer: Any) -> Cut:
    """Documents one by one, each after the prefix token (BOS, or else EOS), in rolling windows.

    As in the task, words and bytes are counted in the document as published, with words separated by white space.
    With ``bos: auto`` the tokenizer decides whether to add BOS. If it does, BOS follows the prefix token and is scored,
    as in lm-eval.
    """
    found, wikitext = documents(workload.text)
    if not found:
        raise UnsupportedError(f"text {workload.text.id!r} holds no document: it is blank")
    prefix = _prefix(tokenizer)
    tokens: list[list[int]] = []
    firsts: list[int] = []
    owners: list[str] = []
    bos = False
    for index, document in enumerate(found):
        ids = encode(detokenize(document) if wikitext else document, tokenizer, workload.bos)
        bos = begins_with_bos(ids, tokenizer)
        for window, first in _rolling(ids, prefix, workload.context):
            tokens.append(window)
            firsts.append(first)
            owners.append(str(index))
    return Cut(
        json.dumps(found),
        tokens,
        firsts,
        {
            "stride": workload.context,
            "prefix": "eos" if tokenizer.bos_token_id is None else "bos",
            "bos": "each document" if bos else "none",
            "detokenizer": "wikitext" if wikitext else "none",
        },
        owners,
        {
            "word": {str(index): len(re.split(r"\s+", document)) for index, document in enumerate(found)},
            "byte": {str(index): len(document.encode()) for index, document in enumerate(found)},
        },
    )


def documents(text: TextRef) -> tuple[list[str], bool]:
    """The documents of a text, and whether they are WikiText's pages, which have spaces around punctuation.

    A line such as ``= Title =`` begins a document, as on the hub (EleutherAI/wikitext_document_level). In a text
    without such lines, each row of JSON lines or of a hub data set is a document, and so is a whole plain file.
    """
    parts = [whole(text)] if is_plain(text) else rows(text)
    titled = any(_is_title(line) for part in parts for line in part.split("\n"))
    if titled and not any("\n" in part[:-1] for part in parts):
        parts = [whole(text)]
    if titled and len(parts) == 1:
        parts = list(_pages(parts[0]))
    return [part for part in parts if part.strip()], titled and any(" , " in part for part in parts)


def _pages(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in text.split("\n"):
        if _is_title(line):
            yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def _is_title(line: str) -> bool:
    """Whether the line is a top-level title: ``= Title =``, not ``= = Section = =``."""
    closed = line.replace("= = =", "===").replace("= =", "==").strip()
    return closed.startswith("= ") and closed.endswith(" =")


def _rolling(ids: list[int], prefix: int, context: int) -> Iterator[tuple[list[int], int]]:
    """Windows of ``context + 1`` tokens and the index where scoring begins in each; the last token is never read.

    The first window scores ``context`` tokens after the prefix token. Each later one scores the next ``context``
    tokens, after the previous window's last token. The last one scores the rest, with as many earlier tokens as fit.
    """
    if ids:
        yield [prefix, *ids[:context]], 1
    for done in range(context, len(ids), context):
        end = min(done + context, len(ids))
        yield ids[end - context - 1 : end], context + 1 - (end - done)


def _prefix(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UnsupportedError("lm-eval's protocol begins documents with BOS or EOS, and the model's tokenizer has neither")


LM_EVAL = Preset(
    name="lm-eval",
    summary="documents one by one, punctuation restored, rolling windows; per token, word and byte",
    context=2048,
    cut=cut,
    unscored=lambda context: 0,
)
