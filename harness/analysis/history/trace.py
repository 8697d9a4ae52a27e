"""Takes records of many sessions, returns one series per figure with its change points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from harness.analysis.history.series import Failed, History, LevelChange, Noise, Point, Series
from harness.analysis.history.values import CaseValue, values_of
from harness.analysis.regression.baseline import engine_changed
from harness.analysis.regression.cases import Case, cases, variant
from harness.analysis.regression.endings import title
from harness.analysis.regression.environment import changes as environment
from harness.analysis.regression.exact import ROUNDING, count
from harness.analysis.regression.matching import HASH_DIGITS, match
from harness.analysis.regression.track import of_the_variant
from harness.core.identity import digest
from harness.core.model import MAIN_ENGINE
from harness.core.record import FAILURES, Damaged, RunRecord
from harness.errors import ResultsError
from harness.figures.figure import Figure
from harness.figures.formats import significant
from harness.figures.statistic import Count, Items, PerProcess
from harness.plugins import gates
from harness.stats import changepoints

Name = tuple[str, str, str, str, str]
READABLE = 60
"""Conditions up to this many letters are shown in full."""


@dataclass(frozen=True)
class _Seen:
    """A value of a figure, and the case of the session that gave it."""

    case: Case
    figure: Figure[Any]
    found: CaseValue

    @property
    def name(self) -> Name:
        """The names by which a reader knows it."""
        spec = self.case.spec
        return spec.model.label, spec.method_label, spec.engine_label, self.figure.name, self.found.where


def trace(
    records: Iterable[RunRecord],
    *,
    metrics: Sequence[str] = (),
    names: Sequence[str] = (),
    damaged: Sequence[Damaged] = (),
) -> History:
    """Every figure of ``records`` over their sessions, in the order in which the sessions began.

    ``metrics`` are names of gates; none means all. A record that is in several folders counts once.
    Raises ResultsError if no run gave such a figure.
    """
    once = {each.key: each for each in records}
    found = _sessions(once.values())
    series: dict[Name, dict[tuple[tuple[str, str], ...], list[_Seen]]] = {}
    for case, figure, counted in _asked(found, metrics):
        for value in values_of(case, figure) if counted else ():
            seen = _Seen(case, figure, value)
            conditions = tuple(sorted(value.conditions.items()))
            series.setdefault(seen.name, {}).setdefault(conditions, []).append(seen)
    if not series:
        wanted = f" of {', '.join(metrics)}" if metrics else ""
        raise ResultsError(f"nothing to show: none of these records holds a figure{wanted}")
    ranks = {name: rank for rank, name in enumerate(gates())}
    ordered = sorted(series, key=lambda name: (*name[:3], ranks[name[3]], name[4]))
    made = [each for name in ordered for each in _apart(series[name])]
    return History(
        tuple(names),
        len({point.session for each in made for point in each.points}),
        tuple(_beside_baseline(made)),
        tuple(_failed(found)),
        tuple(damaged),
    )


def _sessions(records: Iterable[RunRecord]) -> list[Case]:
    """Each question once for each session that answered it, oldest first."""
    parts: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        parts.setdefault((record.session, record.spec.recipe, record.spec.hardware), []).append(record)
    found = [case for part in parts.values() for case in cases(part).values()]
    return sorted(found, key=lambda case: (_began(case), case.spec.case_id))


def _asked(found: Sequence[Case], metrics: Sequence[str]) -> Iterator[tuple[Case, Figure[Any], bool]]:
    """Each case with each figure, and whether to take it from there: a session gives a variant's sizes only once."""
    asked = [figure for figure in gates().values() if not metrics or figure.name in metrics]
    first: dict[tuple[str, ...], Case] = {}
    for case in sorted(found, key=lambda case: case.rank):
        for figure in asked:
            if of_the_variant(figure) and case.well and count(case, figure) is not None:
                first.setdefault((*_of_variant(case), figure.name), case)
    for case in found:
        for figure in asked:
            if case.well:
                of_case = not of_the_variant(figure) or first.get((*_of_variant(case), figure.name)) is case
                yield case, figure, of_case


def _of_variant(case: Case) -> tuple[str, str, str]:
    return variant(case.spec), case.runs[0].session, case.spec.hardware


def _apart(alike: Mapping[tuple[tuple[str, str], ...], Sequence[_Seen]]) -> list[Series]:
    """The series of one name; if there are several, each says what distinguishes it from the others."""
    every = [dict(conditions) for conditions in alike]
    unlike = sorted({key for each in every for key in each if len({other.get(key) for other in every}) > 1})
    return [
        _series(seen, tuple(f"{key}: {_short(key, own.get(key))}" for key in unlike))
        for own, seen in zip(every, alike.values(), strict=True)
    ]


def _short(key: str, value: str | None) -> str:
    """In full if it is short enough for a reader, otherwise its beginning or its hash."""
    whole = "none" if value is None else value
    if "sha256" in key:
        return whole[:HASH_DIGITS]
    return whole if len(whole) <= READABLE else f"#{digest(whole)[:HASH_DIGITS]}"


