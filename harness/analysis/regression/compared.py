"""What two matched cases give by themselves, whatever else is compared: it follows from their records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.analysis.kept import KeptEntries
from harness.analysis.regression.cases import Case
from harness.analysis.regression.exact import count, exact
from harness.analysis.regression.findings import Finding
from harness.analysis.regression.matching import Match
from harness.analysis.regression.paired import paired, same
from harness.analysis.regression.pending import Gated, Pending, start
from harness.analysis.regression.processes import processes
from harness.core.column import LazyColumn
from harness.core.exact_text import as_text, builder
from harness.core.record import Outcome
from harness.figures.figure import Figure
from harness.figures.statistic import Count, Items, PerProcess
from harness.stats.repeats import FEW_VALUES


@dataclass(frozen=True)
class Draft:
    """A finding of a gate, or one that waits for its test; neither for a count that is not finite, which has another.

    ``sides``: for a figure that all runs of a variant share, how many sides know it: it is taken from one match, that
    in which most know it. 0 for one that each match has.
    """

    metric: str
    finding: Finding | None
    pending: Pending | None = None
    sides: int = 0


@dataclass(frozen=True)
class Compared:
    """``identical``: whether all likelihoods are equal, bit for bit; None if there are none to compare."""

    drafts: tuple[Draft, ...]
    identical: bool | None


def compared(match: Match, asked: Sequence[Gated], alpha: float, about: str, kept: KeptEntries) -> Compared:
    """``about`` names the gates and the level, for what is kept."""
    key = kept.key(about, match.base.runs, match.head.runs)
    found: Compared = kept.take(key, lambda: _compared(match, asked, alpha), as_text, _read)
    return found


def of_the_variant(figure: Figure[Any]) -> bool:
    """Whether it is a count that is the same in every run of a variant, so that it is taken once."""
    return isinstance(figure.statistic, Count) and not figure.statistic.each_run


def _compared(match: Match, asked: Sequence[Gated], alpha: float) -> Compared:
    drafts = (_draft(each.name, found, sides) for each in asked for found, sides in _found(match, each, alpha))
    return Compared(tuple(drafts), _identical(match))


def _draft(metric: str, found: Finding | Pending | None, sides: int) -> Draft:
    return Draft(metric, None, found, sides) if isinstance(found, Pending) else Draft(metric, found, None, sides)


def _found(match: Match, asked: Gated, alpha: float) -> Iterator[tuple[Finding | Pending | None, int]]:
    """What a gate finds, and of a figure that all runs of a variant share, how many sides know it."""
    doubtful = _not_finite(match, asked)
    if doubtful is not None:
        yield doubtful, 0
    if of_the_variant(asked.figure):
        sides = sum(count(case, asked.figure) is not None for case in (match.base, match.head))
        if sides:
            yield None if doubtful else next(exact(match, asked)), sides
    elif doubtful is None:
        yield from ((each, 0) for each in _of_one(match, asked, alpha))


def _of_one(match: Match, asked: Gated, alpha: float) -> Iterator[Finding | Pending]:
    if isinstance(asked.figure.statistic, Items):
        return paired(match, asked, alpha)
    if isinstance(asked.figure.statistic, PerProcess):
        return processes(match, asked, alpha)
    return exact(match, asked)


def _identical(match: Match) -> bool | None:
    if match.bars or not (match.base.measured and match.head.measured):
        return None
    pairs = list(zip(match.base.found("nll"), match.head.found("nll"), strict=False))
    return all(same(theirs, ours) for theirs, ours in pairs) if pairs else None


def _not_finite(one: Match, asked: Gated) -> Finding | None:
    """The finding if a figure of this gate is NaN or infinite: otherwise it would seem to pass any threshold."""
    sides = [name for name, case in (("BASE", one.base), ("HEAD", one.head)) if _doubtful(case, asked)]
    if not sides:
        return None
    why = f"{' and '.join(sides)} measured NaN or infinity"
    return replace(start(one, asked, "", "", False), reasons=(why,))


def _doubtful(case: Case, asked: Gated) -> bool:
    statistic = asked.figure.statistic
    metrics = statistic.metrics if statistic else ()
    return not all(_is_finite(run.outcome, metric) for run in case.measured for metric in metrics)


def _is_finite(outcome: Outcome, metric: str) -> bool:
    """Whether all values of a metric are; asked once, because a run may be on both sides and have several gates."""
    found = outcome.measured(metric)
    return outcome.remember(
        ("finite", metric), lambda: all(_all_finite(m.values) and _all_finite(m.weights) for m in found)
    )


def _all_finite(values: Sequence[float]) -> bool:
    if isinstance(values, LazyColumn):
        return True  # the reader of the evidence checked them
    if len(values) <= FEW_VALUES:
        return all(map(math.isfinite, values))
    return bool(np.isfinite(np.asarray(values, dtype=np.float64)).all())


def _read(text: str) -> Compared:
    found: Compared = builder(Compared)(json.loads(text))
    return found
