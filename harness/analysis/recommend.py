"""Which variant to ship: those that meet a query's limits, best first, and why the others were rejected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.analysis.choice import Bar, Candidate, Check, Recommendation, doubts
from harness.analysis.query import Limit, Query, default_limits
from harness.analysis.summaries import Summaries
from harness.analysis.ties import Likeness, Order, order_by
from harness.core.exact_text import as_text, builder
from harness.core.record import Damaged
from harness.errors import UsageError
from harness.figures.ask import Reading, Use
from harness.figures.table import GridPoint, Table, VariantRow
from harness.stats.draws import Sampler, draws_for
from harness.stats.estimate import Floats

T = TypeVar("T")


def recommend(
    tables: Sequence[Table],
    query: Query,
    damaged: Sequence[Damaged] = (),
    summaries: Summaries | None = None,
) -> tuple[Recommendation, ...]:
    """The pick of each table of some records.

    Without any limit, ``default_limits`` apply. Raises UsageError if there is no table, as no record measures a
    variant, and for a point or a load that no table has, and for a level that several loads of a table have.
    """
    if not tables:
        raise UsageError("these results hold no run of a variant: there is nothing to choose from")
    _refuse_unknown_point(tables, query.at)
    _require_one_load(tables, query.level)
    return tuple(
        pick(table, query if query.limits else replace(query, limits=default_limits(table)), damaged, summaries)
        for table in tables
    )


def pick(
    table: Table, query: Query, damaged: Sequence[Damaged] = (), summaries: Summaries | None = None
) -> Recommendation:
    """The answer to a query about one table; the unquantized baseline is a candidate as well.

    How the rows rank is taken from the ``summaries`` if the same was asked of the same rows before.
    """
    use = use_of(table, query)
    judged, order = _judged_rows(table, query, use)
    found = _take(summaries, _asked(query, use), table, lambda: _ranking(judged, order, query), _read_ranking)
    whole = [replace(each, pick_probability=found.picked.get(index)) for index, each in enumerate(judged)]
    in_order = [whole[index] for index in found.in_order]
    return Recommendation(
        table,
        query,
        use,
        admissible=tuple(whole[index] for index in found.admissible),
        rejected=tuple(sorted((each for each in in_order if not each.admissible), key=_distance)),
        draws=found.draws,
        none_probability=found.none,
        lead=found.lead,
        ties=order.ties(found.admissible),
        damaged=tuple(damaged),
    )


@dataclass(frozen=True)
class _Ranking:
    """Places in the table, best first: of the admissible rows and of all; and what the draws gave.

    ``picked`` holds the probability of each candidate that could be drawn, by its place.
    """

    admissible: tuple[int, ...]
    in_order: tuple[int, ...]
    draws: int
    picked: Mapping[int, float] = field(default_factory=dict)
    none: float = 1.0
    lead: float | None = None


_read_ranking: Callable[[Any], _Ranking] = builder(_Ranking)


def _asked(query: Query, use: Use) -> str:
    """What a ranking depends on besides the rows. The recipe's budget is a limit by then."""
    limits = [[each.figure.name, each.bound] for each in query.limits]
    of_table = [use.table.price, [each.code for each in use.table.labels], use.point, use.batch, use.tokens, use.level]
    return as_text(["ranking", query.objective.name, limits, query.allow_labelled, of_table])


def _ranking(judged: Sequence[Candidate], order: Order, query: Query) -> _Ranking:
    admissible, in_order = order.sorted(_admissible(judged)), order.sorted(range(len(judged)))
    return _draw(judged, in_order, admissible, order.objective, query)


@dataclass(frozen=True)
class Leader:
    """The best variant of a table by one figure, or the baseline if no variant is better than that.

    ``rivals`` may be as good: the best of them, ``more`` others are not named.
    """

    row: VariantRow
    rivals: tuple[VariantRow, ...]
    more: int


NAMED_RIVALS = 2


@dataclass(frozen=True)
class _Leading:
    """A leader by its place in the table; ``first`` is None if there is none."""

    first: int | None = None
    rivals: tuple[int, ...] = ()
    more: int = 0