def _series(seen: Sequence[_Seen], apart: tuple[str, ...]) -> Series:
    newest = seen[-1]
    spec, figure, found_last = newest.case.spec, newest.figure, newest.found
    values = [each.found.value for each in seen]
    scale = np.log(values).tolist() if found_last.relative and min(values) > 0 else values
    noise = _noise(figure, found_last, values)
    found = _positions(noise, values, scale)
    threshold = spec.readers.gates.get(figure.name, figure.gate.default if figure.gate else 0.0)
    bounds = [0, *found, len(values)]
    levels = [float(np.median(values[start:end])) for start, end in pairwise(bounds)]
    return Series(
        *newest.name[:3],
        is_baseline=spec.is_baseline,
        metric=figure.name,
        where=found_last.where,
        apart=apart,
        unit=found_last.unit,
        direction=found_last.direction,
        relative=found_last.relative,
        threshold=threshold,
        noise=noise,
        sigma=changepoints.sigma(scale, found) if noise == "noisy" and len(values) >= changepoints.FEWEST else None,
        points=tuple(Point(_session(each), _began(each.case), each.found.value, each.found.n) for each in seen),
        changes=tuple(
            _change(seen, position, before, after, threshold)
            for position, before, after in zip(found, levels, levels[1:], strict=False)
        ),
        note=_note(noise, len(values)),
    )


def _noise(figure: Figure[Any], found: CaseValue, values: Sequence[float]) -> Noise:
    if isinstance(figure.statistic, Count):
        return "none"
    continuous = isinstance(figure.statistic, Items) and found.unit.startswith(("perplexity", "nat"))
    return "repeats" if continuous and len(values) > 2 and changepoints.repeats(values) else "noisy"


def _positions(noise: Noise, values: Sequence[float], scale: Sequence[float]) -> list[int]:
    if noise == "noisy":
        return changepoints.noisy(scale)
    return changepoints.noiseless(values, ROUNDING)


def _note(noise: Noise, count: int) -> str:
    if noise == "noisy" and count < changepoints.FEWEST:
        return f"too few sessions to look for a change: {count}, it takes {changepoints.FEWEST}"
    if noise == "noisy" and count > changepoints.MOST:
        return f"changes are looked for in the newest {changepoints.MOST} sessions"
    return ""


def _change(seen: Sequence[_Seen], position: int, before: float, after: float, threshold: float) -> LevelChange:
    last, first = seen[position - 1], seen[position]
    found = first.found
    gap = after - before
    size = (gap / before if before else None) if found.relative else gap
    better = None if found.direction == "neither" else (gap > 0) == (found.direction == "higher")
    return LevelChange(
        position=position,
        session=_session(first),
        started_at=_began(first.case),
        before=before,
        after=after,
        size=size,
        matters=size is None or abs(size) > threshold,
        better=better,
        environment=environment(match({last.case.spec.case_id: last.case}, {first.case.spec.case_id: first.case}).both),
    )


def _beside_baseline(series: Sequence[Series]) -> Iterator[Series]:
    """For a change, adds how the unquantized model on the same engine changed in the same session.

    That is for timed figures, and for quality on another engine than that of the reference, which may have changed.
    """
    theirs: dict[tuple[str, ...], list[LevelChange]] = {}
    for each in series:
        if each.is_baseline:
            theirs.setdefault((each.model, each.engine, each.metric, each.where), []).extend(each.changes)
    for each in series:
        statistic = gates()[each.metric].statistic
        engine = each.engine if isinstance(statistic, Items) and each.engine != MAIN_ENGINE else None
        if each.is_baseline or not (isinstance(statistic, PerProcess) or engine):
            yield each
            continue
        base = theirs.get((each.model, each.engine, each.metric, each.where), [])
        yield replace(
            each,
            changes=tuple(replace(own, notes=tuple(_baseline_notes(own, base, engine))) for own in each.changes),
        )


def _baseline_notes(own: LevelChange, baseline: Iterable[LevelChange], engine: str | None) -> Iterator[str]:
    """``engine`` is the one whose own change is part of the variant's; None if the figure is no quality of another."""
    for other in (each for each in baseline if each.session == own.session):
        if engine is None and other.size is not None:
            yield f"the unquantized baseline changed there too, by {other.size:+.1%}"
        elif engine is not None and other.matters:
            levels = f"from {significant(other.before)} to {significant(other.after)}"
            yield engine_changed(engine, levels, (other.after > other.before) == (own.after > own.before))


def _failed(found: Sequence[Case]) -> Iterator[Failed]:
    for case in found:
        if case.status in FAILURES:
            yield Failed(case.runs[-1].session, _began(case), title(case), case.status, case.reason)


def _began(case: Case) -> str:
    return min(run.started_at for run in case.runs)


def _session(seen: _Seen) -> str:
    return seen.case.runs[-1].session
