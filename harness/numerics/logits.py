"""How some architectures transform the output of the head: a scale (Cohere, Granite), a soft cap (Gemma 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def finish(logits: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """``softcap · tanh(scale · logits / softcap)``, or ``scale · logits`` without a soft cap."""
    import torch

    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits
