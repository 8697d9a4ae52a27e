"""Packs many inputs with common prefixes into the rows of tokens that a model must run. Pure.

Sorted inputs with common prefixes form a radix tree. A row contains neighbours in that order. It contains each token
of a shared prefix once, and a token sees the earlier tokens whose ``visible_until`` covers it. If a long prefix is
shared by more inputs than fit into one row, it becomes a row of its own, which is kept as the prefix of other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
NONE: Ints = np.zeros(0, dtype=np.int64)

OVERHEAD = 1 / 16
"""Fixed cost of a row, as a fraction of the budget: reading the weights, starting the kernels."""


@dataclass(frozen=True)
class ScoringInput:
    """Tokens for the model, and the first position whose prediction is needed."""

    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Reads:
    """Predictions to read from a row: the input, the position in the input, and the place of that token in the row."""

    inputs: Ints
    positions: Ints
    places: Ints


@dataclass(frozen=True)
class Row:
    """Tokens for one forward pass; ``on`` is the index of the row that is their prefix, if any.

    The token at place i is visible to places i to ``visible_until[i]`` - 1. A ``kept`` row does not branch.
    """

    tokens: Ints
    visible_until: Ints
    reads: Reads
    on: int | None = None
    kept: bool = False

    @property
    def branches(self) -> bool:
        return bool((self.visible_until < len(self.tokens)).any())


def pack(inputs: Sequence[ScoringInput], budget: int) -> list[Row]:
    """Rows that give every prediction of every input exactly once; a row comes after its prefix row.

    Only a row that does not branch may exceed ``budget`` tokens.
    """
    return _Packing(inputs, budget).rows


@dataclass(frozen=True)
class _Branch:
    """The leaves ``low`` to ``high`` - 1. Their first ``depth`` tokens are in the kept row ``on`` and its prefix rows.

    If ``stem`` is not 0, their tokens up to ``stem`` still have to become a kept row.
    """

    low: int
    high: int
    depth: int = 0
    on: int | None = None
    stem: int = 0


class _Packing:
    """Leaves are the inputs that are not a prefix of another one, sorted.

    ``common[i]`` is the length of the prefix that leaf i shares with leaf i - 1.
    """

    def __init__(self, inputs: Sequence[ScoringInput], budget: int) -> None:
        self.inputs = inputs
        self.budget = budget
        self.rows: list[Row] = []
        self.leaves: list[Ints] = []
        self.riders: list[list[int]] = []
        self._plant()
        self.lengths = np.array([len(leaf) for leaf in self.leaves], dtype=np.int64)
        self.common = np.array([0, *map(common, self.leaves, self.leaves[1:])], dtype=np.int64)
        waiting = [_Branch(0, len(self.leaves))]
        while waiting:  # depth first: all rows on a kept row come before the next kept row
            part = self._kept(waiting.pop())
            loose: list[int] = []
            for found in self._divided(part):
                if found.stem:
                    waiting.append(found)
                else:
                    loose += range(found.low, found.high)
            self._fill(loose, part.depth, part.on)

    def _plant(self) -> None:
        """Finds the leaves, and the riders of each: the leaf itself and the inputs that are prefixes of it."""
        ordered = sorted(range(len(self.inputs)), key=lambda index: self.inputs[index].tokens, reverse=True)
        for index in ordered:
            tokens = self.inputs[index].tokens
            if self.leaves and self._tokens(-1)[: len(tokens)] == tokens:
                self.riders[-1].append(index)
            else:
                self.leaves.append(np.array(tokens, dtype=np.int64))
                self.riders.append([index])
        self.leaves.reverse()
        self.riders.reverse()

    def _tokens(self, leaf: int) -> tuple[int, ...]:
        return self.inputs[self.riders[leaf][0]].tokens

    def _divided(self, part: _Branch) -> Iterator[_Branch]:
        """Splits into parts that fit into one row or are a single leaf, and parts whose stem becomes a kept row."""
        waiting = [part]
        while waiting:
            part = waiting.pop()
            inner = self.common[part.low + 1 : part.high]
            if not inner.size or self._size(part) <= self.budget:
                yield part
                continue
            stem = int(inner.min())
            if self._saves(stem - part.depth, self._size(part) - stem + part.depth):
                yield replace(part, stem=stem)
                continue
            cuts = [part.low, *(part.low + 1 + np.flatnonzero(inner == stem)), part.high]
            parts = [replace(part, low=int(a), high=int(b)) for a, b in pairwise(cuts)]
            waiting += parts[::-1]

    def _size(self, part: _Branch) -> int:
        """Number of tokens if the part were one row."""
        inside = slice(part.low + 1, part.high)
        fresh = int((self.lengths[inside] - self.common[inside]).sum())
        return int(self.lengths[part.low]) - part.depth + fresh

    def _saves(self, stem: int, rest: int) -> bool:
        """Whether keeping a stem is cheaper than repeating it in every row. It costs one row and splits another."""
        room = self.budget - stem
        repeats = -(-rest // room) - 1 if room > 0 else np.inf
        return stem * repeats > 2 * OVERHEAD * self.budget

    def _kept(self, part: _Branch) -> _Branch:
        """Makes the row of the part's stem and returns the part on top of it."""
        if not part.stem:
            return part
        tokens = self.leaves[part.low][part.depth : part.stem]
        below = (rider for leaf in range(part.low, part.high) for rider in self.riders[leaf])
        riders = [rider for rider in below if self.inputs[rider].first < part.stem]
        reads = self._reads([(riders, np.arange(len(tokens)))], part.depth, part.stem)
        self.rows.append(Row(tokens, np.full(len(tokens), len(tokens)), reads, part.on, kept=True))
        return _Branch(part.low, part.high, part.stem, len(self.rows) - 1)

    def _fill(self, leaves: Sequence[int], depth: int, on: int | None) -> None:
        """Puts leaves into rows, in order, with the cheapest cuts."""
        if not leaves:
            return
        common = [0, *(self._shared(a, b) for a, b in pairwise(leaves))]
        fresh = np.array([self.lengths[leaf] - shared for leaf, shared in zip(leaves, common, strict=True)])
        whole = np.array([self.lengths[leaf] - depth for leaf in leaves])
        cuts = _cheapest_cuts(whole, np.cumsum(fresh), self.budget)
        for low, high in pairwise(cuts):
            self._row(leaves[low:high], [depth, *common[low + 1 : high]], depth, on)

    def _shared(self, one: int, other: int) -> int:
        return int(self.common[one + 1 : other + 1].min())

    def _row(self, leaves: Sequence[int], common: Sequence[int], depth: int, on: int | None) -> None:
        """Makes one row of leaves; ``common`` is the length of the prefix that each shares with the previous one."""
        tokens = np.concatenate([self.leaves[leaf][shared:] for leaf, shared in zip(leaves, common, strict=True)])
        visible_until = np.full(len(tokens), len(tokens))
        path = NONE  # places of the current leaf's tokens, from ``depth`` on
        paths: list[tuple[list[int], Ints]] = []
        done = 0
        for leaf, shared in zip(leaves, common, strict=True):
            visible_until[path[shared - depth :]] = done
            fresh = int(self.lengths[leaf]) - shared
            path = np.concatenate([path[: shared - depth], np.arange(done, done + fresh)])
            paths.append((self.riders[leaf], path))
            done += fresh
        self.rows.append(Row(tokens, visible_until, self._reads(paths, depth, None), on))

    def _reads(self, paths: Sequence[tuple[Sequence[int], Ints]], depth: int, stop: int | None) -> Reads:
        """The reads of inputs for their tokens from ``depth`` up to ``stop``; ``paths`` gives the tokens' places."""
        inputs: list[Ints] = []
        positions: list[Ints] = []
        places: list[Ints] = []
        for riders, path in paths:
            for rider in riders:
                wanted = self.inputs[rider]
                span = np.arange(max(wanted.first, depth), min(len(wanted.tokens), stop or len(wanted.tokens)))
                inputs.append(np.full(len(span), rider))
                positions.append(span)
                places.append(path[span - depth])
        return Reads(*(np.concatenate([NONE, *parts]) for parts in (inputs, positions, places)))


