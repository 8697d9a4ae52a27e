"""Takes records of many sessions, returns one series per figure with its change points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from harness.analysis.history.series import Failed, History, LevelChange, Noise, Point, Series, Silent
from harness.analysis.history.values import CaseValue, conditions_of, values_of
from harness.analysis.kept import NOTHING, KeptEntries
from harness.analysis.regression import processes
from harness.analysis.regression.baseline import by, engine_changed
from harness.analysis.regression.cases import Case, cases, variant
from harness.analysis.regression.compared import of_the_variant
from harness.analysis.regression.endings import title
from harness.analysis.regression.environment import changes as environment
from harness.analysis.regression.exact import ROUNDING
from harness.analysis.regression.matching import HASH_DIGITS, match
from harness.analysis.selection import withdrawn, without
from harness.core.identity import digest
from harness.core.model import MAIN_ENGINE
from harness.core.record import FAILURES, Damaged, RunRecord
from harness.errors import ResultsError
from harness.figures.figure import Figure
from harness.figures.formats import significant
from harness.figures.statistic import Count, Items, PerProcess
from harness.plugins import gates
from harness.stats import changepoints
from harness.stats.repeats import of_process

VariantName = tuple[str, str, str]
"""The names of a model, a method and an engine."""
Name = tuple[str, str, str, str, str]
"""Those of a variant, a figure's, and where it is measured."""
READABLE = 60
"""Conditions up to this many letters are shown in full."""


class _Seen(NamedTuple):
    """A value of a figure, and the case of the session that gave it."""

    case: Case
    figure: Figure[Any]
    found: CaseValue


def trace(
    records: Iterable[RunRecord],
    *,
    metrics: Sequence[str] = (),
    names: Sequence[str] = (),
    damaged: Sequence[Damaged] = (),
    kept: KeptEntries = NOTHING,
) -> History:
    """Every figure of ``records`` over their sessions, in the order in which the sessions began.

    ``metrics`` are names of gates; none means all. A record that is in several folders counts once, and not at all if
    it was withdrawn in one of them. What a case gives is taken from ``kept`` if it is there.
    Raises ResultsError if no run gave such a figure.
    """
    records = list(records)
    once = {each.key: each for each in without(withdrawn(records), records)}
    found = _sessions(once.values())
    series: dict[VariantName, dict[tuple[str, str], dict[tuple[str, str], list[_Seen]]]] = {}
    for case, figures in _asked(found, metrics, kept):
        spec = case.spec
        of_variant = series.setdefault((spec.model.label, spec.method_label, spec.engine_label), {})
        for figure, values in figures:
            for value in values:
                alike = of_variant.setdefault((figure.name, value.where), {})
                alike.setdefault((value.own, value.asked), []).append(_Seen(case, figure, value))
    if not any(series.values()):
        wanted = f" of {', '.join(metrics)}" if metrics else ""
        raise ResultsError(f"nothing to show: none of these records holds a figure{wanted}")
    ranks = {name: rank for rank, name in enumerate(gates())}
    made = [
        each
        for shown in sorted(series)
        for (name, where), alike in sorted(series[shown].items(), key=lambda each: (ranks[each[0][0]], each[0][1]))
        for each in _apart((*shown, name, where), alike)
    ]
    return History(
        tuple(names),
        len({point.session for each in made for point in each.points}),
        tuple(_beside_baseline(made)),
        tuple(_failed(found)),
        tuple(damaged),
        tuple(_silent(found, metrics)),
    )


def _sessions(records: Iterable[RunRecord]) -> list[Case]:
    """Each question once for each session that answered it, oldest first."""
    parts: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        parts.setdefault((record.session, record.spec.recipe, record.spec.hardware), []).append(record)
    found = [case for part in parts.values() for case in cases(part).values()]
    return sorted(found, key=lambda case: (case.began, case.spec.case_id))


