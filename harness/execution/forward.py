"""The single forward pass over the windows, shared by all observers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from harness.core.capability import Logits, states_and_head, states_each
from harness.core.metric import LOGITS_BYTES, Chunk, Observer, Windows
from harness.execution.reference import Kept
from harness.numerics.prediction import predict

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**25}
"""Size of the blocks that statistics are computed on: on a CPU, arrays that fit its cache."""


def observe(
    model: Logits,
    windows: Windows,
    observers: Sequence[Observer],
    reference: Kept | None,
    batch: int = 1,
) -> None:
    """Runs every window once and shows it to every observer; batches up to ``batch`` neighbours of equal length."""
    import torch

    head = states_and_head(model)[1]
    groups = list(_batches(windows, batch))
    # The last token predicts nothing and, in some protocols, exceeds the model's context.
    read = (torch.tensor([list(windows.tokens[index][:-1]) for index in members]) for members in groups)
    for members, states in zip(groups, states_each(model, (each.to(model.device) for each in read)), strict=True):
        for index, rows in zip(members, states, strict=True):
            row = torch.tensor(list(windows.tokens[index]), device=model.device)
            kept = reference.window(index) if reference else None
            for start, stop in _stretches(windows.firsts[index], len(row), _rows(LOGITS_BYTES, model.vocabulary)):
                base = reference.logits(kept[start:stop]) if reference and kept is not None else None
                for chunk in _chunks(index, start + 1, row[start + 1 : stop + 1], head(rows[start:stop]), base):
                    for observer in observers:
                        observer.observe(chunk)
                del base  # before the next stretch, as the variant's logits go with the chunks


def _batches(windows: Windows, batch: int) -> Iterator[Sequence[int]]:
    """The windows' indices in order, in groups that fit one tensor without padding."""
    for _, found in groupby(range(len(windows.tokens)), key=lambda index: len(windows.tokens[index])):
        alike = list(found)
        yield from (alike[at : at + batch] for at in range(0, len(alike), batch))


def _rows(size: int, vocabulary: int) -> int:
    """How many rows of float32 logits fit into ``size`` bytes; at least 1."""
    return max(1, size // (4 * vocabulary))


def _stretches(first: int, length: int, rows: int) -> Iterator[tuple[int, int]]:
    """The positions that predict the tokens from ``first`` on, ``rows`` at a time; the last one predicts nothing."""
    for start in range(first - 1, length - 1, rows):
        yield start, min(start + rows, length - 1)


def _chunks(
    window: int, start: int, targets: torch.Tensor, logits: torch.Tensor, base: torch.Tensor | None
) -> Iterator[Chunk]:
    """A stretch, one block at a time."""
    rows = _rows(BLOCK_BYTES.get(logits.device.type, LOGITS_BYTES), logits.shape[-1])
    for at in range(0, len(targets), rows):
        part = slice(at, at + rows)
        reference = predict(base[part]) if base is not None else None
        yield Chunk(window, start + at, targets[part], predict(logits[part]), reference)
