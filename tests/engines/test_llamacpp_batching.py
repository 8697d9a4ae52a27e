"""Answers on llama.cpp are written by continuous batching: no row waits for another, and none is fed once it has ended.

The cache is a stand-in that keeps what it is fed and checks what llama.cpp asks for.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from harness.core.capability import Prompt, numbered
from harness.core.engine import LoadRequest
from harness.engines.llamacpp.batching import write
from harness.engines.llamacpp.engine import LlamaCppModel, LlamaCppParams, sampling
from harness.errors import UnsupportedError
from harness.libraries.llamacpp import Piece
from harness.models.gguf.layout import GgufFile
from harness.models.gguf.reader import GgufTensor
from harness.tasks.sampling import Sampling

VOCABULARY, END, LIMIT = 26, 0, 30
PROMPTS = numbered([[1 + (7 * number + place) % 25 for place in range(1 + number * 5 % 13)] for number in range(23)])


def follows(tokens: Sequence[int]) -> int:
    """The likeliest token after these: different after different ones, and the end after one text in 26."""
    return crc32(bytes(tokens)) % VOCABULARY


def choose(logits: Sequence[int], places: Sequence[tuple[int, int]]) -> list[int]:
    """Draws by noise of a prompt's number and the position, as ``Sampling`` does."""
    noise = [crc32(f"{number}:{position}".encode()) for number, position in places]
    return [(logit + each) % VOCABULARY for logit, each in zip(logits, noise, strict=True)]


def ended(texts: Sequence[Sequence[int]]) -> list[bool]:
    return [text[-1] == END or len(text) == LIMIT for text in texts]


def alone(prompt: Prompt) -> list[int]:
    written: list[int] = []
    while not written or not ended([written])[0]:
        written += choose([follows([*prompt.tokens, *written])], [(prompt.number, len(written))])
    return written


@dataclass
class KeptSequences:
    """What each sequence holds, and all pieces that were fed, by step."""

    held: dict[int, list[int]] = field(default_factory=dict)
    steps: list[list[Piece]] = field(default_factory=list)

    def feed(self, pieces: Sequence[Piece]) -> list[int]:
        sequences = [piece.sequence for piece in pieces]
        assert sequences == list(range(len(pieces))), "llama.cpp computes consecutive sequences in one pass"
        assert self.held.keys() <= set(sequences), "of an ended text nothing is kept"
        for piece in pieces:
            own = self.held.setdefault(piece.sequence, [])
            assert piece.start == len(own)
            own += piece.tokens
        self.steps.append(list(pieces))
        return [follows(self.held[sequence]) for sequence in sequences]

    def forget(self, sequence: int) -> None:
        del self.held[sequence]

    def move(self, sequence: int, to: int) -> None:
        assert to not in self.held
        self.held[to] = self.held.pop(sequence)


def steps_needed(lengths: Sequence[int], at_once: int) -> int:
    """By list scheduling: each text begins as soon as the first of so many places is free."""
    free = [0] * at_once
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


@pytest.mark.parametrize("at_once", [1, 2, 5, 16, 64])
def test_each_text_is_what_it_is_alone(at_once: int) -> None:
    expected = [alone(prompt) for prompt in PROMPTS]
    assert len(set(map(len, expected))) > 5
    assert {text[-1] == END for text in expected} == {True, False}, "some ended by the limit"
    assert write(KeptSequences(), PROMPTS, at_once, choose, ended) == expected
    assert write(KeptSequences(), PROMPTS[::-1], at_once, choose, ended) == expected[::-1], "in any order"


