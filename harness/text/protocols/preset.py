"""A perplexity protocol: a name, its usual context, and a way to cut a text into windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core.identity import Scalar
from harness.core.workload import PerplexityWorkload
from harness.errors import UnsupportedError
from harness.text.sources import rows

Bos = Literal["auto", "always", "never"]
JOINER = "\n\n"
"""Separates the rows of a text, both in GPTQ's published code and in the Hugging Face documentation."""


@dataclass(frozen=True)
class Cut:
    """The windows of a text before they are counted and hashed: the fields of Windows, and the ``text`` that was read.

    ``conditions`` are what the figures depend on besides context, windows and hashes.
    """

    text: str
    tokens: list[list[int]]
    firsts: list[int]
    conditions: Mapping[str, Scalar]
    documents: list[str] | None = None
    amounts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def _first_alone(context: int) -> int:
    return 1


@dataclass(frozen=True)
class Preset:
    """A named protocol. ``cut`` raises UnsupportedError if the text is too short or the tokenizer lacks a token.

    ``unscored`` is how many tokens of a window of so many are only read.
    """

    name: str
    summary: str
    context: int
    cut: Callable[[PerplexityWorkload, Any], Cut]
    strided: bool = False
    unscored: Callable[[int], int] = _first_alone

    def scored(self, context: int, stride: int | None) -> int:
        """How many tokens of a window are scored; of windows that overlap the first one has more."""
        return context - self.unscored(context) if stride is None else min(stride, context - 1)


def joined(workload: PerplexityWorkload, tokenizer: Any) -> tuple[str, list[int]]:
    """The rows joined by JOINER, and their tokens: at least one window of them."""
    text = JOINER.join(rows(workload.text))
    return text, enough(workload, encode(text, tokenizer, workload.bos))


def encode(text: str, tokenizer: Any, bos: Bos, split_special_tokens: bool = False) -> list[int]:
    """The tokens of a text; BOS at the start is up to the tokenizer (``auto``), or added ``always`` or ``never``."""
    ids: list[int] = tokenizer(
        text, add_special_tokens=bos != "never", split_special_tokens=split_special_tokens, verbose=False
    )["input_ids"]
    if bos == "always" and ids[:1] != [needed_bos(tokenizer)]:
        ids.insert(0, needed_bos(tokenizer))
    return ids


def needed_bos(tokenizer: Any) -> int:
    """The id of BOS. Raises UnsupportedError if the tokenizer has none."""
    if tokenizer.bos_token_id is None:
        raise UnsupportedError("'bos: always' needs a BOS token, and the model's tokenizer has none; use auto or never")
    return int(tokenizer.bos_token_id)


def begins_with_bos(ids: list[int], tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def enough(workload: PerplexityWorkload, ids: list[int], windows: int = 1) -> list[int]:
    """Returns the tokens. Raises UnsupportedError if they do not fill the given number of windows."""
    if len(ids) < windows * workload.context:
        raise UnsupportedError(
            f"text {workload.text.id!r} has {len(ids)} tokens, fewer than "
            f"{'one window' if windows == 1 else f'the {windows} windows that {workload.protocol} asks for, each'} "
            f"of {workload.context}; name a longer text, or a smaller context"
        )
    return ids
