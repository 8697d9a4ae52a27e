"""Takes records of BASE and HEAD, returns one verdict per case and metric, all judged together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.analysis.regression.baseline import beside_baseline
from harness.analysis.regression.cases import Case, cases, named, variant
from harness.analysis.regression.endings import ending, gone, title
from harness.analysis.regression.environment import changes
from harness.analysis.regression.exact import count, exact
from harness.analysis.regression.family import together
from harness.analysis.regression.findings import Finding, Regression, Side
from harness.analysis.regression.matching import Match, match
from harness.analysis.regression.paired import paired, same
from harness.analysis.regression.pending import Gated, Pending, settled, start
from harness.analysis.regression.processes import processes
from harness.core.job import MeasureQuality
from harness.core.record import Damaged, Outcome, RunRecord
from harness.errors import ResultsError
from harness.figures.derived.plausibility import implausible
from harness.figures.figure import Figure
from harness.figures.statistic import Count, Items, PerProcess
from harness.plugins import gates as gated_figures
from harness.stats.repeats import FEW_VALUES

ALPHA = 0.05
"""The maximum probability that any gate at all fails if nothing changed."""
DEFAULTS = "defaults"


def track(
    base: Sequence[RunRecord],
    head: Sequence[RunRecord],
    gates: Mapping[str, float] | None = None,
    *,
    override: Mapping[str, float] | None = None,
    names: tuple[str, str] = ("BASE", "HEAD"),
    damaged: tuple[Sequence[Damaged], Sequence[Damaged]] = ((), ()),
    origin: str | None = None,
    strict: bool = False,
    alpha: float = ALPHA,
) -> Regression:
    """HEAD compared with BASE.

    ``gates`` are thresholds by name (see ``harness.figures.gate``); None takes those of HEAD's recipe. ``override``
    replaces single ones. If nobody names any, the usual ones apply. Other metrics are compared by their default
    thresholds and decide nothing, unless ``strict`` makes them all gates. Over all gates together, the probability of
    a false regression is at most ``alpha``, and so is that of a false "unchanged".
    Raises ResultsError if the two sides have no case in common.
    """
    theirs, ours = cases(base), cases(head)
    matches = match(theirs, ours)
    if not matches.both:
        raise ResultsError(_nothing_in_common(names, theirs, ours))
    thresholds, whence = (gates, origin or "given") if gates is not None else _recipes_gates(ours)
    if override:
        thresholds, whence = {**thresholds, **override}, f"{whence}, overridden" if thresholds else "given"
    asked = _asked(thresholds, strict)
    known = {variant(case.spec) for case in theirs.values()}
    unanswered = [Match(Case(()), case) for case in matches.new if variant(case.spec) in known]
    found = beside_baseline(_findings(matches.both, unanswered, asked, alpha), matches.both)
    found += [gone(case) for case in matches.gone]
    methods = named(theirs) | named(ours)
    found = [replace(finding, method=methods[finding.case_id]) for finding in found]
    measured = {finding.metric for finding in found}
    return Regression(
        base=_side(names[0], base, theirs, damaged[0]),
        head=_side(names[1], head, ours, damaged[1]),
        findings=tuple(_in_order(found)),
        environment=changes(matches.both),
        new=tuple(map(title, matches.new)),
        gates={each.name: each.threshold for each in asked if each.in_force},
        origin=whence,
        alpha=alpha,
        unmeasured=tuple(name for name in thresholds if name not in measured),
    )


def _recipes_gates(head: Mapping[str, Case]) -> tuple[Mapping[str, float], str]:
    """The gates of HEAD's newest run that can name any."""
    measured = [case.runs[-1] for case in head.values() if case.spec.job.measures_variant]
    newest = max(measured, key=lambda run: (run.started_at, run.attempt), default=None)
    if newest is None or not newest.spec.readers.gates:
        return {}, DEFAULTS
    return newest.spec.readers.gates, f"recipe {newest.spec.recipe}"


def _asked(thresholds: Mapping[str, float], strict: bool) -> list[Gated]:
    return [
        Gated(
            figure,
            thresholds.get(name, figure.gate.default),
            strict or (name in thresholds if thresholds else figure.gate.usual),
        )
        for name, figure in gated_figures().items()
        if figure.gate
    ]


def _findings(
    matches: Sequence[Match], unanswered: Sequence[Match], asked: Sequence[Gated], alpha: float
) -> list[Finding]:
    """``unanswered`` are runs that only HEAD has, of variants that BASE has: their results cannot be compared."""
    drafts: list[Finding | Pending] = []
    identical = _identical(matches)
    measured = [*(each for each in matches if each.base.well and each.head.well), *unanswered]
    sizes = _sizes_once(measured, asked)
    drafts += [ended for each in matches if (ended := ending(each))]
    for each in measured:
        drafts += _compared(each, sizes, asked, alpha)
    return _judged([_by_identity(draft, identical) for draft in drafts])


