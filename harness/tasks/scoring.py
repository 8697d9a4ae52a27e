"""Log-likelihoods of continuations, for many requests in one of four layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.core.capability import (
    Branching,
    LoadedModel,
    Logits,
    Ragged,
    Scores,
    as_branching,
    as_ragged,
    states_and_head,
)
from harness.errors import UnsupportedError
from harness.tasks.prefix_tree import Ints, Reads, Row, ScoringInput, pack

if TYPE_CHECKING:
    import torch

Layout = Literal["packed", "ragged", "batched", "alone"]
"""Rows that branch without padding; many inputs that the model schedules itself; batches padded on the right; one input
per forward pass."""
CHUNK_ROWS = 128
"""Predictions whose logits are in memory at once: 25 MB of float32 for a vocabulary of 49,152."""
BUDGET_TOKENS = {"cpu": 384}
"""Tokens per forward pass, by device: enough to occupy the cores, few enough to keep attention cheap."""
OTHER_BUDGET_TOKENS = 2048
RAGGED_BUDGET_TOKENS = 8192
"""Tokens of the inputs that a model schedules at once, whose states are then all in memory. They fill several of its
steps, because the last one is rarely full."""


@dataclass(frozen=True)
class Request:
    """A context of at least one token, and the continuation to score."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a continuation in nats, and whether greedy decoding would produce it."""

    loglikelihood: float
    greedy: bool


@dataclass
class Effort:
    """The work done: tokens through the decoder (including padding), rows through the head, forward passes.

    A call of a model that schedules its texts itself counts as one forward pass.
    """

    tokens: int = 0
    head_rows: int = 0
    forwards: int = 0

    def add(self, *, tokens: int = 0, head_rows: int = 0, forwards: int = 0) -> None:
        self.tokens += tokens
        self.head_rows += head_rows
        self.forwards += forwards


def default_layout(model: LoadedModel) -> Layout:
    if as_branching(model) is not None:
        return "packed"
    return "ragged" if isinstance(model, Scores) or as_ragged(model) is not None else "batched"


def default_budget(model: LoadedModel) -> int:
    """Tokens per forward pass, or per group of inputs that the model schedules itself."""
    if as_ragged(model) is not None:
        return RAGGED_BUDGET_TOKENS
    return BUDGET_TOKENS.get(model.device.partition(":")[0], OTHER_BUDGET_TOKENS)


def score(
    model: LoadedModel, requests: Sequence[Request], layout: Layout, budget: int, effort: Effort | None = None
) -> list[Score]:
    """The score of every request, in order. Adds the work done to ``effort``.

    Requests with the same input share its predictions. Raises UnsupportedError for ``packed`` if the model cannot
    branch, for ``ragged`` if it cannot read inputs of unequal length, and if it scores no texts at all.
    """
    import torch

    effort = effort or Effort()
    if isinstance(model, Scores):
        return _elsewhere(model, requests, layout, effort)
    if not isinstance(model, Logits):
        raise UnsupportedError("the task scores texts, and this engine cannot")
    reader = _Reader(states_and_head(model)[1], requests, effort)
    with torch.inference_mode():
        for states, reads in _forwards(model, reader.inputs, layout, budget, effort):
            reader.read(states, reads)
    return reader.scores()


def _elsewhere(model: Scores, requests: Sequence[Request], layout: Layout, effort: Effort) -> list[Score]:
    """The scores by a model that reduces its own logits; equal texts are computed once."""
    texts = list(dict.fromkeys((*each.context, *each.continuation) for each in requests))
    found = dict(zip(texts, model.score(texts, 1 if layout == "alone" else len(texts)), strict=True))
    effort.add(tokens=sum(map(len, texts)), head_rows=sum(map(len, texts)) - len(texts), forwards=1)
    scores = []
    for each in requests:
        own, last = found[(*each.context, *each.continuation)], len(each.continuation)
        scores.append(Score(math.fsum(own.logarithms[-last:]), all(own.likeliest[-last:])))
    return scores


