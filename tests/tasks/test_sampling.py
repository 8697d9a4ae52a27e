"""Tokens are drawn with the probabilities that the settings say, by noise that belongs to a sample alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from harness.tasks.sampling import Sampling, request_seed

pytestmark = pytest.mark.heavy

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.7, -0.2])
DRAWS = 20_000


def drawn(sampling: Sampling, logits: torch.Tensor, prompt: int = 0, first: int = 0) -> np.ndarray:
    """A token at each of many positions of one sample."""
    rows = [(prompt, first + position) for position in range(DRAWS)]
    return sampling.scores(logits.expand(DRAWS, -1), rows).argmax(dim=-1).numpy()


def expected(temperature: float, top_p: float) -> np.ndarray:
    """By numpy alone: the softmax, cut to the smallest set of likeliest tokens that has ``top_p``."""
    scaled = LOGITS.numpy().astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    order = np.argsort(-shares)
    count = int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1
    kept = np.zeros_like(shares)
    kept[order[:count]] = shares[order[:count]]
    return kept / kept.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8), (0.6, 0.5)])
def test_tokens_come_as_often_as_they_are_likely(temperature: float, top_p: float) -> None:
    counts = Counter(drawn(Sampling(1, temperature, top_p, 7), LOGITS).tolist())
    shares = expected(temperature, top_p)
    possible = np.flatnonzero(shares)
    assert set(counts) <= set(possible.tolist())
    found = [counts[token] for token in possible]
    assert len(possible) == 1 or stats.chisquare(found, shares[possible] * DRAWS).pvalue > 1e-3


def test_draws_of_neighbours_samples_and_seeds_are_independent() -> None:
    one = drawn(Sampling(2, 1.0, 1.0, 7), LOGITS)
    others = [
        np.roll(one, 1),
        drawn(Sampling(2, 1.0, 1.0, 7), LOGITS, prompt=1),
        drawn(Sampling(2, 1.0, 1.0, 8), LOGITS),
    ]
    for other in others:
        table = np.zeros((len(LOGITS), len(LOGITS)))
        np.add.at(table, (one, other), 1)
        table = table[table.sum(1) > 50][:, table.sum(0) > 50]
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_draw_is_its_samples_own_and_nearly_equal_models_draw_alike() -> None:
    sampling = Sampling(2, 0.8, 0.95, 3)
    alone = sampling.scores(LOGITS[None], [(5, 17)])
    together = sampling.scores(LOGITS.expand(3, -1), [(1, 2), (5, 17), (5, 18)])
    assert torch.equal(alone[0], together[1])
    near = LOGITS + 0.02 * torch.linspace(-1, 1, len(LOGITS))
    differing = (drawn(sampling, LOGITS) != drawn(sampling, near)).mean()
    shares, theirs = (each.div(0.8).softmax(-1) for each in (LOGITS, near))
    assert 0 < differing < 3 * float((shares - theirs).abs().sum() / 2)  # independent draws would differ most times


def test_noise_is_the_same_for_a_large_vocabulary() -> None:
    wide = torch.full((1, 100_000), -5.0)
    wide[0, : len(LOGITS)] = LOGITS
    narrow = Sampling(1, 1.0, 1.0, 1).scores(LOGITS[None], [(0, 0)])
    assert torch.equal(Sampling(1, 1.0, 1.0, 1).scores(wide, [(0, 0)])[:, : len(LOGITS)], narrow)


def test_another_seed_repeats_no_request_of_an_engine_that_samples_itself() -> None:
    made = [{request_seed(seed, prompt) for prompt in range(4096)} for seed in (0, 1, 1234, 1235)]
    assert all(len(each) == 4096 for each in made)
    assert len(set.union(*made)) == 4 * 4096
    assert all(0 <= each < 2**31 for seeds in made for each in seeds)
