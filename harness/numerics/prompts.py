"""Prompts for what is measured without a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def random_tokens(vocabulary: int, batch: int, length: int, seed: int) -> torch.Tensor:
    """Tokens (batch, length), int64, on the CPU: the same for the same seed, whatever the variant."""
    import torch

    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
