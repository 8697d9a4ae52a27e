"""How a variant's single tokens diverge: quantiles of KL, and the means of what was measured beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.core.record import Measurement, RunRecord
from harness.stats.estimate import Estimate, clustered_mean, quantile

MEDIAN, P90, P99, P99_9, MOST = SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class TokenDivergence:
    """``quantiles`` of KL (nat per token) by the share of tokens below them; empty if it was not measured.

    The means: KL(variant ‖ baseline), KL of the variant from itself in another batch, the share of the five likeliest
    tokens that both have, and the change of the probability of the text's own token.
    """

    quantiles: Mapping[float, float] = field(default_factory=dict)
    kl_reverse: Estimate | None = None
    kl_batch_noise: Estimate | None = None
    top5_agreement: Estimate | None = None
    delta_p: Estimate | None = None


def token_divergence(runs: Sequence[RunRecord]) -> TokenDivergence:
    """From the first of a variant's successful runs that measured each."""
    kl = _first(runs, "kl")
    values = np.asarray(kl.values, dtype=np.float64) if kl else None
    return TokenDivergence(
        {} if values is None else {share: quantile(values, share) for share in SHARES},
        _mean(runs, "kl_reverse", 0, math.inf),
        _mean(runs, "kl_batch_noise", 0, math.inf),
        _mean(runs, "top5_agreement", 0, 1),
        _mean(runs, "delta_p", -1, 1),
    )


def _mean(runs: Sequence[RunRecord], metric: str, least: float, most: float) -> Estimate | None:
    found = _first(runs, metric)
    return clustered_mean(found).within(least, most) if found else None


def _first(runs: Sequence[RunRecord], metric: str) -> Measurement | None:
    return next((found for run in runs for found in run.outcome.measured(metric) if found.values), None)
