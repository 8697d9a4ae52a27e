"""Continuous batching: each sequence of llama.cpp's cache has one text, and where a text ends the next one begins.

A step feeds the last token of each running text and the whole prompt of each new one. llama.cpp computes only
consecutive sequences in one pass over the weights, so the running texts always have the first ones: when no prompt is
left, the last sequence moves into a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.core.capability import Prompt
from harness.libraries.llamacpp import Piece

Choose = Callable[[Any, Sequence[tuple[int, int]]], Sequence[int]]
"""The next token of each row of logits, by the number of its prompt and the tokens written after that so far."""
Ended = Callable[[Sequence[Sequence[int]]], Sequence[bool]]
"""Which texts, as written so far, end with their last token."""


class Sequences(Protocol):
    """The sequences of a cache. See ``harness.libraries.llamacpp.Runtime``."""

    def feed(self, pieces: Sequence[Piece]) -> Any: ...

    def forget(self, sequence: int) -> None: ...

    def move(self, sequence: int, to: int) -> None: ...


@dataclass
class _Continuation:
    """``read`` counts its tokens in the cache, the prompt's among them."""

    prompt: Prompt
    written: list[int] = field(default_factory=list)
    read: int = 0

    def next_piece(self, sequence: int) -> Piece:
        """What is read next, and counts as read from now on: the prompt, later the token written last."""
        start, tokens = self.read, self.written[-1:] or self.prompt.tokens
        self.read += len(tokens)
        return Piece(sequence, start, tokens)


def write(cache: Sequences, prompts: Sequence[Prompt], at_once: int, choose: Choose, ended: Ended) -> list[list[int]]:
    """What is written after each prompt, in order, with at most ``at_once`` texts in an empty cache at a time."""
    texts = [_Continuation(prompt) for prompt in prompts]
    waiting = deque(texts)
    running = [waiting.popleft() for _ in texts[:at_once]]
    while running:
        logits = cache.feed([text.next_piece(sequence) for sequence, text in enumerate(running)])
        chosen = choose(logits, [(text.prompt.number, len(text.written)) for text in running])
        for text, token in zip(running, chosen, strict=True):
            text.written.append(token)
        over = ended([text.written for text in running])
        for sequence in reversed([sequence for sequence, end in enumerate(over) if end]):
            cache.forget(sequence)
            if waiting:
                running[sequence] = waiting.popleft()
                continue
            last = running.pop()
            if sequence < len(running):
                running[sequence] = last
                cache.move(len(running), sequence)
    return [text.written for text in texts]
