"""Whether the baseline works at all on the scored text: if not, no figure relative to it means anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.core.label import ImplausibleReason, Label, implausible_finding
from harness.core.model import ModelRef
from harness.core.record import Measurement, RunRecord
from harness.stats.estimate import Estimate, clustered_mean, perplexity

MOST_PERPLEXITY = 300.0
"""Per token. Token frequencies alone, without any context, give 100 (512 tokens in the vocabulary) to 600 (2,048) on
running text; trained language models give 5 to 60."""
MOST_OF_VOCABULARY = 0.5
"""Perplexity over vocabulary size; uniform guessing gives 1. It matters for vocabularies below 600."""
MOST_TOKENS_PER_CHARACTER = 1.2
"""For Latin text. Trained tokenizers reach 0.2 to 0.7, and one token per byte reaches 1.0."""
LATIN = 0.9
"""The share of Latin letters from which a text counts as Latin; in other scripts a character may need many tokens."""
BOS_GAIN_NAT = 0.1
"""Largest plausible gain from a BOS in front of a window, nat per token. On 277 windows of 256 tokens, four small
models that do not need it gained 0.07 at most; a story model whose BOS begins a story gained 0.14 on stories, and
Gemma 3 270M 0.9 to 1.5 on six windows of WikiText (perplexity 131 without BOS, 38 with it)."""


@dataclass(frozen=True)
class Implausibility:
    """One reason not to trust figures relative to the baseline.

    ``figure`` is above ``limit``, both in the unit of the code's threshold; random weights have neither.
    """

    code: ImplausibleReason
    figure: float | None = None
    limit: float | None = None

    @property
    def finding(self) -> str:
        return implausible_finding(self.code, self.figure, self.limit)

    @property
    def label(self) -> Label:
        """The label shown wherever the table's figures are."""
        figures = {"figure": self.figure, "limit": self.limit} if self.figure is not None else {}
        return Label("implausible_baseline", {"reason": self.code, **figures})


def implausible(model: ModelRef, quality: RunRecord | None) -> tuple[Implausibility, ...]:
    """What makes a baseline implausible, from its successful quality run; empty if there is none.

    Records made before this evidence was measured are judged by their perplexity alone.
    """
    if model.kind == "synthetic":
        return (Implausibility("random_weights"),)
    if quality is None:
        return ()
    return tuple(each for each in (_perplexity(quality), _cutting(quality), _bos(quality)) if each)


def _perplexity(quality: RunRecord) -> Implausibility | None:
    nll = _found(quality, "nll")
    if nll is None:
        return None
    figure = perplexity(nll).value
    vocabulary = _value(quality, "vocabulary_size")
    if vocabulary is not None and figure > MOST_OF_VOCABULARY * vocabulary:
        return Implausibility("guessing", figure, MOST_OF_VOCABULARY * vocabulary)
    return Implausibility("perplexity", figure, MOST_PERPLEXITY) if figure > MOST_PERPLEXITY else None


def _cutting(quality: RunRecord) -> Implausibility | None:
    figure, latin = _value(quality, "tokens_per_character"), _value(quality, "latin_letter_share")
    if figure is None or latin is None or latin < LATIN or figure <= MOST_TOKENS_PER_CHARACTER:
        return None
    return Implausibility("tokens_per_character", figure, MOST_TOKENS_PER_CHARACTER)


def _bos(quality: RunRecord) -> Implausibility | None:
    """A gain that is both large and statistically clear by its interval."""
    found = _found(quality, "bos_gain")
    if found is None:
        return None
    gain: Estimate = clustered_mean(found)
    clear = gain.low is not None and gain.low > 0
    return Implausibility("bos", gain.value, BOS_GAIN_NAT) if clear and gain.value > BOS_GAIN_NAT else None


def _found(run: RunRecord, metric: str) -> Measurement | None:
    found = run.find(metric)
    return found if found and found.values else None


def _value(run: RunRecord, metric: str) -> float | None:
    found = _found(run, metric)
    return found.values[0] if found and math.isfinite(found.values[0]) else None
