"""The answer to a query: each variant checked against each limit, in order, and how certain the answer is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from harness.analysis.query import Limit, Query
from harness.analysis.ties import SURE, Tie
from harness.core.label import LabelCode
from harness.core.record import Damaged, Status
from harness.figures.ask import Reading, Use
from harness.figures.derived.plausibility import Implausibility
from harness.figures.table import Table, VariantRow

Standing = Literal["met", "probably met", "probably missed", "missed", "not measured"]


@dataclass(frozen=True)
class Check:
    """One limit and a variant's reading for it."""

    limit: Limit
    reading: Reading

    @cached_property
    def standing(self) -> Standing:
        """Certainly met or missed if the whole interval is on one side; without an interval never certain."""
        estimate = self.reading.estimate
        if estimate is None:
            return "not measured"
        met = self._keeps(estimate.value)
        if self.reading.bounded and self._keeps(estimate.low or 0) == self._keeps(estimate.high or 0) == met:
            return "met" if met else "missed"
        return "probably met" if met else "probably missed"

    @property
    def holds(self) -> bool:
        return self.standing in ("met", "probably met")

    @property
    def factor(self) -> float:
        """The factor, above 1, by which a figure misses its limit; 1 if it meets it, infinite if undefined."""
        if self.holds:
            return 1.0
        estimate = self.reading.estimate
        sides = (estimate.value, self.limit.bound) if estimate else (0.0, 0.0)
        return max(sides) / min(sides) if min(sides) > 0 else math.inf

    def _keeps(self, value: float) -> bool:
        lower = self.limit.figure.direction == "lower"
        return value <= self.limit.bound if lower else value >= self.limit.bound


@dataclass(frozen=True)
class Bar:
    """Why no figure could admit a variant: the code of the status or label, and the reason in words."""

    code: Status | LabelCode
    sentence: str


@dataclass(frozen=True)
class Candidate:
    """A variant judged by a query. ``barred`` says why no figure could admit it; ``objective`` orders the variants.

    ``pick_probability`` is the share of draws in which it would be the first; None if it could not be drawn.
    """

    row: VariantRow
    checks: tuple[Check, ...]
    objective: Reading
    barred: Bar | None = None
    pick_probability: float | None = None

    @cached_property
    def admissible(self) -> bool:
        return self.barred is None and self.objective.estimate is not None and all(each.holds for each in self.checks)

    @property
    def certain(self) -> bool:
        """Whether every limit is met by the whole interval."""
        return self.admissible and all(each.standing == "met" for each in self.checks)

    @cached_property
    def evaluated(self) -> bool:
        """Whether everything that the query needs was measured."""
        readings = [self.objective, *(each.reading for each in self.checks)]
        return self.barred is None and all(reading.estimate for reading in readings)

    @property
    def open(self) -> bool:
        """Whether it misses none of the limits whose figures are known, and some figures are unknown."""
        known = [each for each in self.checks if each.reading.estimate]
        return self.barred is None and not self.evaluated and all(each.holds for each in known)

    @property
    def missed(self) -> tuple[Check, ...]:
        return tuple(each for each in self.checks if not each.holds)


def doubts(table: Table, query: Query) -> tuple[Implausibility, ...]:
    """Why no answer can be trusted: the limits or the objective are relative to an implausible baseline."""
    of_quality = any(figure.ask and figure.ask.of_quality for figure in query.figures)
    return table.implausible if of_quality else ()


@dataclass(frozen=True)
class Recommendation:
    """The answer to a query about one table. ``admissible`` are best first, ``rejected`` nearest first.

    ``none_probability`` is the share of the ``draws`` in which no variant meets all limits, ``lead`` that in which the
    first is better than the second by the objective alone. ``ties`` are the variants that the objective cannot
    distinguish from the pick, and what decided between them. If the query is about quality relative to an implausible
    baseline, there is no pick: the candidates are listed in order, but none is recommended. ``damaged`` are attempts
    that are not as they were written; a record left out may be of a better variant.
    """

    table: Table
    query: Query
    use: Use
    admissible: tuple[Candidate, ...]
    rejected: tuple[Candidate, ...]
    draws: int
    none_probability: float
    lead: float | None
    ties: tuple[Tie, ...] = ()
    damaged: tuple[Damaged, ...] = ()

    @property
    def untrusted(self) -> tuple[Implausibility, ...]:
        """Why no answer can be trusted: the limits or the objective are relative to an implausible baseline."""
        return doubts(self.table, self.query)

    @property
    def missing(self) -> tuple[Damaged, ...]:
        """The records that could not be read."""
        return tuple(each for each in self.damaged if not each.log_only)

    @property
    def pick(self) -> Candidate | None:
        return None if self.untrusted else next(iter(self.admissible), None)

    @property
    def certain_pick(self) -> Candidate | None:
        """The first that meets every limit with its whole interval."""
        return None if self.untrusted else next((each for each in self.admissible if each.certain), None)

    @property
    def holds(self) -> bool:
        """Whether the pick certainly meets its limits and would be picked again.

        If it was chosen by a figure without an interval, nothing is known about the next time. Tie-breakers must be
        certain as well, and no record may be missing.
        """
        pick = self.pick
        if pick is None or self.missing or not pick.certain or not pick.objective.bounded:
            return False
        if not all(tie.sure for tie in self.ties):
            return False
        return pick.pick_probability is not None and pick.pick_probability >= SURE

    @property
    def nearest(self) -> Candidate | None:
        """If none is admissible: the one with the smallest product of the factors by which it misses its limits."""
        possible = [each for each in self.rejected if each.evaluated]
        return next(iter(possible), None) if not (self.admissible or self.untrusted) else None

    @property
    def binding(self) -> tuple[Limit, ...]:
        """If none is admissible: each limit whose removal alone would admit a variant."""
        if self.admissible or self.untrusted:
            return ()
        lone = [each.missed[0].limit for each in self.rejected if each.evaluated and len(each.missed) == 1]
        return tuple(limit for limit in self.query.limits if limit in lone)

    @property
    def unmeasured(self) -> bool:
        """Whether none is admissible, but one might be if everything had been measured."""
        return not self.admissible and any(each.open for each in self.rejected)

    @property
    def unknown(self) -> bool:
        """Whether there is no answer, neither a pick nor a rejection of all."""
        return self.unmeasured or bool(self.untrusted) or (not self.admissible and bool(self.missing))
