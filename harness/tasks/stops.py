"""Finds the strings that end an answer, as lm-eval's HFLM does: in the text of its last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPARE_TOKENS = 2
"""How many more tokens than the tokenizer's the model may write a stop with, as HFLM has it."""


class StopStrings:
    """Some strings, and the number of last tokens among which they are looked for."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        lengths = [len(tokenizer.encode(stop, add_special_tokens=False)) for stop in stops]
        self.look_back = max(lengths, default=0) + SPARE_TOKENS

    def end(self, texts: Sequence[Sequence[int]]) -> list[bool]:
        """Which texts have one of the strings in their last tokens, special ones included."""
        tails = self._tokenizer.batch_decode([text[-self.look_back :] for text in texts])
        return [any(stop in tail for stop in self._stops) for tail in tails]
