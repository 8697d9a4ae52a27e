"""Negative log-likelihood per window, from which perplexity follows, and per word and byte of a document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.core.metric import Chunk, Metric, Windows
from harness.core.record import Measurement
from harness.errors import InvalidRunError
from harness.numerics.prediction import logprobs

VERSION = 1


class Likelihood:
    """Sums each window's negative log-likelihood in float64.

    Perplexity is exp of the mean over all scored tokens. Values are kept per window, because confidence intervals
    and paired comparisons need them. If the protocol counts words and bytes, ``nll_per_word`` and ``nll_per_byte``
    have one value per document: exp of the mean is the word or byte perplexity, and the mean of ``nll_per_byte``
    divided by ln 2 is the bits per byte.
    """

    def __init__(self, windows: Windows) -> None:
        self._protocol = windows.protocol
        self._documents = tuple(windows.documents)
        self._amounts = windows.amounts
        self._sums = [0.0] * len(windows.tokens)
        self._counts = [0] * len(windows.tokens)

    def observe(self, chunk: Chunk) -> None:
        total = -float(logprobs(chunk.prediction, chunk.targets).sum())
        if not math.isfinite(total):
            raise InvalidRunError(f"the logits of window {chunk.window} are not finite")
        self._sums[chunk.window] += total
        self._counts[chunk.window] += len(chunk.targets)

    def finish(self) -> Sequence[Measurement]:
        return [
            Measurement(
                metric="nll",
                version=VERSION,
                unit="nat/token",
                direction="lower",
                evidence="paired",
                values=tuple(total / count for total, count in zip(self._sums, self._counts, strict=True)),
                weights=tuple(map(float, self._counts)),
                item_ids=tuple(map(str, range(len(self._sums)))),
                cluster_ids=self._clusters(),
                protocol=self._protocol,
            ),
            *(self._per(unit, amounts) for unit, amounts in self._amounts.items()),
        ]

    def _clusters(self) -> tuple[str, ...]:
        """The windows' documents; empty if there is only one, or if every window is its own document."""
        return self._documents if 1 < len(set(self._documents)) < len(self._documents) else ()

    def _per(self, unit: str, amounts: Mapping[str, int]) -> Measurement:
        totals = dict.fromkeys(amounts, 0.0)
        for document, total in zip(self._documents, self._sums, strict=True):
            totals[document] += total
        return Measurement(
            metric=f"nll_per_{unit}",
            version=VERSION,
            unit=f"nat/{unit}",
            direction="lower",
            evidence="paired",
            values=tuple(totals[document] / amount for document, amount in amounts.items()),
            weights=tuple(map(float, amounts.values())),
            item_ids=tuple(amounts),
            protocol=self._protocol,
        )


PERPLEXITY = Metric(
    name="perplexity",
    version=VERSION,
    kind="observer",
    summary="perplexity of a text, with its windows' negative log-likelihoods",
    make=Likelihood,
)