def _compared(
    one: Match, sizes: Mapping[tuple[str, str], Match], asked: Sequence[Gated], alpha: float
) -> Iterator[Finding | Pending]:
    for each in asked:
        doubtful = _not_finite(one, each)
        if doubtful is not None:
            yield doubtful
        elif isinstance(each.figure.statistic, Items):
            yield from paired(one, each, alpha)
        elif isinstance(each.figure.statistic, PerProcess):
            yield from processes(one, each, alpha)
        elif not of_the_variant(each.figure) or sizes.get((variant(one.head.spec), each.name)) is one:
            yield from exact(one, each)


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
    return not all(_is_finite(run.outcome, metric) for run in case.well for metric in metrics)


def _is_finite(outcome: Outcome, metric: str) -> bool:
    """Whether all values of a metric are; asked once, because a run may be on both sides and have several gates."""
    found = outcome.measured(metric)
    return outcome.remember(
        ("finite", metric), lambda: all(_all_finite(m.values) and _all_finite(m.weights) for m in found)
    )


def _all_finite(values: Sequence[float]) -> bool:
    if len(values) <= FEW_VALUES:
        return all(map(math.isfinite, values))
    return bool(np.isfinite(np.asarray(values, dtype=np.float64)).all())


def of_the_variant(figure: Figure[Any]) -> bool:
    """Whether it is a count that is the same in every run of a variant, so that it is taken once."""
    return isinstance(figure.statistic, Count) and not figure.statistic.each_run


def _sizes_once(matches: Sequence[Match], asked: Sequence[Gated]) -> dict[tuple[str, str], Match]:
    """By variant and gate, the match that a size is taken from: several runs of a variant give the same ones.

    A match in which both sides know it has priority over one in which only one side does.
    """
    best: dict[tuple[str, str], tuple[int, Match]] = {}
    for each in sorted(matches, key=lambda each: each.head.rank):
        for figure in (each.figure for each in asked if of_the_variant(each.figure)):
            known = sum(count(case, figure) is not None for case in (each.base, each.head))
            key = (variant(each.head.spec), figure.name)
            if known > (best[key][0] if key in best else 0):
                best[key] = known, each
    return {key: chosen for key, (_, chosen) in best.items()}


def _identical(matches: Sequence[Match]) -> frozenset[str]:
    """The cases of variants that compute exactly the same function: all their likelihoods are equal, bit for bit."""
    seen: dict[str, bool] = {}
    for each in matches:
        if each.bars or not (each.base.well and each.head.well):
            continue
        key = variant(each.head.spec)
        for theirs, ours in zip(each.base.found("nll"), each.head.found("nll"), strict=False):
            seen[key] = seen.get(key, True) and same(theirs, ours)
    return frozenset(each.head.spec.case_id for each in matches if seen.get(variant(each.head.spec)))


def _by_identity(draft: Finding | Pending, identical: frozenset[str]) -> Finding | Pending:
    """Equal answers of equal functions need no test."""
    if isinstance(draft, Finding) or draft.comparison.design != "paired":
        return draft
    finding = draft.finding
    if finding.case_id not in identical or finding.base != finding.head or draft.comparison.effect.value:
        return draft
    why = ("its likelihoods are bit for bit the same, and so is this",)
    return replace(finding, verdict="unchanged", n=draft.comparison.effect.n, units="values", reasons=why)


def _judged(drafts: Sequence[Finding | Pending]) -> list[Finding]:
    """Tests for gates are one family, and all others another."""
    found: dict[int, Finding] = {}
    for gated in (True, False):
        waiting = {
            position: draft
            for position, draft in enumerate(drafts)
            if isinstance(draft, Pending) and draft.finding.gated == gated
        }
        comparisons = together([draft.comparison for draft in waiting.values()])
        for (position, draft), comparison in zip(waiting.items(), comparisons, strict=True):
            found[position] = settled(replace(draft, comparison=comparison))
    return [found[position] if isinstance(draft, Pending) else draft for position, draft in enumerate(drafts)]


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    """By model and method, in the order of the gates."""
    ranks = {name: rank for rank, name in enumerate(("runs", *gated_figures()))}
    key: Callable[[Finding], tuple[object, ...]] = lambda each: (  # noqa: E731
        each.model,
        each.method,
        each.engine,
        ranks[each.metric],
        each.where,
        each.case_id,
    )
    return sorted(findings, key=key)


def _side(name: str, records: Sequence[RunRecord], found: Mapping[str, Case], damaged: Sequence[Damaged]) -> Side:
    counted = {run.session for case in found.values() for run in case.runs}
    doubts = {
        title(case): why
        for case in found.values()
        if isinstance(case.spec.job, MeasureQuality) and case.spec.is_baseline and case.well
        if (why := implausible(case.spec.model, case.well[-1]))
    }
    return Side(name, tuple(sorted(counted)), len(found), tuple(damaged), doubts)


def _nothing_in_common(names: tuple[str, str], base: Mapping[str, Case], head: Mapping[str, Case]) -> str:
    sides = [f"{name} has {_held(found)}" for name, found in zip(names, (base, head), strict=True)]
    return f"nothing in common to compare: {'; '.join(sides)}"


def _held(found: Mapping[str, Case]) -> str:
    variants = sorted({case.spec.subject for case in found.values()})
    if not variants:
        return "no run that measures a variant"
    return ", ".join(variants[:3]) + (f" and {len(variants) - 3} more" if len(variants) > 3 else "")