def _asked(
    found: Sequence[Case], metrics: Sequence[str], kept: KeptEntries
) -> Iterator[tuple[Case, list[tuple[Figure[Any], Sequence[CaseValue]]]]]:
    """Each case with the figures that are taken from it, and their values.

    A session gives a variant's sizes only once.
    """
    asked = {name: figure for name, figure in gates().items() if not metrics or name in metrics}
    once = {name for name, figure in asked.items() if of_the_variant(figure)}
    first: dict[tuple[str, ...], dict[str, Case]] = {}
    values = [
        (case, values_of(case, list(asked.values()), kept), first.setdefault(_of_variant(case), {}))
        for case in found
        if case.measured
    ]
    for case, own, sizes in sorted(values, key=lambda each: each[0].rank):
        for name in own.keys() & once:
            sizes.setdefault(name, case)
    for case, own, sizes in values:  # a case has its values in the order of the gates
        yield case, [(asked[name], own[name]) for name in own if name not in once or sizes[name] is case]


def _of_variant(case: Case) -> tuple[str, str, str]:
    return variant(case.spec), case.runs[0].session, case.spec.hardware


def _apart(name: Name, alike: Mapping[tuple[str, str], Sequence[_Seen]]) -> list[Series]:
    """The series of one name; if there are several, each says what distinguishes it from the others."""
    if len(alike) == 1:
        return [_series(name, seen, ()) for seen in alike.values()]
    every = [conditions_of(seen[0].case, seen[0].found) for seen in alike.values()]
    unlike = sorted({key for each in every for key in each if len({other.get(key) for other in every}) > 1})
    return [
        _series(name, seen, tuple(f"{key}: {_short(key, own.get(key))}" for key in unlike))
        for own, seen in zip(every, alike.values(), strict=True)
    ]


def _short(key: str, value: str | None) -> str:
    """In full if it is short enough for a reader, otherwise its beginning or its hash."""
    whole = "none" if value is None else value
    if "sha256" in key:
        return whole[:HASH_DIGITS]
    return whole if len(whole) <= READABLE else f"#{digest(whole)[:HASH_DIGITS]}"


def _series(name: Name, seen: Sequence[_Seen], apart: tuple[str, ...]) -> Series:
    newest = seen[-1]
    spec, figure, found_last = newest.case.spec, newest.figure, newest.found
    values = [each.found.value for each in seen]
    noise = _noise(figure, found_last, values)
    searched = noise == "noisy" and len(values) >= changepoints.FEWEST
    scale = np.log(values).tolist() if searched and found_last.relative and min(values) > 0 else values
    found = changepoints.noisy(scale) if noise == "noisy" else changepoints.noiseless(values, ROUNDING)
    threshold = spec.readers.gates.get(figure.name, figure.gate.default if figure.gate else 0.0)
    bounds = [0, *found, len(values)]
    levels = [of_process(values[start:end]) for start, end in pairwise(bounds)] if found else []
    return Series(
        *name[:3],
        is_baseline=spec.is_baseline,
        metric=figure.name,
        where=found_last.where,
        apart=apart,
        unit=found_last.unit,
        direction=found_last.direction,
        relative=found_last.relative,
        threshold=threshold,
        noise=noise,
        sigma=changepoints.sigma(scale, found) if searched else None,
        points=tuple([Point(_session(each), each.case.began, each.found.value, each.found.n) for each in seen]),
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
        started_at=first.case.began,
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
        if not each.changes:
            yield each
            continue
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
            yield f"the unquantized baseline changed there too, {by(other.size)}"
        elif engine is not None and other.matters:
            levels = f"from {significant(other.before)} to {significant(other.after)}"
            yield engine_changed(engine, levels, (other.after > other.before) == (own.after > own.before))


def _failed(found: Sequence[Case]) -> Iterator[Failed]:
    for case in found:
        if case.status in FAILURES:
            yield Failed(case.runs[-1].session, case.began, title(case), case.status, case.reason)


def _silent(found: Sequence[Case], metrics: Sequence[str]) -> Iterator[Silent]:
    """What servers did not answer at all, if a figure is asked for that depends on it."""
    figures = (figure for name, figure in gates().items() if not metrics or name in metrics)
    asked = (each.statistic for each in figures if isinstance(each.statistic, PerProcess))
    statistic = next((each for each in asked if each.unanswered is not None), None)
    if statistic is None:
        return
    for case in found:
        measured = processes.measured(case, statistic) if case.spec.serving is not None else []
        for key in dict.fromkeys(key for process in measured for key in process):
            own = [process[key] for process in measured if key in process]
            if silent := statistic.silent(own):
                load = processes.where(own[-1])
                yield Silent(case.runs[-1].session, case.began, title(case), load, silent, len(own))


def _session(seen: _Seen) -> str:
    return seen.case.runs[-1].session
