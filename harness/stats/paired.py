"""Two measurements compared item by item: differences, summed over independent units.

The difficulty of an item cancels out of a difference, so pairing reveals changes that an unpaired comparison would
miss. Related items (windows of a document, questions about a passage) are one unit of evidence:
Miller, "Adding Error Bars to Evals", arXiv:2411.00640.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from harness.core.identity import Scalar
from harness.core.record import Measurement
from harness.stats.estimate import Floats, Places, numbered

Unit = Literal["items", "clusters", "documents", "windows"]


@dataclass(frozen=True)
class Pairs:
    """Differences, variant − baseline, of the items that both sides have.

    For each independent unit, ``sums`` holds Σ weight · difference and ``sizes`` Σ weight, both (n,); the effect is
    Σ sums / Σ sizes. ``unit`` names what a unit is. Windows of one running text are in text order, and neighbours may
    depend on one another. ``binary``: each unit is one item of equal weight that is right (1) or wrong (0).
    ``bounded``: all values lie between 0 and 1, and equal values do not show that the models are equal.
    """

    sums: Floats
    sizes: Floats
    unit: Unit
    items: int
    left_out: int
    binary: bool
    bounded: bool

    @property
    def effect(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())


@dataclass(frozen=True)
class Flips:
    """How many of ``n`` questions the baseline got right and the variant wrong, and the reverse."""

    right_to_wrong: int
    wrong_to_right: int
    n: int


def pair(variant: Measurement, baseline: Measurement) -> Pairs:
    """Pairs by item id; items that only one side has are left out and counted.

    Raises ValueError if the two do not measure the same thing, if they have no item in common, or if values
    are not finite.
    """
    refuse_unlike(variant, baseline)
    ours, theirs = _common(variant.item_ids, baseline.item_ids)
    values = [_column(side.values, rows) for side, rows in ((variant, ours), (baseline, theirs))]
    if not all(np.isfinite(column).all() for column in values):
        raise ValueError(f"{variant.metric}: a value is not finite")
    weights = [_column(side.weights, rows, len(ours)) for side, rows in ((variant, ours), (baseline, theirs))]
    if not np.array_equal(weights[0], weights[1]) or weights[0].min() <= 0:
        raise ValueError(f"{variant.metric}: an item must weigh the same on both sides, and more than nothing")
    unit, members = _units(variant, ours)
    if _clusters(variant, ours) != _clusters(baseline, theirs):
        raise ValueError(f"{variant.metric}: an item belongs to another cluster on the other side")
    bounded = not variant.unit.startswith("nat") and all(np.min(side) >= 0 and np.max(side) <= 1 for side in values)
    whole = all(_zeros_and_ones(side) for side in values) and bool(np.ptp(weights[0]) == 0)
    return Pairs(
        sums=_totals(members, weights[0] * (values[0] - values[1])),
        sizes=_totals(members, weights[0]),
        unit=unit,
        items=len(ours),
        left_out=len(variant.item_ids) + len(baseline.item_ids) - 2 * len(ours),
        binary=bounded and whole and unit == "items",
        bounded=bounded,
    )


def flips(variant: Measurement, baseline: Measurement) -> Flips:
    """Right → wrong and wrong → right, over the questions that both answered.

    Raises ValueError as ``pair`` does, and if a score is neither 0 nor 1.
    """
    refuse_unlike(variant, baseline)
    ours, theirs = _common(variant.item_ids, baseline.item_ids)
    now, then = _column(variant.values, ours), _column(baseline.values, theirs)
    if not (_zeros_and_ones(now) and _zeros_and_ones(then)):
        raise ValueError(f"{variant.metric}: flips are counted of scores that are 0 or 1 only")
    return Flips(int(np.sum(now < then)), int(np.sum(now > then)), len(ours))


def refuse_unlike(one: Measurement, other: Measurement) -> None:
    """Raises ValueError, naming the differences, if values of the two must not be subtracted from one another."""
    for name in ("metric", "version", "unit"):
        if getattr(one, name) != getattr(other, name):
            raise ValueError(f"{name} differs: {getattr(one, name)} and {getattr(other, name)}")
    for side in (one, other):
        if side.evidence != "paired" or len(side.item_ids) != len(side.values) or not side.values:
            raise ValueError(f"{side.metric}: only values that each belong to an item can be paired")
        if not _distinct(tuple(side.item_ids)):
            raise ValueError(f"{side.metric}: two values belong to one item")
    keys = one.protocol.keys() | other.protocol.keys()
    refuse_protocols(one.protocol, other.protocol, sorted(keys), one.metric)


def refuse_protocols(one: Mapping[str, Scalar], other: Mapping[str, Scalar], keys: Sequence[str], metric: str) -> None:
    """Raises ValueError, naming the differences, if the two protocols differ in any of ``keys``."""
    unlike = [f"{key} {one.get(key)!r} and {other.get(key)!r}" for key in keys if one.get(key) != other.get(key)]
    if unlike:
        raise ValueError(f"{metric}: measured by two protocols: {'; '.join(unlike)}")


def _zeros_and_ones(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())


# The measurements of a sweep mostly have the same items and clusters: what follows from them is kept.


@lru_cache(maxsize=64)
def _distinct(names: tuple[str, ...]) -> bool:
    return len(set(names)) == len(names)


def _common(ours: Sequence[str], theirs: Sequence[str]) -> tuple[Places, Places]:
    """Positions of the common items on both sides."""
    return _common_of(tuple(ours), tuple(theirs))


@lru_cache(maxsize=64)
def _common_of(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[Places, Places]:
    if ours == theirs:
        return np.arange(len(ours)), np.arange(len(ours))
    where = {item: position for position, item in enumerate(theirs)}
    rows = [(position, where[item]) for position, item in enumerate(ours) if item in where]
    if not rows:
        raise ValueError("no item is common to the variant and the baseline")
    mine, others = zip(*rows, strict=True)
    return np.asarray(mine), np.asarray(others)


def _column(values: Sequence[float], rows: Places, ones: int = 0) -> Floats:
    """The values at ``rows``; without values, ``ones`` times 1."""
    return np.asarray(values, dtype=np.float64)[rows] if values else np.ones(ones)


def _totals(members: Places, values: Floats) -> Floats:
    return np.asarray(np.bincount(members, weights=values), dtype=np.float64)


def _units(measurement: Measurement, rows: Places) -> tuple[Unit, Places]:
    """The names of the independent units, and to which unit each row belongs; windows are numbered in text order.

    Text that was cut into windows is one running text unless its protocol counts several documents.
    """
    text = "stride" in measurement.protocol
    items = _picked(measurement.item_ids, rows)
    if text and (measurement.protocol.get("documents") or 1) == 1:
        return "windows", _windows(items)
    count, members = numbered(_clusters(measurement, rows) or items)
    if text:
        return "documents", members
    return ("items" if count == len(items) else "clusters"), members


def _clusters(measurement: Measurement, rows: Places) -> tuple[str, ...]:
    return _picked(measurement.cluster_ids, rows) if measurement.cluster_ids else ()


def _picked(names: Sequence[str], rows: Places) -> tuple[str, ...]:
    if np.array_equal(rows, np.arange(len(names))):
        return tuple(names)
    known = tuple(names)  # read once: a lazy column is read for every use
    return tuple(known[row] for row in rows)


@lru_cache(maxsize=64)
def _windows(items: tuple[str, ...]) -> Places:
    """To which window each item belongs, by the windows' order in the text."""
    return np.unique([_window(item) for item in items], return_inverse=True)[1]


def _window(item: str) -> int:
    try:
        return int(item.partition(":")[0])
    except ValueError:
        raise ValueError(f"item {item!r} of a text does not begin with the number of its window") from None