_read_leading: Callable[[Any], _Leading] = builder(_Leading)


def leader(table: Table, query: Query, summaries: Summaries | None = None) -> Leader | None:
    """The leader of the variants that certainly meet all limits; None if there are none, or quality is not known."""
    if doubts(table, query):
        return None
    use = use_of(table, query)
    about = f"leader {_asked(query, use)}"
    found = _take(summaries, about, table, lambda: _leading(table, query, use), _read_leading)
    if found.first is None:
        return None
    return Leader(table.rows[found.first], tuple(table.rows[each] for each in found.rivals), found.more)


def _leading(table: Table, query: Query, use: Use) -> _Leading:
    """The baseline takes part unless the objective is relative to it. A control does not: it is a reference too."""
    judged, order = _judged_rows(table, query, use)
    objective, rows = order.objective, table.rows
    certain = [index for index, each in enumerate(judged) if each.certain and not rows[index].is_control]
    variants = [index for index in certain if not rows[index].is_baseline]
    if not variants:
        return _Leading()
    of_quality = query.objective.ask is not None and query.objective.ask.of_quality
    baselines = [] if of_quality else [index for index in certain if rows[index].is_baseline]
    to_beat = min(map(objective.cost, baselines), default=math.inf)
    first = next(order.ranked([index for index in variants if objective.cost(index) < to_beat] or baselines))
    rivals = objective.rivals(first, [index for index in (*variants, *baselines) if index != first])
    return _Leading(first, tuple(rivals[:NAMED_RIVALS]), max(len(rivals) - NAMED_RIVALS, 0))


def _take(summaries: Summaries | None, about: str, table: Table, make: Callable[[], T], read: Callable[[Any], T]) -> T:
    """What ``make`` derives from the rows of a table and ``about``, or the same as it was kept.

    Rows that nothing else distinguishes are in the order of their labels, which depend on all variants of a report.
    """
    labels = as_text([row.label for row in table.rows])
    return (summaries or Summaries({}, {})).of_rows(f"{about} {labels}", table.rows, make, read)


def _judged_rows(table: Table, query: Query, use: Use) -> tuple[list[Candidate], Order]:
    """Each row of a table as a candidate, and the order in which the query would list them."""
    judged = [_judged(row, query, use) for row in table.rows]
    return judged, order_by(query.objective, table.rows, use, draws_for(len(judged)))


def _admissible(judged: Sequence[Candidate]) -> list[int]:
    return [index for index, each in enumerate(judged) if each.admissible]


def _judged(row: VariantRow, query: Query, use: Use) -> Candidate:
    checks = tuple(Check(limit, limit.figure.read(row, use)) for limit in query.limits)
    return Candidate(row, checks, query.objective.read(row, use), _barred(row, query, use.table))


def _barred(row: VariantRow, query: Query, table: Table) -> Bar | None:
    if row.status != "ok" and not (row.status == "invalid" and query.allow_labelled):
        return Bar(row.status, f"{row.status.replace('_', ' ')}: {row.reason or 'no reason recorded'}")
    if query.allow_labelled or row.is_baseline:
        return None
    labels = (*row.labels, *table.labels)
    return next((Bar(label.code, label.sentence) for label in labels if label.code == "leaked"), None)


def _distance(candidate: Candidate) -> tuple[bool, bool, float]:
    """Candidates that could be judged come first, by the product of the factors by which they miss limits."""
    product = math.prod(each.factor for each in candidate.checks)
    return candidate.barred is not None, not candidate.evaluated, product


