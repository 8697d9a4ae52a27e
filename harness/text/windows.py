"""Cuts a text into the windows of tokens that are scored, following one of the named protocols."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.metric import Windows
from harness.core.workload import PerplexityWorkload
from harness.errors import UnsupportedError
from harness.text.protocols import PRESETS
from harness.text.protocols.preset import Cut

VERSION = 1
"""Increased whenever the way a text becomes windows changes."""
CHARACTERS_PER_TOKEN, UNKNOWN_TOKENS = 4.0, 300_000
"""Of a whole text, if the recipe limits no windows; and the tokens of one that is not here yet."""


def expected_tokens(workload: PerplexityWorkload) -> int:
    """About how many tokens a text will have, before there is a tokenizer."""
    if workload.windows is not None:
        return workload.windows * workload.context
    file = Path(workload.text.path) if workload.text.path else None
    known = file is not None and file.is_file()
    return int(file.stat().st_size / CHARACTERS_PER_TOKEN) if file and known else UNKNOWN_TOKENS


def cut(workload: PerplexityWorkload, tokenizer: Any) -> Windows:
    """The windows of a text, with everything that defines them in ``protocol``.

    Raises UnsupportedError if the text is too short, or if the tokenizer lacks a token that the protocol needs.
    """
    made = _first(workload, PRESETS[workload.protocol].cut(workload, tokenizer))
    counts = {"windows": len(made.tokens)}
    if made.documents is not None:
        counts["documents"] = len(set(made.documents))
    scored = sum(len(window) - first for window, first in zip(made.tokens, made.firsts, strict=True))
    return Windows(
        made.tokens,
        made.firsts,
        made.documents or [str(index) for index in range(len(made.tokens))],
        {
            "protocol": workload.protocol,
            "context": workload.context,
            **made.conditions,
            **counts,
            "tokens_scored": scored,
            "text": workload.text.id,
            "text_sha256": hashlib.sha256(made.text.encode()).hexdigest(),
            "tokens_sha256": tokens_sha256(made.tokens),
        },
        made.amounts,
    )


def tokens_sha256(rows: Sequence[Sequence[int]]) -> str:
    """Identifies the tokens of windows."""
    return hashlib.sha256(array("q", [token for row in rows for token in row]).tobytes()).hexdigest()


def _first(workload: PerplexityWorkload, made: Cut) -> Cut:
    """The requested number of windows. Documents stay whole, because their words and bytes are counted as a whole."""
    asked = workload.windows
    if asked is None or asked >= len(made.tokens):
        return made
    if made.documents is None:
        return replace(made, tokens=made.tokens[:asked], firsts=made.firsts[:asked])
    kept = made.documents.index(made.documents[asked])
    if kept == 0:
        needed = made.documents.count(made.documents[0])
        raise UnsupportedError(
            f"the first document of text {workload.text.id!r} takes {needed} windows, and 'windows' allows {asked}"
        )
    names = made.documents[:kept]
    return replace(
        made,
        tokens=made.tokens[:kept],
        firsts=made.firsts[:kept],
        documents=names,
        amounts={unit: {name: sizes[name] for name in dict.fromkeys(names)} for unit, sizes in made.amounts.items()},
    )