@pytest.mark.parametrize("at_once", [1, 2, 5, 16, 64])
def test_no_more_is_fed_than_the_texts_themselves_and_no_place_is_empty_while_prompts_wait(at_once: int) -> None:
    cache = KeptSequences()
    written = write(cache, PROMPTS, at_once, choose, ended)
    lengths = [len(text) for text in written]
    assert sum(map(len, cache.steps)) == sum(lengths), "a row for each token that is written"
    fed = sum(len(piece.tokens) for step in cache.steps for piece in step)
    prompts = sum(len(prompt.tokens) for prompt in PROMPTS)
    assert fed == prompts + sum(lengths) - len(PROMPTS), "the last token of a text is never read"
    assert len(cache.steps) == steps_needed(lengths, at_once)
    if at_once == 5:
        waiting = sum(max(lengths[low : low + at_once]) for low in range(0, len(lengths), at_once))
        assert len(cache.steps) < 0.8 * waiting, "of batches that wait for their longest text"
    assert max(map(len, cache.steps)) == min(at_once, len(PROMPTS))
    assert cache.held == {}, "all cells are free again"


def test_texts_are_drawn_by_temperature_and_top_p_and_else_the_likeliest_is_taken() -> None:
    assert sampling({}, 3) is None
    assert sampling({"do_sample": False, "temperature": 0.7}, 3) is None, "which counts only where a text is drawn"
    own = Sampling(8, 0.6, 0.95, 3)
    assert sampling(own.settings, 3) == Sampling(1, 0.6, 0.95, 3)
    with pytest.raises(UnsupportedError, match="does not write by top_k; it takes the likeliest token, or draws"):
        sampling({"do_sample": True, "temperature": 0.6}, 3)  # transformers would keep the 50 likeliest
    with pytest.raises(UnsupportedError, match="does not write by num_beams, min_p"):
        sampling({"do_sample": True, "top_k": 0, "min_p": 0.1, "num_beams": 2}, 3)
    with pytest.raises(UnsupportedError, match="repetition_penalty"):
        sampling({"do_sample": False, "repetition_penalty": 1.2}, 3)


class LetterTokenizer:
    """A letter for each token."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) - ord("a") for letter in text]

    def batch_decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(chr(ord("a") + token) for token in row) for row in rows]


class StandIn(KeptSequences):
    """A runtime whose likeliest token is always the next letter, and whose texts end with z."""

    vocabulary, threads, most_rows = VOCABULARY, 1, 4

    def room(self, rows: int, length: int) -> None:
        self.asked = rows, length

    def ends(self, token: int) -> bool:
        return token == VOCABULARY - 1

    def feed(self, pieces: Sequence[Piece]) -> Any:
        import torch

        super().feed(pieces)
        last = torch.tensor([piece.tokens[-1] for piece in pieces])
        return 20.0 * torch.nn.functional.one_hot((last + 1) % VOCABULARY, VOCABULARY).float()


@pytest.mark.heavy
def test_a_text_ends_with_its_stop_its_own_end_or_the_limit(tmp_path: Path) -> None:
    runtime = StandIn()
    embedding = GgufTensor("token_embd.weight", "F32", (VOCABULARY, 8), 32 * VOCABULARY, begin=0)
    file = GgufFile("llama", 1, 4096, VOCABULARY, 24, (embedding,))
    request = LoadRequest(tmp_path, "float16", "cpu")
    model = LlamaCppModel(runtime, file, LetterTokenizer(), request, LlamaCppParams(slots=3))  # type: ignore[arg-type]
    prompts = numbered([ord(letter) - ord("a") for letter in text] for text in ("abc", "w", "q", "m", "efgh"))
    drawn = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}
    for settings in ({}, drawn):
        found = model.complete(prompts, 6, ["rs", "lmn"], 0, **settings)
        assert LetterTokenizer().batch_decode(found) == ["defghi", "xyz", "rs", "nopqrs", "ijklmn"]
        assert runtime.asked == (3, 4 + 6)
    assert max(map(len, runtime.steps)) == 3
    LlamaCppModel(runtime, file, LetterTokenizer(), request, LlamaCppParams()).complete(prompts, 6, [], 0)  # type: ignore[arg-type]
    assert runtime.asked == (4, 10), "no more than llama.cpp keeps"
    with pytest.raises(UnsupportedError, match="no tokenizer"):
        LlamaCppModel(runtime, file, None, request, LlamaCppParams()).complete(prompts, 6, [], 0)  # type: ignore[arg-type]