def _draw(
    judged: Sequence[Candidate], in_order: Sequence[int], admissible: Sequence[int], objective: Likeness, query: Query
) -> _Ranking:
    """Picks repeatedly from randomly drawn figures; among equals, the first in order is picked.

    Each figure of a variant is drawn once, even if the query names it several times.
    """
    places = [index for index in in_order if judged[index].evaluated]
    draws = draws_for(len(places))
    found = _Ranking(tuple(admissible), tuple(in_order), draws)
    if not places:
        return found
    chosen = [judged[index] for index in places]
    sampler = Sampler(draws)
    columns: dict[str, Floats] = {query.objective.name: _columns(sampler, [each.objective for each in chosen])}
    kept = np.ones((draws, len(places)), dtype=bool)
    for number, limit in enumerate(query.limits):
        name = limit.figure.name
        if name not in columns:
            columns[name] = _columns(sampler, [each.checks[number].reading for each in chosen])
        kept &= _kept(columns[name], limit)
    sign = 1 if query.objective.direction == "lower" else -1
    objectives = columns[query.objective.name]
    costs = np.where(kept, sign * objectives, math.inf)
    nobody = ~kept.any(axis=1)
    picked = _first_of_equals(costs.argmin(axis=1), kept, places, objective)
    firsts = np.bincount(picked[~nobody], minlength=len(places)) / draws
    lead = None
    rivals = [places.index(index) for index in admissible[:2]]
    if len(rivals) == 2:
        first, second = (sign * objectives[:, rival] for rival in rivals)
        lead = float((first < second).mean())
    shares = dict(zip(places, firsts.tolist(), strict=True))
    return replace(found, picked=shares, none=float(nobody.mean()), lead=lead)


def _first_of_equals(
    best: npt.NDArray[np.intp], kept: npt.NDArray[np.bool_], places: Sequence[int], objective: Likeness
) -> npt.NDArray[np.intp]:
    """For each draw, the first in order that meets all limits and that the objective cannot tell from the best."""
    picked = best.copy()
    where = {index: place for place, index in enumerate(places)}
    for leader in np.unique(best):
        equal = np.array([where[index] for index in objective.alike(places[leader], places)])
        draws = np.flatnonzero(best == leader)
        picked[draws] = equal[kept[np.ix_(draws, equal)].argmax(axis=1)]
    return picked


def _columns(sampler: Sampler, readings: Sequence[Reading]) -> Floats:
    """(draws, candidates)."""
    return sampler.columns([(each.estimate, each.influence, each.scale) for each in readings if each.estimate])


def _kept(values: Floats, limit: Limit) -> npt.NDArray[np.bool_]:
    return values <= limit.bound if limit.figure.direction == "lower" else values >= limit.bound


def use_of(table: Table, query: Query) -> Use:
    """The point of the grid that the query names, or the first; memory is that of this point unless specified."""
    point = next((each for each in table.grid if query.at is None or _named(each, query.at)), None)
    of_point = point or next(iter(table.grid), None)
    batch = query.batch or (of_point.batch_size if of_point else 1)
    tokens = query.context or (of_point.prompt_tokens + of_point.new_tokens if of_point else 1)
    return Use(table, point, batch, tokens, query.level)


def _named(point: GridPoint, text: str) -> bool:
    """Whether every part of ``batch 1, prompt 128`` is one of the point's own."""
    parts = [" ".join(part.split()) for part in text.split(",")]
    return set(parts) <= set(point.label.split(", "))


def _refuse_unknown_point(tables: Sequence[Table], at: str | None) -> None:
    points = dict.fromkeys(point for table in tables for point in table.grid)
    if at is not None and not any(_named(point, at) for point in points):
        known = "; ".join(point.label for point in points) or "none, no speed was measured"
        raise UsageError(f"--at {at!r}: no such point of the speed measurement; known: {known}")


def _require_one_load(tables: Sequence[Table], level: float | None) -> None:
    """A level is that of one load in each table: 8 requests at the same time are not compared with 8 per second."""
    if level is None:
        return
    for table in tables:
        meant = [load.label for load in table.loads if load.level == level]
        if len(meant) > 1:
            raise UsageError(f"--at-load {level:g}: several loads of one table have this level: {' / '.join(meant)}")
    loads = dict.fromkeys(load for table in tables for load in table.loads)
    if level not in {load.level for load in loads}:
        known = "; ".join(dict.fromkeys(load.short for load in loads)) or "none, no server was put under load"
        raise UsageError(f"--at-load {level:g}: this load was not measured; measured: {known}")