def _forwards(
    model: Logits, inputs: Sequence[ScoringInput], layout: Layout, budget: int, effort: Effort
) -> Iterator[tuple[torch.Tensor, Reads]]:
    """Hidden states (n, width), or logits (n, vocabulary) if the model has no separate head, and what to read there."""
    if layout == "packed":
        branching = as_branching(model)
        if branching is None:
            raise UnsupportedError("this model cannot run rows that branch")
        yield from _packed(branching, pack(inputs, budget), effort)
        return
    if layout == "ragged":
        ragged = as_ragged(model)
        if ragged is None:
            raise UnsupportedError("this model cannot read inputs of unequal length together")
        for group in _groups(inputs, budget):
            yield _unpadded(ragged, group, inputs, effort)
        return
    for batch in _batches(inputs, 1 if layout == "alone" else budget):
        yield _padded(model, inputs, batch, effort)


def _packed(model: Branching, rows: Sequence[Row], effort: Effort) -> Iterator[tuple[torch.Tensor, Reads]]:
    """Runs packed rows. Drops the prefix cache of a kept row after the last row that uses it."""
    import torch

    last = {row.on: index for index, row in enumerate(rows)}
    prefixes: dict[int | None, Any] = {None: None}
    for index, row in enumerate(rows):
        tokens = torch.from_numpy(row.tokens)
        prefix = prefixes[row.on]
        if row.kept:
            states, prefixes[index] = model.extend_prefix(tokens, prefix)
        elif prefix is None and not row.branches:
            states = model.hidden(tokens.unsqueeze(0))[0]
        else:
            states = model.forward_tree(tokens, torch.from_numpy(row.visible_until), prefix)
        if row.on is not None and last[row.on] == index:
            del prefixes[row.on]
        effort.add(tokens=len(row.tokens), forwards=1)
        yield states, row.reads


def _groups(inputs: Sequence[ScoringInput], budget: int) -> Iterator[range]:
    """Neighbours with at most ``budget`` tokens together; an input with more is a group of its own."""
    low = total = 0
    for index, each in enumerate(inputs):
        if index > low and total + len(each.tokens) > budget:
            yield range(low, index)
            low, total = index, 0
        total += len(each.tokens)
    if inputs:
        yield range(low, len(inputs))


def _unpadded(
    model: Ragged, group: Sequence[int], inputs: Sequence[ScoringInput], effort: Effort
) -> tuple[torch.Tensor, Reads]:
    """The states of a group that are needed, and what to read there."""
    import torch

    states = model.hidden_of([inputs[index].tokens for index in group])
    effort.add(tokens=sum(len(inputs[index].tokens) for index in group), forwards=1)
    needed = torch.cat([rows[inputs[index].first :] for index, rows in zip(group, states, strict=True)])
    starts, filled = [], 0
    for index in group:
        starts.append(filled - inputs[index].first)
        filled += len(inputs[index].tokens) - inputs[index].first
    return needed, _reads(inputs, group, starts)


def _reads(inputs: Sequence[ScoringInput], batch: Sequence[int], starts: Sequence[int]) -> Reads:
    """What a batch's inputs need; ``starts`` are the places of their first tokens, before 0 if those are left out."""
    spans = [np.arange(inputs[index].first, len(inputs[index].tokens)) for index in batch]
    return Reads(
        inputs=np.concatenate([np.full(len(span), index) for index, span in zip(batch, spans, strict=True)]),
        positions=np.concatenate(spans),
        places=np.concatenate([start + span for start, span in zip(starts, spans, strict=True)]),
    )


