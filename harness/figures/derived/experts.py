"""A mixture of experts in figures: the calibration tokens of each expert, and how routers agree with the baseline's.

All of it is read from a variant's own records; a dense model has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.record import Measurement, RunRecord
from harness.stats.estimate import Estimate, clustered_mean

TOKENS, OVERLAP, KL = "expert_tokens", "router_overlap", "router_kl"
READ = "decode_read_bytes"


@dataclass(frozen=True)
class ExpertLoad:
    """The calibration tokens that each expert of a block saw, by its number."""

    block: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class BlockAgreement:
    """How one block's router agrees with the baseline's, over all scored tokens: shared experts, and KL in nats.

    ``kl`` is None where it was not measured: a token's was infinite.
    """

    block: str
    overlap: float
    kl: float | None


@dataclass(frozen=True)
class ExpertAudit:
    """``loads`` are empty if the method is not calibrated; overlap, KL and ``blocks`` if nothing was compared.

    An expert with fewer calibration tokens than ``starved_tokens`` is starved. ``active_bytes`` are what decoding one
    token of one sequence reads of the weights; None if no such point was measured.
    """

    loads: tuple[ExpertLoad, ...] = ()
    starved_tokens: int = 0
    overlap: Estimate | None = None
    kl: Estimate | None = None
    blocks: tuple[BlockAgreement, ...] = ()
    active_bytes: float | None = None

    @property
    def dead(self) -> int:
        """Experts that saw no calibration token."""
        return sum(count == 0 for load in self.loads for count in load.tokens)

    @property
    def starved(self) -> int:
        """Experts that saw some, and fewer than ``starved_tokens``."""
        return sum(0 < count < self.starved_tokens for load in self.loads for count in load.tokens)


def expert_audit(runs: Sequence[RunRecord]) -> ExpertAudit | None:
    """From the first of a variant's successful runs that measured each; None for a dense model."""
    tokens, overlap, kl = (_first(runs, metric) for metric in (TOKENS, OVERLAP, KL))
    active_bytes = _active_bytes(runs)
    if tokens is None and overlap is None and active_bytes is None:
        return None
    return ExpertAudit(
        _loads(tokens) if tokens else (),
        int(tokens.protocol.get("starved") or 0) if tokens else 0,
        clustered_mean(overlap).within(0, 1) if overlap else None,
        clustered_mean(kl).within(0, math.inf) if kl else None,
        _by_block(overlap, kl) if overlap else (),
        active_bytes,
    )


def _active_bytes(runs: Sequence[RunRecord]) -> float | None:
    """Of the first point with batch 1; only a mixture's measurements say how its routing is known."""
    for run in runs:
        for found in run.outcome.measured(READ):
            where = found.protocol
            if found.values and where.get("routing") and where.get("part") == "weights" and where["batch_size"] == 1:
                return found.values[0]
    return None


def _loads(tokens: Measurement) -> tuple[ExpertLoad, ...]:
    found: dict[str, list[int]] = {}
    for name, count in zip(tokens.item_ids, tokens.values, strict=False):
        found.setdefault(name.rpartition(": ")[0], []).append(max(int(count), 0))
    return tuple(ExpertLoad(block, tuple(counts)) for block, counts in found.items())


def _by_block(overlap: Measurement, kl: Measurement | None) -> tuple[BlockAgreement, ...]:
    """The means over windows, weighted by their tokens; none if the items (``window:block``) are unlike."""
    if not overlap.weights or (kl is not None and overlap.item_ids != kl.item_ids):
        return ()
    blocks = [item.partition(":")[2] for item in overlap.item_ids]
    numbers = {block: number for number, block in enumerate(dict.fromkeys(blocks))}
    owner = np.array([numbers[block] for block in blocks])
    weights = np.asarray(overlap.weights, dtype=np.float64)
    totals = np.bincount(owner, weights=weights)

    def means(found: Measurement) -> list[float]:
        return (np.bincount(owner, weights=weights * np.asarray(found.values)) / totals).tolist()  # type: ignore[no-any-return]

    return tuple(map(BlockAgreement, numbers, means(overlap), means(kl) if kl else [None] * len(numbers)))


def _first(runs: Sequence[RunRecord], metric: str) -> Measurement | None:
    return next((found for run in runs for found in run.outcome.measured(metric) if found.values), None)
