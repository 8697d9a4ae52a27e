"""Evidence on whether a baseline's figures can be right: how its text was tokenized, and whether it lacks BOS.

The evidence is judged when results are read (harness.figures.derived.plausibility).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.core.capability import Logits
from harness.core.metric import Chunk, Windows
from harness.core.record import Measurement
from harness.errors import first_line_of
from harness.execution.context import Context
from harness.execution.forward import observe
from harness.numerics.prediction import logprobs

VERSION = 1
PROBE_TOKENS = 256
"""Tokens of one window: enough for a mean that is accurate to a few hundredths of a nat."""
SETTLING_TOKENS = 16
"""Not scored: the first tokens of a text that begins mid-document are hard to predict with or without BOS."""


def plausibility(context: Context, model: Logits, windows: Windows) -> None:
    """Measures the evidence. An error becomes a fact, so that the run keeps its figures."""
    context.add([_exact("vocabulary_size", "token", model.vocabulary, windows)])
    try:
        context.add(_tokenization(model.tokenizer, windows))
        probed = _bos_probe(model.tokenizer, windows, model.vocabulary)
        if probed is not None:
            with context.phase("BOS probe"):
                context.add([_bos_gain(model, windows, *probed)])
    except Exception as error:  # noqa: BLE001 - becomes a fact
        context.fact("plausibility_not_measured", reason=first_line_of(error))


def _tokenization(tokenizer: Any, windows: Windows) -> list[Measurement]:
    """Tokens per character of the scored text, and the share of Latin letters among its letters."""
    scored = (window[first:] for window, first in zip(windows.tokens, windows.firsts, strict=True))
    pieces = [(len(ids), tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) for ids in scored]
    tokens, text = sum(count for count, _ in pieces), "".join(piece for _, piece in pieces)
    if not text:
        return []
    counts = Counter(text)
    letters = {letter: count for letter, count in counts.items() if letter.isalpha()}
    latin = sum(count for letter, count in letters.items() if unicodedata.name(letter, "").startswith("LATIN "))
    share = latin / sum(letters.values()) if letters else 0.0
    return [
        _exact("tokens_per_character", "token/character", tokens / len(text), windows),
        _exact("latin_letter_share", "fraction", share, windows),
    ]


def _bos_probe(tokenizer: Any, windows: Windows, vocabulary: int) -> tuple[int, int] | None:
    """BOS and the index of the window to score with and without it.

    It is the middle window, because some protocols put BOS only before the first. None if the tokenizer has no BOS that
    the model knows, or if the window begins with BOS or is too short.
    """
    index = len(windows.tokens) // 2
    bos, window = tokenizer.bos_token_id, windows.tokens[index]
    if bos is None or not 0 <= bos < vocabulary or window[0] == bos or len(window) <= 2 * SETTLING_TOKENS:
        return None
    return int(bos), index


def _bos_gain(model: Logits, windows: Windows, bos: int, index: int) -> Measurement:
    """How much a leading BOS lowers each token's negative log-likelihood, in nats."""
    import torch

    length = int(windows.protocol["context"] or PROBE_TOKENS)
    window = list(windows.tokens[index][: min(PROBE_TOKENS, length)])  # so that BOS does not exceed the context
    pair = replace(
        windows,
        tokens=[window, [bos, *window]],
        firsts=[SETTLING_TOKENS, SETTLING_TOKENS + 1],
        documents=["without", "with"],
        amounts={},
    )
    likelihoods = _Likelihoods()
    with torch.inference_mode():
        observe(model, pair, [likelihoods], None)
    without, beside = likelihoods.nats
    return Measurement(
        metric="bos_gain",
        version=VERSION,
        unit="nat/token",
        direction="neither",
        evidence="paired",
        values=tuple(one - other for one, other in zip(without, beside, strict=True)),
        item_ids=tuple(f"{index}:{position}" for position in range(SETTLING_TOKENS, len(window))),
        protocol={**windows.protocol, "window": index},
    )


class _Likelihoods:
    """The negative log-likelihood of each scored token of two windows, in nats."""

    def __init__(self) -> None:
        self.nats: tuple[list[float], list[float]] = ([], [])

    def observe(self, chunk: Chunk) -> None:
        self.nats[chunk.window].extend((-logprobs(chunk.prediction, chunk.targets)).tolist())

    def finish(self) -> Sequence[Measurement]:
        return ()


def _exact(metric: str, unit: str, value: float, windows: Windows) -> Measurement:
    return Measurement(metric, VERSION, unit, "neither", "exact", (float(value),), windows.protocol)