def _cheapest_cuts(whole: Ints, fresh: Ints, budget: int) -> list[int]:
    """Where to cut leaves into rows: the first leaf of each row, and the end. Exact, by dynamic programming.

    A leaf needs ``whole`` tokens if it is the first of a row. ``fresh`` is the running sum of the tokens that each leaf
    adds after the previous one.
    """
    costs = np.zeros(len(whole) + 1)
    starts = np.zeros(len(whole) + 1, dtype=np.int64)
    low = 0
    opening = whole - fresh  # a row from leaf i to leaf j has opening[i] + fresh[j] tokens
    for last in range(len(whole)):
        while low < last and opening[low] + fresh[last] > budget:
            low += 1
        tokens = opening[low : last + 1] + fresh[last]
        options = costs[low : last + 1] + tokens
        best = int(options.argmin())
        costs[last + 1] = options[best] + OVERHEAD * budget
        starts[last + 1] = low + best
    cuts = [len(whole)]
    while cuts[-1]:
        cuts.append(int(starts[cuts[-1]]))
    return cuts[::-1]


def common(one: npt.ArrayLike, other: npt.ArrayLike) -> int:
    """The length of the common prefix of two sequences."""
    first, second = np.asarray(one), np.asarray(other)
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    return int(differ.argmax()) if differ.any() else length
