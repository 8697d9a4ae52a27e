"""Negative log-likelihood per window, from which perplexity is derived."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.contracts import Chunk, Metric, Windows
from harness.errors import InvalidRunError
from harness.numerics.prediction import logprobs
from harness.record import Measurement

VERSION = 1


class Likelihood:
    """Sums each window's negative log-likelihood in float64.

    Perplexity is exp of the mean over all scored tokens; its windows are kept, for they are what a
    confidence interval and a paired comparison need.
    """

    def __init__(self, windows: Windows) -> None:
        self._protocol = windows.protocol
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
                protocol=self._protocol,
            )
        ]


PERPLEXITY = Metric(
    name="perplexity",
    version=VERSION,
    kind="observer",
    summary="perplexity of a text, with its windows' negative log-likelihoods",
    make=Likelihood,
)
