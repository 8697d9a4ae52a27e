"""How much each window of a text pulls at a mean: what two variants' figures have in common.

A window that is hard for one variant is mostly hard for the next, so that their figures rise and fall together. Whoever
draws them at random must know that, or differences between them look less certain than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.record import Measurement
from harness.stats.estimate import Floats


@dataclass(frozen=True)
class Influence:
    """Of each independent unit, by name, its part in the mean's error: (sum − mean · size) / Σ sizes.

    The parts add up to zero; √(Σ part²) is the mean's standard error, but for a small-sample factor.
    """

    units: tuple[str, ...]
    parts: tuple[float, ...]


def of_mean(measurement: Measurement) -> Influence | None:
    """Of a measurement's own mean; None where it has fewer than two units."""
    names = measurement.cluster_ids or measurement.item_ids
    values = np.asarray(measurement.values, dtype=np.float64)
    return _influence(names, values, _weights(measurement)) if len(names) == len(values) else None


def of_difference(variant: Measurement, baseline: Measurement) -> Influence | None:
    """Of the mean difference of the items that both have; None where those are of fewer than two units."""
    theirs = dict(zip(baseline.item_ids, baseline.values, strict=True))
    rows = [row for row, item in enumerate(variant.item_ids) if item in theirs]
    ids = variant.cluster_ids or variant.item_ids
    values = np.array([variant.values[row] - theirs[variant.item_ids[row]] for row in rows], dtype=np.float64)
    return _influence([ids[row] for row in rows], values, _weights(variant)[rows])


def _influence(names: Sequence[str], values: Floats, weights: Floats) -> Influence | None:
    numbers: dict[str, int] = {}
    members = [numbers.setdefault(name, len(numbers)) for name in names]
    if len(numbers) < 2 or not np.isfinite(values).all():
        return None
    sums, sizes = np.bincount(members, weights=values * weights), np.bincount(members, weights=weights)
    parts = (sums - sums.sum() / sizes.sum() * sizes) / sizes.sum()
    return Influence(tuple(numbers), tuple(parts.tolist()))


def _weights(measurement: Measurement) -> Floats:
    return np.asarray(measurement.weights or np.ones(len(measurement.values)), dtype=np.float64)
