"""Two measurements, item by item: differences, summed over what is independent.

What makes an item hard cancels out of a difference, so that a change is seen that an unpaired comparison would
drown. Items that hang together (windows of a document, questions about a passage) are one unit of evidence:
Miller, "Adding Error Bars to Evals", arXiv:2411.00640.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.record import Measurement
from harness.spec import Scalar

Floats = npt.NDArray[np.float64]
Unit = Literal["items", "clusters", "documents", "windows"]


@dataclass(frozen=True)
class Pairs:
    """Differences, variant − baseline, of the items that both sides have.

    Of each independent unit ``sums`` holds Σ weight · difference and ``sizes`` Σ weight, both (n,); the effect is
    Σ sums / Σ sizes. ``unit`` names what a unit is. Windows of one running text stand in their order, and
    neighbours may depend on one another. ``binary``: each unit is one item, of equal weight, that is right (1) or
    wrong (0). ``bounded``: all values lie between 0 and 1, and equal ones do not show that the models are equal.
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
    """How many of ``n`` questions the baseline had right and the variant wrong, and the reverse."""

    right_to_wrong: int
    wrong_to_right: int
    n: int


def pair(variant: Measurement, baseline: Measurement) -> Pairs:
    """Pairs by item id; items that only one side has are left out and counted.

    Raises ValueError where the two do not measure the same thing, where no item is common to both, or where values
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
    if not np.array_equal(members, _units(baseline, theirs)[1]):
        raise ValueError(f"{variant.metric}: an item belongs to another cluster on the other side")
    bounded = not variant.unit.startswith("nat") and all(np.min(side) >= 0 and np.max(side) <= 1 for side in values)
    whole = all(np.isin(side, (0.0, 1.0)).all() for side in values) and bool(np.ptp(weights[0]) == 0)
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

    Raises ValueError as ``pair`` does, and where a score is neither 0 nor 1.
    """
    refuse_unlike(variant, baseline)
    ours, theirs = _common(variant.item_ids, baseline.item_ids)
    now, then = _column(variant.values, ours), _column(baseline.values, theirs)
    if not (np.isin(now, (0.0, 1.0)).all() and np.isin(then, (0.0, 1.0)).all()):
        raise ValueError(f"{variant.metric}: flips are counted of scores that are 0 or 1 only")
    return Flips(int(np.sum(now < then)), int(np.sum(now > then)), len(ours))


def refuse_unlike(one: Measurement, other: Measurement) -> None:
    """Raises ValueError, naming what differs, where values of the two must not be subtracted from one another."""
    for name in ("metric", "version", "unit"):
        if getattr(one, name) != getattr(other, name):
            raise ValueError(f"{name} differs: {getattr(one, name)} and {getattr(other, name)}")
    for side in (one, other):
        if side.evidence != "paired" or len(side.item_ids) != len(side.values) or not side.values:
            raise ValueError(f"{side.metric}: only values that each belong to an item can be paired")
        if len(set(side.item_ids)) != len(side.item_ids):
            raise ValueError(f"{side.metric}: two values belong to one item")
    keys = one.protocol.keys() | other.protocol.keys()
    refuse_protocols(one.protocol, other.protocol, sorted(keys), one.metric)


def refuse_protocols(one: Mapping[str, Scalar], other: Mapping[str, Scalar], keys: Sequence[str], metric: str) -> None:
    """Raises ValueError, naming them, where the two protocols differ in any of ``keys``."""
    unlike = [f"{key} {one.get(key)!r} and {other.get(key)!r}" for key in keys if one.get(key) != other.get(key)]
    if unlike:
        raise ValueError(f"{metric}: measured by two protocols: {'; '.join(unlike)}")


def _common(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[int], list[int]]:
    """Positions of the common items on both sides."""
    where = {item: position for position, item in enumerate(theirs)}
    rows = [(position, where[item]) for position, item in enumerate(ours) if item in where]
    if not rows:
        raise ValueError("no item is common to the variant and the baseline")
    mine, others = zip(*rows, strict=True)
    return list(mine), list(others)


def _column(values: Sequence[float], rows: Sequence[int], ones: int = 0) -> Floats:
    """The values at ``rows``; where there are none, ``ones`` times 1."""
    return np.asarray(values, dtype=np.float64)[rows] if values else np.ones(ones)


def _totals(members: npt.NDArray[np.intp], values: Floats) -> Floats:
    return np.asarray(np.bincount(members, weights=values), dtype=np.float64)


def _units(measurement: Measurement, rows: Sequence[int]) -> tuple[Unit, npt.NDArray[np.intp]]:
    """What is independent, and to which unit each row belongs; windows are numbered in the order of the text.

    Text that was cut into windows is one running text unless its protocol counts several documents.
    """
    items = [measurement.item_ids[row] for row in rows]
    documents = measurement.protocol.get("documents") or 1
    if "stride" in measurement.protocol and documents == 1:
        return "windows", _numbered([item.partition(":")[0] for item in items])
    members = _numbered([measurement.cluster_ids[row] for row in rows] if measurement.cluster_ids else items)
    if "stride" in measurement.protocol:
        return "documents", members
    return ("items" if members.max() + 1 == len(items) else "clusters"), members


def _numbered(names: Sequence[str]) -> npt.NDArray[np.intp]:
    """The names as numbers from 0, whole numbers in their order and before all else."""
    order = sorted(set(names), key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
    rank = {name: position for position, name in enumerate(order)}
    return np.asarray([rank[name] for name in names], dtype=np.intp)
