"""How much each window of a text influences a mean, which shows what the figures of two variants share.

A window that is hard for one variant is usually hard for the next, so their figures rise and fall together. Random
draws must respect that, or differences between variants look less certain than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from harness.core.record import Measurement
from harness.stats.estimate import Floats, Places


@dataclass(frozen=True)
class Influence:
    """The contribution of each independent unit, by name, to the mean's error: (sum − mean · size) / Σ sizes.

    The contributions add up to zero; √(Σ contribution²) is the mean's standard error, up to a small-sample factor.
    """

    units: tuple[str, ...]
    parts: tuple[float, ...]


def of_mean(measurement: Measurement) -> Influence | None:
    """For a measurement's own mean; None if it has fewer than two units."""
    names = measurement.cluster_ids or measurement.item_ids
    values = np.asarray(measurement.values, dtype=np.float64)
    return _influence(names, values, _weights(measurement)) if len(names) == len(values) else None


def of_difference(variant: Measurement, baseline: Measurement) -> Influence | None:
    """For the mean difference of the items that both have; None if those come from fewer than two units."""
    theirs = dict(zip(baseline.item_ids, baseline.values, strict=True))
    rows = [row for row, item in enumerate(variant.item_ids) if item in theirs]
    ids = variant.cluster_ids or variant.item_ids
    values = np.array([variant.values[row] - theirs[variant.item_ids[row]] for row in rows], dtype=np.float64)
    return _influence([ids[row] for row in rows], values, _weights(variant)[rows])


def _influence(names: Sequence[str], values: Floats, weights: Floats) -> Influence | None:
    units, members = _units(tuple(names))
    if len(units) < 2 or not np.isfinite(values).all():
        return None
    sums, sizes = np.bincount(members, weights=values * weights), np.bincount(members, weights=weights)
    parts = (sums - sums.sum() / sizes.sum() * sizes) / sizes.sum()
    return Influence(units, tuple(parts.tolist()))


@lru_cache(maxsize=64)
def _units(names: tuple[str, ...]) -> tuple[tuple[str, ...], Places]:
    """The different names in the order in which they first appear, and each one's number among them."""
    numbers: dict[str, int] = {}
    members = [numbers.setdefault(name, len(numbers)) for name in names]
    return tuple(numbers), np.array(members, dtype=np.intp)


def _weights(measurement: Measurement) -> Floats:
    return np.asarray(measurement.weights or np.ones(len(measurement.values)), dtype=np.float64)
