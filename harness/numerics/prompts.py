"""Prompts for measurements that need no text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def random_tokens(vocabulary: int, batch: int, length: int, seed: int) -> torch.Tensor:
    """Tokens (batch, length), int64, on the CPU. The same seed gives the same tokens for every variant."""
    import torch

    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
