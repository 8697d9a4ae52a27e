"""Figures of several sources side by side: in one row where their comparability keys agree, else apart, with why."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np

from harness.analysis.comparability import Comparability
from harness.analysis.history.values import CaseValue, comparability, values_of
from harness.analysis.regression import paired, processes
from harness.analysis.regression.cases import Case, cases
from harness.analysis.selection import AttemptKey, withdrawn, without
from harness.core.job import VariantJob
from harness.core.record import Measurement, RunRecord
from harness.figures.figure import Figure
from harness.figures.statistic import Count, Items, PerProcess
from harness.plugins import gates
from harness.stats.heterogeneity import Heterogeneity, effects_of_items, heterogeneity

ALPHA = 0.05
MOST_INDEPENDENT = 6
"""Sources that ``independent`` takes: reading more would be what a site of many sweeps takes longest for."""


@dataclass(frozen=True)
class SourceFigure:
    """A figure as one source measured it, in the session that counts there; ``n`` values are behind it."""

    source: str
    session: str
    value: float
    n: int


@dataclass(frozen=True)
class PooledFigure:
    """A figure of one variant that two or more sources measured alike: their keys are equal.

    ``test`` is None where all values are the same, bit for bit (``identical``), or where ``note`` says why there is
    none. It is on the scale that ``scale`` names.
    """

    model: str
    method: str
    engine: str
    metric: str
    where: str
    unit: str
    key: str
    sources: tuple[SourceFigure, ...]
    identical: bool
    test: Heterogeneity | None = None
    scale: str = ""
    note: str = ""

    @property
    def agreement(self) -> str:
        """In a word: whether the sources differ by more than their own noise."""
        if self.identical:
            return "identical"
        if self.test is None:
            return "not tested"
        return "heterogeneous" if self.test.p < ALPHA else "agree within noise"


@dataclass(frozen=True)
class UnlikeFigures:
    """A figure that sources measured under the same names, but not alike: in no table do they stand together."""

    model: str
    method: str
    engine: str
    metric: str
    where: str
    sources: tuple[str, str]
    differing: tuple[tuple[str, str | None, str | None], ...]


@dataclass(frozen=True)
class SharedRuns:
    """Runs that a source and the ``holder``, a source before it, both hold: they count as the holder's alone.

    ``runs`` of the source's ``total`` current runs do not count there.
    """

    source: str
    holder: str
    runs: int
    total: int


@dataclass(frozen=True)
class WithdrawnRuns:
    """Runs that a source holds as if they counted, but that were withdrawn in its copy ``by`` another source."""

    source: str
    by: str
    runs: int


@dataclass(frozen=True)
class Pool:
    """What several sources measured, which of it is not comparable, what they share, and what was withdrawn."""

    figures: tuple[PooledFigure, ...]
    unlike: tuple[UnlikeFigures, ...]
    shared: tuple[SharedRuns, ...] = ()
    withdrawn: tuple[WithdrawnRuns, ...] = ()


@dataclass(frozen=True)
class _Keyed:
    source: str
    case: Case
    figure: Figure[Any]
    value: CaseValue
    comparability: Comparability

    @property
    def names(self) -> tuple[str, str, str, str, str]:
        spec = self.case.spec
        return spec.model.label, spec.method_label, spec.engine_label, self.figure.name, self.value.where


class _Holders:
    """Which source holds a run first: a copy of it, or a folder that it was merged into, measured nothing itself."""

    def __init__(self) -> None:
        self._by_run: dict[AttemptKey, str] = {}

    def find(self, case: Case) -> str | None:
        """The source before this one that has a run of the case; None if no source has."""
        return next((self._by_run[run.key] for run in case.runs if run.key in self._by_run), None)

    def add(self, source: str, own: Iterable[Case]) -> None:
        self._by_run |= {run.key: source for case in own for run in case.runs}


def independent(sources: Iterable[tuple[str, Iterable[RunRecord]]], model: str) -> dict[str, tuple[RunRecord, ...]]:
    """Of the first sources, their current runs of a model, by its content, that no source before them has."""
    found: dict[str, tuple[RunRecord, ...]] = {}
    holders = _Holders()
    for source, records in sources:
        of_model = (
            each for each in records if isinstance(each.spec.job, VariantJob) and each.spec.model.content_id == model
        )
        own = [case for case in cases(of_model).values() if holders.find(case) is None]
        if own:
            holders.add(source, own)
            found[source] = tuple(chain.from_iterable(case.runs for case in own))
        if len(found) == MOST_INDEPENDENT:
            break
    return found


def pool(sources: Mapping[str, Sequence[RunRecord]]) -> Pool:
    """Lays the figures of sources side by side. Each source is one sweep or more, of one person or machine.

    A source's own figure is that of its current runs, as in tables. Runs that several sources hold count in the first
    of them only: copies would agree by themselves. A run that was withdrawn in one of them counts in none.
    """
    gone = {source: withdrawn(records) for source, records in sources.items()}
    everywhere = frozenset[AttemptKey]().union(*gone.values())
    alike: dict[str, dict[str, _Keyed]] = defaultdict(dict)
    named: dict[tuple[str, ...], dict[str, dict[str, _Keyed]]] = defaultdict(lambda: defaultdict(dict))
    holders, shared = _Holders(), []
    for source, records in sources.items():
        asked = cases(without(everywhere, records))
        held = {name: holder for name, case in asked.items() if (holder := holders.find(case)) is not None}
        for name, case in asked.items():
            for each in _keyed(source, case):
                key = each.comparability.key
                named[each.names][key].setdefault(source, each)
                if name not in held:
                    alike[key].setdefault(source, each)  # a count is the same in every run of a variant
        holders.add(source, (case for name, case in asked.items() if name not in held))
        shared += _shared(source, asked, held)
    pooled = [_pooled(list(members.values())) for members in alike.values() if len(members) > 1]
    unlike = [_unlike(list(groups.values())) for groups in named.values()]
    found = (each for each in unlike if each is not None)
    return Pool(tuple(pooled), tuple(found), tuple(shared), tuple(_withdrawn(sources, gone)))


def _withdrawn(
    sources: Mapping[str, Sequence[RunRecord]], gone: Mapping[str, Set[AttemptKey]]
) -> Iterator[WithdrawnRuns]:
    """For each pair of sources, how many runs that one holds the other withdrew."""
    for source, records in sources.items():
        held = {record.key for record in records} - gone[source]
        counts = ((by, len(held & theirs)) for by, theirs in gone.items())
        yield from (WithdrawnRuns(source, by, count) for by, count in counts if count)


def _shared(source: str, asked: Mapping[str, Case], held: Mapping[str, str]) -> list[SharedRuns]:
    """For each holder of cases of a source, how many of its runs do not count."""
    total = sum(len(case.runs) for case in asked.values())
    counts: Counter[str] = Counter()
    for name, holder in held.items():
        counts[holder] += len(asked[name].runs)
    return [SharedRuns(source, holder, count, total) for holder, count in counts.items()]


def _keyed(source: str, case: Case) -> Iterator[_Keyed]:
    if not case.measured:
        return
    figures = gates()
    for name, values in values_of(case, list(figures.values())).items():
        for value in values:
            yield _Keyed(source, case, figures[name], value, comparability(case, figures[name], value))


def _unlike(groups: Sequence[Mapping[str, _Keyed]]) -> UnlikeFigures | None:
    """The first two groups, of figures under the same names, that share no source; None if there are none.

    A source that has both measured, for example, two texts under one name.
    """
    for one, other in combinations(groups, 2):
        if one.keys().isdisjoint(other):
            first, second = next(iter(one.values())), next(iter(other.values()))
            differing = tuple(first.comparability.differing(second.comparability))
            return UnlikeFigures(*first.names, (first.source, second.source), differing)
    return None


def _pooled(members: Sequence[_Keyed]) -> PooledFigure:
    first = members[0]
    sources = tuple(
        SourceFigure(each.source, each.case.runs[-1].session, each.value.value, each.value.n) for each in members
    )
    identical, test, scale, note = _tested(first.figure.statistic, members)
    return PooledFigure(*first.names, first.value.unit, first.comparability.key, sources, identical, test, scale, note)


def _tested(
    statistic: Items | PerProcess | Count | None, members: Sequence[_Keyed]
) -> tuple[bool, Heterogeneity | None, str, str]:
    """Whether all values are the same, the test, its scale, and why there is no test."""
    same = all(each.value.value == members[0].value.value for each in members)
    if isinstance(statistic, Items):
        measured = [paired.measured(each.case, statistic) for each in members]
        return _of_items([found for found in measured if found is not None])
    if isinstance(statistic, PerProcess) and not statistic.pooled:
        return _of_processes(statistic, members, same)
    if same:
        return True, None, "", ""
    why = "a count has no noise: one of the sources counted something else" if isinstance(statistic, Count) else ""
    return False, None, "", why or "the highest of several phases: a permutation test compares two at a time"


def _of_items(measured: Sequence[Measurement]) -> tuple[bool, Heterogeneity | None, str, str]:
    first = measured[0]
    order = [_order(each) for each in measured]
    values = [[each.values[place] for place in places] for each, places in zip(measured, order, strict=True)]
    if all(own == values[0] for own in values):
        return True, None, "", ""
    weights = [first.weights[place] for place in order[0]] if first.weights else [1.0] * len(order[0])
    names = first.cluster_ids or first.item_ids or tuple(map(str, range(len(first.values))))
    try:
        test = heterogeneity(*effects_of_items(values, weights, [names[place] for place in order[0]]))
    except ValueError as error:
        return False, None, "", str(error)
    return False, test, first.unit, ""


def _order(measurement: Measurement) -> Sequence[int]:
    """The places of a measurement's values in the order of their items, which is the same for all sources."""
    ids = measurement.item_ids
    return sorted(range(len(ids)), key=ids.__getitem__) if ids else range(len(measurement.values))


def _of_processes(
    statistic: PerProcess, members: Sequence[_Keyed], same: bool
) -> tuple[bool, Heterogeneity | None, str, str]:
    """On the logarithms of processes: speeds differ by factors."""
    effects, variances, degrees = [], [], []
    for each in members:
        found = [
            statistic.number(measurement)
            for process in processes.measured(each.case, statistic)
            for measurement in process.values()
            if processes.where(measurement) == each.value.where
        ]
        if found and not all(0 < number < math.inf for number in found):
            why = f"{each.source} has a figure that is zero, negative or infinite: no ratio can be made of it"
            return same, None, "", why
        if len(found) < 2:
            return same, None, "", f"{each.source} has {len(found)} processes, and its noise takes two or more to tell"
        logarithms = np.log(np.asarray(found))
        effects.append(float(logarithms.mean()))
        variances.append(float(logarithms.var(ddof=1)) / len(found))
        degrees.append(len(found) - 1)
    try:
        return False, heterogeneity(effects, variances, degrees), f"logarithm of {statistic.unit}", ""
    except ValueError as error:
        return same, None, "", str(error)
