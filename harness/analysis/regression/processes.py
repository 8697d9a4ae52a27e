"""Metrics that vary between processes: speeds, energy, peak memory. A process is the unit of evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import Finding
from harness.analysis.regression.matching import Match, differing, unlike_conditions
from harness.analysis.regression.pending import Gated, Pending, start
from harness.core.identity import Scalar
from harness.core.record import Measurement, RunRecord
from harness.figures.derived.peaks import source_that_says_most
from harness.figures.derived.places import place_of
from harness.figures.derived.speeds import point_of
from harness.figures.figure import Figure
from harness.figures.statistic import PerProcess
from harness.stats.comparison import Better, too_few
from harness.stats.estimate import Estimate
from harness.stats.repeats import FEWEST_PROCESSES
from harness.stats.rule import compare_speeds

Key = tuple[str, ...]
Process = Mapping[Key, Measurement]
POINT = ("batch_size", "prompt_tokens", "new_tokens", "decode_mode", "arrival", "level", "prompts", "answers")
NO_POINT = str(None)
"""In a key, for a phase that belongs to no point of the grid."""


@dataclass(frozen=True)
class _Side:
    """What a case measured: by the processes that may be used, and by all that succeeded.

    ``left_out`` says how many of these may not be used and why; empty if all may.
    """

    name: str
    usable: tuple[Process, ...]
    every: tuple[Process, ...]
    left_out: str

    def at(self, key: Key) -> list[Measurement]:
        return [process[key] for process in self.usable if key in process]

    def has(self, key: Key) -> bool:
        return any(key in process for process in self.every)

    def missing(self, key: Key) -> tuple[Literal["inconclusive", "incomparable"], str] | None:
        """The verdict if this side has no usable figure, and why; None if it has one."""
        if self.at(key):
            return None
        if self.has(key):
            return "inconclusive", self.left_out
        return "incomparable", f"{self.name} does not measure it"


def processes(match: Match, asked: Gated, alpha: float) -> Iterator[Finding | Pending]:
    """One finding for each point of the grid and level of load that either side measured, with usable timings or not.

    Peaks are taken over all points that both have; those that only one has are a separate finding.
    """
    if not match.head.spec.job.repeated:
        return
    statistic = per_process(asked.figure)
    sides = (_side("BASE", match.base, statistic), _side("HEAD", match.head, statistic))
    keys = list(dict.fromkeys(key for side in sides for process in side.every for key in process))
    if statistic.pooled:
        yield from _peak(match, asked, alpha, sides, keys)
        return
    for key in keys:
        every = [process[key] for side in sides for process in side.every if key in process]
        found = representative(statistic, every)
        if all(math.isinf(statistic.number(each)) for each in every):
            continue  # neither side answered anything in any time
        blank = start(match, asked, where(found), statistic.unit, True)
        missing = [each for side in sides if (each := side.missing(key))]
        if missing:
            yield _unevaluated(blank, asked, sides, key, missing)
        else:
            measured = [side.at(key) for side in sides]
            notes = (*_left_out(sides), *_unanswered(statistic, sides, key))
            yield _one(match, asked, alpha, blank, measured, notes)


def _unevaluated(
    blank: Finding,
    asked: Gated,
    sides: tuple[_Side, _Side],
    key: Key,
    missing: Sequence[tuple[Literal["inconclusive", "incomparable"], str]],
) -> Finding:
    """For figures that are usable on at most one side. That nothing was measured at all has priority."""
    base, head = (per_process(asked.figure).figure(side.at(key)) for side in sides)
    verdict = max((verdict for verdict, _ in missing), key=("inconclusive", "incomparable").index)
    return replace(blank, base=base, head=head, verdict=verdict, reasons=tuple(why for _, why in missing))


def per_process(figure: Figure[Any]) -> PerProcess:
    assert isinstance(figure.statistic, PerProcess)
    return figure.statistic


def _side(name: str, case: Case, statistic: PerProcess) -> _Side:
    used: tuple[RunRecord, ...] = case.trusted if statistic.timed else case.measured
    usable, every = (tuple(_process(run, statistic) for run in runs) for runs in (used, case.measured))
    return _Side(name, usable, every, _suspects(name, case) if statistic.timed else "")


def _left_out(sides: Sequence[_Side]) -> tuple[str, ...]:
    return tuple(side.left_out for side in sides if side.left_out)


def _unanswered(statistic: PerProcess, sides: tuple[_Side, _Side], key: Key) -> Iterator[str]:
    """How many processes of a side answered no request at all."""
    for side in sides:
        used = side.at(key)
        if silent := statistic.silent(used):
            yield f"{side.name} answered no request in {silent} of {len(used)} processes"


def _peak(
    match: Match, asked: Gated, alpha: float, sides: tuple[_Side, _Side], keys: Sequence[Key]
) -> Iterator[Finding | Pending]:
    """The highest peak of a process, from the source with the highest priority, over the phases and points of both."""
    source = source_that_says_most(key[0] for key in keys)
    if source is None:
        return
    statistic = per_process(asked.figure)
    blank = start(match, asked, source, statistic.unit, True)
    both = [key for key in keys if key[0] == source and all(side.has(key) for side in sides)]
    if not both:
        absent = [side.name for side in sides if not any(key[0] == source for process in side.every for key in process)]
        why = f"{absent[0]} does not measure it" if absent else "no phase and no point of the grid that both measure"
        yield replace(blank, reasons=(why,))
        return
    highest_of = [
        [
            max((process[key] for key in both if key in process), key=statistic.of)
            for process in side.usable
            if any(key in process for key in both)
        ]
        for side in sides
    ]
    alike = [[replace(each, protocol={"source": source}) for each in side] for side in highest_of]
    yield _one(match, asked, alpha, blank, alike, ())
    yield from _peaks_of_one_side(blank, source, sides, keys)


def _peaks_of_one_side(
    blank: Finding, source: str, sides: tuple[_Side, _Side], keys: Sequence[Key]
) -> Iterator[Finding]:
    """Points of the grid at which only one side measured its memory: they are not compared."""
    for side, other in (sides, sides[::-1]):
        alone = [
            key for key in keys if key[0] == source and key[2] != NO_POINT and side.has(key) and not other.has(key)
        ]
        if alone:
            points = dict.fromkeys(point_of(next(p[key] for p in side.every if key in p)).label for key in alone)
            why = f"{other.name} does not measure it at {'; '.join(points)}"
            yield replace(blank, where=f"{source}, at points of {side.name} alone", reasons=(why,))


def _one(
    match: Match,
    asked: Gated,
    alpha: float,
    blank: Finding,
    measured: Sequence[Sequence[Measurement]],
    notes: tuple[str, ...],
) -> Finding | Pending:
    statistic = per_process(asked.figure)
    base, head = measured
    theirs, ours = ([statistic.number(each) for each in side] for side in (base, head))
    blank = replace(blank, base=statistic.figure(base), head=statistic.figure(head))
    hardware = ("hardware", match.base.spec.hardware, match.head.spec.hardware)
    bars = (*match.bars, *differing([hardware]), *_unlike(statistic, base, head))
    if bars:
        return replace(blank, reasons=bars)
    if match.same_runs:
        return replace(blank, verdict="unchanged", n=len(base), units="processes", reasons=("the same runs",))
    better: Better = "higher" if asked.figure.direction == "higher" else "lower"
    blank = replace(blank, reasons=notes)
    if len({*theirs, *ours}) == 1 and (better == "higher" or theirs[0] > 0):
        return _equal(blank, statistic, theirs, ours, alpha)
    try:
        found = compare_speeds(ours, theirs, math.log1p(asked.threshold), alpha, better, statistic.over)
    except (ValueError, ZeroDivisionError):
        return replace(blank, reasons=("a figure is not positive: no ratio can be made of it", *notes))
    return Pending(blank, found, True)


def _unlike(statistic: PerProcess, base: Sequence[Measurement], head: Sequence[Measurement]) -> tuple[str, ...]:
    """The conditions in which two sides differ. A side that answered nothing has those of its load."""
    one, other = representative(statistic, base), representative(statistic, head)
    if not statistic.answered(one):
        one = replace(other, values=one.values, protocol=one.protocol, weights=(), item_ids=(), cluster_ids=())
    elif not statistic.answered(other):
        other = replace(one, values=other.values, protocol=other.protocol, weights=(), item_ids=(), cluster_ids=())
    return unlike_conditions(one, other)


def _equal(
    blank: Finding, statistic: PerProcess, theirs: Sequence[float], ours: Sequence[float], alpha: float
) -> Finding:
    """For figures that are the same in every process, such as the goodput under a load at which no request meets the
    SLO, or the share that is answered under one that the server bears.

    A figure that has steps, or is zero, may be the same by chance. If its median had changed, no more than half of the
    processes of one side would have the old value in the long run: that all n of them have it is then as probable as
    2⁻ⁿ at most.
    """
    value, count = theirs[0], min(len(theirs), len(ours))
    coarse = bool(statistic.step) or not value
    fewest = max(FEWEST_PROCESSES, math.ceil(-math.log2(alpha))) if coarse else FEWEST_PROCESSES
    same = f"{'the same' if value else 'zero'} in all {len(theirs) + len(ours)} processes"
    blank = replace(
        blank,
        change=None if blank.base is None else Estimate(0.0, None, None, count, "none"),
        n=count,
        units="processes",
    )
    if count < fewest:
        few = too_few(count, "processes", fewest)
        return replace(blank, verdict="inconclusive", needed=fewest, reasons=(same, few, *blank.reasons))
    hidden = (f"a change of less than {statistic.step} would not show",) if statistic.step and value else ()
    return replace(blank, verdict="unchanged", reasons=(same, *hidden, *blank.reasons))


def measured(case: Case, statistic: PerProcess) -> list[Process]:
    """The measurements of each process whose figures may be used."""
    runs: tuple[RunRecord, ...] = case.trusted if statistic.timed else case.measured
    return [_process(run, statistic) for run in runs]


def representative(statistic: PerProcess, found: Sequence[Measurement]) -> Measurement:
    """The last that was measured; if a server answered nothing in any process, what is in its place."""
    return next((each for each in reversed(found) if statistic.answered(each)), found[-1])


def _process(run: RunRecord, statistic: PerProcess) -> Process:
    return {_key(m): m for m in statistic.measured(run) if not _bisects(run, m)}


def _bisects(run: RunRecord, measurement: Measurement) -> bool:
    """Whether it was measured at a level of load that the recipe does not name: each process has others of those."""
    load, level = run.spec.serving, measurement.protocol.get("level")
    return load is not None and level is not None and level not in load.levels


def _key(measurement: Measurement) -> Key:
    protocol: Mapping[str, Scalar] = measurement.protocol
    return tuple(str(protocol.get(name)) for name in ("source", "phase", *POINT))


def _suspects(name: str, case: Case) -> str:
    """How many processes are left out of the decision, and why; empty if all may be used."""
    left_out = [run for run in case.measured if run not in case.trusted]
    if not left_out:
        return ""
    labels = {label.sentence for run in left_out for label in run.outcome.suspicions}
    return f"{len(left_out)} of {len(case.measured)} processes of {name} are left out ({'; '.join(sorted(labels))})"


def where(measurement: Measurement) -> str:
    """The point of the grid or the level of load; with several counters, also which one."""
    label, source = place_of(measurement).label, measurement.protocol.get("source")
    return f"{label}, {source}" if source else label
