"""The probability of each variant being on the Pareto front of quality, stored bytes and decode speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from harness.figures.table import VariantRow
from harness.stats.draws import Luck, Scale, draws_for
from harness.stats.estimate import Estimate
from harness.stats.influence import Influence
from harness.stats.pareto import Direction, front_shares

_Figure = tuple[Estimate, Influence | None, Scale]
"""An estimate, the windows' influence on it, and the scale on which its error is even."""
_Axis = tuple[Callable[[VariantRow], _Figure | None], Direction]
ZERO = Estimate(0, 0, 0, 1, "the baseline")


def front_probabilities(rows: Sequence[VariantRow]) -> tuple[float | None, ...]:
    """The share of draws (``draws.Luck``) in which no other variant beats a row; None where a figure is lacking.

    Quality is the mean KL, or the change of perplexity where no divergence was measured; the baseline has zero of
    both. Speed is decoding at the first point of the grid. An axis that no variant was measured on is left out; bytes
    are exact. Variants share the luck of the text's windows; speeds are independent.
    """
    quality = _kl if any(row.kl_mean for row in rows) else _change
    axes: tuple[_Axis, ...] = ((quality, "lower"), (_bytes, "lower"), (_decode(rows), "higher"))
    used = [axis for axis in axes if any(axis[0](row) for row in rows if not row.is_baseline)]
    found = [[pick(row) for pick, _ in used] for row in rows]
    picked = [index for index, figures in enumerate(found) if all(figures)]
    if len(used) < 2 or not picked:
        return (None,) * len(rows)
    luck = Luck(draws_for(len(picked)))
    columns = [
        np.stack([luck.column(*figure) for index in picked if (figure := found[index][axis])], axis=1)
        for axis in range(len(used))
    ]
    shares = dict(zip(picked, front_shares(columns, [direction for _, direction in used]), strict=True))
    return tuple(shares.get(index) for index in range(len(rows)))


def _kl(row: VariantRow) -> _Figure | None:
    return _figure(ZERO if row.is_baseline else row.kl_mean, row.kl_influence)


def _change(row: VariantRow) -> _Figure | None:
    return _figure(ZERO if row.is_baseline else row.perplexity_change, row.perplexity_influence, scale="log1p")


def _bytes(row: VariantRow) -> _Figure | None:
    count = row.stored_bytes
    return None if count is None else (Estimate(count, count, count, 1, "exact"), None, "linear")


def _decode(rows: Sequence[VariantRow]) -> Callable[[VariantRow], _Figure | None]:
    """Speeds of two points of the grid are never set beside one another."""
    point = next((speed.point for row in rows for speed in row.speeds), None)

    def pick(row: VariantRow) -> _Figure | None:
        speed = row.speed_at(point) if point else None
        return _figure(speed.decode_tok_per_s if speed else None, scale="log")

    return pick


def _figure(estimate: Estimate | None, influence: Influence | None = None, scale: Scale = "linear") -> _Figure | None:
    return None if estimate is None or math.isnan(estimate.value) else (estimate, influence, scale)
