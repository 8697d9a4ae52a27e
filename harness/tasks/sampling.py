"""Sampling whose randomness belongs to a question's sample and not to its batch, so that variants can be paired.

A token is drawn by the Gumbel-max trick: the largest of log p + g, with g independent standard Gumbel noise per token,
is a draw from p (Maddison, Tarlow and Minka, "A* Sampling", arXiv:1411.0030). The noise is a hash of the seed, the
question, the sample, the position and the token. So a sample does not depend on what else is in the batch, and two
variants that give nearly the same probabilities nearly always draw the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OWN_SETTINGS = ("do_sample", "temperature", "top_k", "top_p", "min_p")
"""Settings of a task that sampling by the recipe replaces."""
_LOW = 0xFFFFFFFF
_SEED_BITS = 31
"""llama.cpp takes 32 bits, all of them set for a seed of its own choice; others take a signed number."""


def request_seed(seed: int, prompt: int) -> int:
    """The seed with which an engine that samples by itself writes the text after the prompt of this number.

    A hash, so that two seeds share no prompt's: with ``seed`` + ``prompt`` the next seed would repeat nearly all texts.
    """
    return _hashed(seed, prompt) >> (64 - _SEED_BITS)


@dataclass(frozen=True)
class Sampling:
    """How a recipe has a task's questions answered several times.

    ``temperature`` divides the logits, and ``top_p`` keeps the likeliest tokens that together have this probability.
    Nothing of the checkpoint's own generation config counts: no top-k, no min-p.
    """

    samples: int
    temperature: float
    top_p: float
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """As settings of transformers' ``generate``, for an engine that samples by itself."""
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0, "min_p": 0.0}

    def scores(self, logits: torch.Tensor, rows: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Scores (batch, vocabulary) of which the largest is a draw, from logits of that shape.

        Of each row, ``rows`` holds the number of its prompt and the position of the token that is drawn.
        """
        import torch

        scaled = logits.float() / self.temperature
        if self.top_p < 1:
            scaled = _nucleus(scaled, self.top_p)
        keys = [self._key(prompt, position) for prompt, position in rows]
        first, second = torch.tensor(keys, dtype=torch.int64, device=logits.device).unbind(dim=1)
        tokens = torch.arange(logits.shape[-1], device=logits.device)
        mixed = _mixed(_mixed(tokens[None] ^ first[:, None]) ^ second[:, None])
        exponential = -torch.log1p(-(mixed.to(torch.float32) + 0.5) * 2.0**-32)
        return scaled - exponential.log()

    def _key(self, prompt: int, position: int) -> tuple[int, int]:
        whole = _hashed(self.seed, prompt, position)
        return whole & _LOW, whole >> 32


def _hashed(*numbers: int) -> int:
    """64 bits that look random."""
    return int.from_bytes(blake2b(":".join(map(str, numbers)).encode(), digest_size=8).digest(), "big")


def _nucleus(scaled: torch.Tensor, top_p: float) -> torch.Tensor:
    """The logits with all but the likeliest tokens, which together have ``top_p`` or more, at minus infinity."""
    ordered, places = scaled.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= top_p
    dropped[..., 0] = False
    return scaled.masked_fill(dropped.scatter(-1, places, dropped), -float("inf"))


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit numbers, each in an int64, whose results look random: Wellons, "Prospecting for Hash
    Functions", 2018 (lowbias32)."""
    numbers = (numbers ^ (numbers >> 16)) * 0x7FEB352D & _LOW
    numbers = (numbers ^ (numbers >> 15)) * 0x846CA68B & _LOW
    return numbers ^ (numbers >> 16)
