"""Predictions over a whole vocabulary: their probabilities, the divergence between two, and their most likely tokens.

Sums over the vocabulary use float32 and terms near zero; the one number that results per row continues in
float64. The error is then about 1e-7 nat, however large the logits are. Where two predictions hardly differ, their
divergence is computed by a formula without cancellation, whose error is a few percent of what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.core.metric import Prediction

if TYPE_CHECKING:
    import torch

NEAR_NAT = 1e-5
"""Divergences below this are computed again: float32's error of about 1e-7 nat is too much of them."""
MAX_EXPONENT = 80.0
"""float32 holds its exponential."""
BLOCK = 128
"""The search for the most likely tokens first looks only at the maximum of each block of this many tokens."""


def predict(logits: torch.Tensor) -> Prediction:
    """The predictions of logits (n, vocabulary) of any floating type, in float32."""
    return _prediction(logits.float())


def mean_divergence(base: torch.Tensor, other: torch.Tensor) -> float:
    """The mean KL(base ‖ other) in nats over the positions of two sets of logits (…, vocabulary).

    Uses float64 throughout. Meant for a few positions whose predictions should be the same.
    """
    ours, theirs = (_prediction(logits.double().flatten(0, -2)) for logits in (base, other))
    return float(divergences(ours, theirs)[0].mean())


def _prediction(logits: torch.Tensor) -> Prediction:
    exponents = logits - logits.amax(dim=1, keepdim=True)
    weights = exponents.exp()
    return Prediction(exponents, weights, weights.sum(dim=1).double())


def logprobs(prediction: Prediction, tokens: torch.Tensor) -> torch.Tensor:
    """The natural logarithm of the probability of one token per position, (n,) float64."""
    picked = prediction.exponents.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return picked.double() - prediction.totals.log()


def divergences(base: Prediction, other: Prediction) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(base ‖ other) and KL(other ‖ base) in nats (Kullback and Leibler 1951), each (n,) float64.

    With p = e^x / S and q = e^y / T, the first is Σ e^x (x − y) / S − ln S + ln T.
    """
    gap = base.exponents - other.exponents
    shift = other.totals.log() - base.totals.log()
    forward = (base.weights * gap).sum(dim=1).double() / base.totals + shift
    backward = (other.weights * gap).sum(dim=1).double() / other.totals + shift
    backward = -backward
    near = (forward.maximum(backward) < NEAR_NAT).nonzero().flatten()
    if len(near) == len(gap):  # the same model twice: spares copies
        return _near(base, gap)
    if len(near):
        rows = Prediction(base.exponents[near], base.weights[near], base.totals[near])
        forward[near], backward[near] = _near(rows, gap[near])
    return forward, backward


def _near(base: Prediction, gap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both divergences of predictions that hardly differ; ``gap`` is the base's exponents less the other's.

    With p the base's probabilities and u the negative gap less its mean under p, Σ p u is zero, and

    KL(base ‖ other) = ln Z, KL(other ‖ base) = Σ p u (eᵘ − 1) / Z − ln Z, with Z = 1 + Σ p (eᵘ − 1 − u).

    No two terms of these sums cancel. What float32 leaves of Σ p u is kept wherever it stands, so that it cancels.
    """
    shares = base.weights / base.totals.to(base.weights.dtype).unsqueeze(1)
    u = (shares * gap).sum(dim=1, keepdim=True) - gap
    left = (shares * u).sum(dim=1).double()
    u = u.clamp(max=MAX_EXPONENT)  # of a probability that is nearly zero
    grown = u.expm1()
    first = (shares * (grown - u)).sum(dim=1).double() + left
    second = (shares * u * grown).sum(dim=1).double() + left
    forward, backward = first.log1p() - left, second / (1 + first) - first.log1p()
    return forward.clamp(min=0), backward.clamp(min=0)


def first_choices(prediction: Prediction, count: int) -> torch.Tensor:
    """The most likely tokens, (n, count), most likely first; ties are ordered by id, lowest first.

    The ``count`` highest scores of a row lie in the ``count`` blocks with the highest maxima, so only these are sorted.
    """
    import torch

    scores = prediction.exponents
    vocabulary = scores.shape[1]
    blocks = vocabulary // BLOCK
    peaks = scores[:, : blocks * BLOCK].view(len(scores), blocks, BLOCK).amax(dim=2)
    if blocks * BLOCK < vocabulary:
        peaks = torch.cat([peaks, scores[:, blocks * BLOCK :].amax(dim=1, keepdim=True)], dim=1)
    places = torch.arange(peaks.shape[1], device=scores.device).expand_as(peaks)
    best = _highest(peaks, places, min(count, peaks.shape[1]))
    tokens = (best.unsqueeze(2) * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    found = scores.gather(1, tokens.clamp(max=vocabulary - 1)).masked_fill(tokens >= vocabulary, -torch.inf)
    return _highest(found, tokens, min(count, vocabulary))


def _highest(scores: torch.Tensor, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The ids of the ``count`` highest float32 scores of each row; ties are ordered by id, lowest first.

    Score and id are combined into one integer. Read as an integer, a float's bits sort like its value once the bits
    below the sign of a negative float are flipped.
    """
    import torch

    bits = scores.view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return ids.gather(1, ((ordered << 32) - ids).topk(count, dim=1).indices)
