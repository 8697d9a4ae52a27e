"""Metrics with a value per item, the same items on both sides: perplexity, divergence, agreement, tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import Finding
from harness.analysis.regression.matching import Match, differing, unlike_conditions
from harness.analysis.regression.pending import Gated, Pending, start
from harness.core.record import Measurement
from harness.figures.figure import Figure
from harness.figures.formats import significant
from harness.figures.statistic import Items
from harness.stats.comparison import Better
from harness.stats.estimate import Estimate, exponential
from harness.stats.rule import above_noise_floor, compare


def paired(match: Match, asked: Gated, alpha: float) -> Iterator[Finding | Pending]:
    """One finding if either side has a figure of this gate's metric."""
    items = items_of(asked.figure)
    base = measured(match.base, items)
    if base is None:
        yield from _head_alone(match, asked)
        return
    blank = start(match, asked, items.where(match.base.spec, base), items.unit_of(base), in_logarithms(asked, base))
    blank = replace(blank, base=items.estimate(base).value)
    head = _like(match.head, base)
    if head is None:
        yield replace(blank, reasons=("HEAD does not measure it",))
        return
    blank = replace(blank, head=blank.base if head is base else items.estimate(head).value)
    bars = (*match.bars, *unlike(base, head))
    if bars:
        yield replace(blank, reasons=bars)
    elif same(base, head):
        why = "the same run on both sides" if match.same_runs else "every value is bit for bit the same"
        yield replace(blank, verdict="unchanged", n=len(base.values), units="values", reasons=(why,))
    elif match.differs_by_rounding and base.unit.startswith("nat"):
        yield _measured_again(asked, blank, base, head)
    elif base.evidence != "paired":
        yield replace(blank, verdict="inconclusive", reasons=("one figure of all questions: no test is valid",))
    else:
        yield _compared(match, asked, blank, base, head, alpha)


def _head_alone(match: Match, asked: Gated) -> Iterator[Finding]:
    """Measured by HEAD but not by BASE, and so not compared: not a pass."""
    items = items_of(asked.figure)
    head = measured(match.head, items)
    if head is not None:
        blank = start(match, asked, items.where(match.head.spec, head), items.unit_of(head), in_logarithms(asked, head))
        yield replace(blank, head=items.estimate(head).value, reasons=("BASE does not measure it",))


def unlike(base: Measurement, head: Measurement) -> tuple[str, ...]:
    """The fields that make two measurements incomparable."""
    items = ("item ids", _items(base, head), _items(head, base))
    return (*unlike_conditions(base, head), *differing([items]))


def same(base: Measurement, head: Measurement) -> bool:
    """Whether all values are equal, in a unit in which equal values mean equal models.

    Answers that are right or wrong may all be equal by chance.
    """
    return base.unit.startswith("nat") and (
        base is head
        or (base.values == head.values and base.item_ids == head.item_ids)
        or _by_item(base) == _by_item(head)
    )


def _measured_again(asked: Gated, blank: Finding, base: Measurement, head: Measurement) -> Finding:
    """The same items by the same software: no sample, so that no test is needed to say that the figures differ."""
    effect = head.mean - base.mean
    worse = (effect > 0) == (base.direction == "lower")
    change = exponential(effect) - 1 if blank.relative else effect
    theirs, ours = _by_item(base), _by_item(head)
    gaps = [abs(ours[item] - value) for item, value in theirs.items() if ours[item] != value]
    largest = significant(max(gaps, default=0.0), 2)
    return replace(
        blank,
        verdict="unchanged" if abs(effect) <= _margin(asked, blank) else "regressed" if worse else "improved",
        change=Estimate(change, change, change, len(theirs), "exact") if math.isfinite(change) else None,
        test="exact",
        n=len(theirs),
        units="values",
        reasons=(
            "the same items by the same software on the same class of machine are no sample, and "
            f"{len(gaps)} of {len(theirs)} values differ, by up to {largest} {base.unit}",
        ),
    )


def _margin(asked: Gated, blank: Finding) -> float:
    """The change that does not matter, in the terms of the items: logarithms, if the change is relative."""
    if blank.relative:
        return math.log1p(asked.threshold)
    return asked.threshold * abs(blank.base or 0.0) if asked.relative else asked.threshold


def _compared(
    match: Match, asked: Gated, blank: Finding, base: Measurement, head: Measurement, alpha: float
) -> Finding | Pending:
    margin = _margin(asked, blank)
    better: Better = "higher" if base.direction == "higher" else "lower"
    try:
        found = (
            above_noise_floor(head, base, margin, alpha)
            if _one_is_lossless(base, head)
            else compare(head, base, margin, better, alpha)
        )
    except ValueError as error:
        return replace(blank, reasons=(str(error),))
    return Pending(blank, found, match.one_machine)


def _one_is_lossless(base: Measurement, head: Measurement) -> bool:
    """A divergence that was zero throughout and no longer is, or the reverse: certainly real, if it is large enough."""
    return "kl" in base.metric.split("_") and any(base.values) != any(head.values)


def items_of(figure: Figure[Any]) -> Items:
    assert isinstance(figure.statistic, Items)
    return figure.statistic


def in_logarithms(asked: Gated, measurement: Measurement) -> bool:
    """Whether items are logarithms: their difference is then a ratio of figures, and the threshold is relative."""
    gate = asked.figure.gate
    return measurement.unit.startswith("nat") and gate is not None and gate.share


def measured(case: Case, items: Items) -> Measurement | None:
    """The one measurement that represents a case."""
    return items.choose(case.found(items.metric))


def _like(case: Case, base: Measurement) -> Measurement | None:
    """HEAD's measurement of the same thing: for a task, the same score under the same filter."""
    keys = ("task", "score", "filter")
    return next(
        (
            found
            for found in case.found(base.metric)
            if all(found.protocol.get(key) == base.protocol.get(key) for key in keys)
        ),
        None,
    )


def _items(one: Measurement, other: Measurement) -> str:
    """Items that only one side has."""
    if one.item_ids == other.item_ids:
        return "all shared"
    theirs = set(other.item_ids)
    alone = [item for item in one.item_ids if item not in theirs]
    return f"{len(alone)} of {len(one.item_ids)} only here, such as {alone[0]!r}" if alone else "all shared"


def _by_item(measurement: Measurement) -> dict[str, float]:
    ids = measurement.item_ids or tuple(map(str, range(len(measurement.values))))
    return dict(zip(ids, measurement.values, strict=True))
