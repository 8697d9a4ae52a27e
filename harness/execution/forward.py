"""The one forward pass over the windows that all observers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.contracts import Chunk, LoadedModel, Observer, Windows
from harness.execution.reference import Reference

CHUNK_TOKENS = 128
"""Positions whose logits exist at one time: 25 MB of float32 for a vocabulary of 49,152."""


def observe(
    model: LoadedModel,
    windows: Windows,
    observers: Sequence[Observer],
    reference: Reference | None,
    batch: int = 1,
) -> None:
    """Runs every window once, ``batch`` of them at a time, and shows each stretch of it to every observer."""
    import torch

    for first in range(0, len(windows.tokens), batch):
        tokens = torch.tensor([list(row) for row in windows.tokens[first : first + batch]], device=model.device)
        states = model.hidden(tokens) if model.factored else model.logits(tokens)
        for offset, rows in enumerate(states):
            kept = reference.window(first + offset) if reference else None
            for start, stop in _stretches(windows.firsts[first + offset], len(rows)):
                logits = model.head(rows[start:stop]) if model.factored else rows[start:stop]
                base = reference.logits(kept[start:stop]) if reference and kept is not None else None
                chunk = Chunk(
                    window=first + offset,
                    start=start + 1,
                    targets=tokens[offset, start + 1 : stop + 1],
                    logprobs=logits.float().log_softmax(dim=-1),
                    reference=base.float().log_softmax(dim=-1) if base is not None else None,
                )
                for observer in observers:
                    observer.observe(chunk)


def _stretches(first: int, length: int) -> Iterator[tuple[int, int]]:
    """The positions that predict the tokens from ``first`` on, in stretches of CHUNK_TOKENS; the last predicts none."""
    for start in range(first - 1, length - 1, CHUNK_TOKENS):
        yield start, min(start + CHUNK_TOKENS, length - 1)