def _batches(inputs: Sequence[ScoringInput], budget: int) -> Iterator[list[int]]:
    """Batches of inputs of similar length, longest first, with at most ``budget`` tokens including padding."""
    ordered = sorted(range(len(inputs)), key=lambda index: len(inputs[index].tokens), reverse=True)
    batch: list[int] = []
    for index in ordered:
        if batch and (len(batch) + 1) * len(inputs[batch[0]].tokens) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(
    model: Logits, inputs: Sequence[ScoringInput], batch: Sequence[int], effort: Effort
) -> tuple[torch.Tensor, Reads]:
    import torch

    width = max(len(inputs[index].tokens) for index in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.int64)
    for row, index in enumerate(batch):
        tokens[row, : len(inputs[index].tokens)] = torch.tensor(inputs[index].tokens)
    states = states_and_head(model)[0](tokens)
    effort.add(tokens=tokens.numel(), forwards=1)
    return states.flatten(0, 1), _reads(inputs, batch, [row * width for row in range(len(batch))])


class _Reader:
    """Turns hidden states into the scores of requests. Requests with equal inputs share them."""

    def __init__(
        self, head: Callable[[torch.Tensor], torch.Tensor], requests: Sequence[Request], effort: Effort
    ) -> None:
        self._head = head
        self._requests = requests
        self._effort = effort
        sharing: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            sharing.setdefault(request.context + request.continuation[:-1], []).append(index)
        self._sharing = list(sharing.values())
        self.inputs = [
            ScoringInput(tokens, min(len(requests[index].context) for index in sharers) - 1)
            for tokens, sharers in sharing.items()
        ]
        self._nats = np.zeros(len(requests))
        self._greedy = np.ones(len(requests), dtype=bool)

    def scores(self) -> list[Score]:
        return [Score(float(nat), bool(greedy)) for nat, greedy in zip(self._nats, self._greedy, strict=True)]

    def read(self, states: torch.Tensor, reads: Reads) -> None:
        """Applies the head once to each state that is needed, and adds up the log-likelihoods."""
        import torch

        if not len(reads.places):
            return
        owners, places, targets = self._targets(reads)
        wanted, rows = np.unique(places, return_inverse=True)
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], np.arange(0, len(wanted) + CHUNK_ROWS, CHUNK_ROWS))
        for chunk, low in enumerate(range(0, len(wanted), CHUNK_ROWS)):
            mine = order[bounds[chunk] : bounds[chunk + 1]]
            picked = states[torch.from_numpy(wanted[low : low + CHUNK_ROWS]).to(states.device)]
            logits = self._head(picked).float()
            at = torch.from_numpy(rows[mine] - low).to(logits.device)
            target = torch.from_numpy(targets[mine]).to(logits.device)
            nats = logits.log_softmax(dim=-1)[at, target]
            np.add.at(self._nats, owners[mine], nats.double().cpu().numpy())
            if self._greedy[owners[mine]].any():  # a long text usually differs from greedy decoding early on
                np.logical_and.at(self._greedy, owners[mine], (logits.argmax(dim=-1)[at] == target).cpu().numpy())
        self._effort.add(head_rows=len(wanted))

    def _targets(self, reads: Reads) -> tuple[Ints, Ints, Ints]:
        """For every token predicted in this pass: its request, the place that predicts it, and the token."""
        owners: list[Ints] = []
        places: list[Ints] = []
        targets: list[Ints] = []
        starts = np.flatnonzero(np.diff(reads.inputs, prepend=-1))
        for low, high in zip(starts, [*starts[1:], len(reads.inputs)], strict=True):
            positions = reads.positions[low:high]
            for index in self._sharing[reads.inputs[low]]:
                request = self._requests[index]
                mine = positions >= len(request.context) - 1
                owners.append(np.full(int(mine.sum()), index))
                places.append(reads.places[low:high][mine])
                targets.append(np.array(request.continuation)[positions[mine] - len(request.context) + 1])
        return tuple(np.concatenate(parts, dtype=np.int64) for parts in (owners, places, targets))  # type: ignore[return-value]
