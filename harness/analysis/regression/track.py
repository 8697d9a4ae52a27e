"""Takes records of BASE and HEAD, returns one verdict per case and metric, all judged together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.analysis.kept import NOTHING, KeptEntries
from harness.analysis.regression.baseline import beside_baseline
from harness.analysis.regression.cases import Case, cases, named, variant
from harness.analysis.regression.compared import Compared, compared
from harness.analysis.regression.endings import ending, gone, title
from harness.analysis.regression.environment import changes
from harness.analysis.regression.family import together
from harness.analysis.regression.findings import Finding, Regression, Side
from harness.analysis.regression.matching import Match, match
from harness.analysis.regression.pending import Gated, Pending, settled
from harness.core.exact_text import as_text
from harness.core.job import MeasureQuality
from harness.core.record import Damaged, RunRecord
from harness.errors import ResultsError
from harness.plugins import gates as gated_figures

ALPHA = 0.05
"""The maximum probability that any gate at all fails if nothing changed."""
DEFAULTS = "defaults"


@dataclass(frozen=True)
class _Measured:
    """Two matched cases of a variant, by its name, and what they give by themselves."""

    variant: str
    match: Match
    own: Compared


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
    kept: KeptEntries = NOTHING,
    replayed: bool = False,
) -> Regression:
    """HEAD compared with BASE.

    ``gates`` are thresholds by name (see ``harness.figures.gate``); None takes those of HEAD's recipe. ``override``
    replaces single ones. If nobody names any, the usual ones apply. Other metrics are compared by their default
    thresholds and decide nothing, unless ``strict`` makes them all gates. Over all gates together, the probability of
    a false regression is at most ``alpha``, and so is that of a false "unchanged".
    What two cases give is taken from ``kept`` if it is there. ``replayed``: HEAD asks BASE's questions again.
    Raises ResultsError if the two sides have no case in common.
    """
    theirs = cases(base)
    ours = theirs if head is base else cases(head)
    matches = match(theirs, ours, replayed)
    if not matches.both:
        raise ResultsError(_nothing_in_common(names, theirs, ours))
    thresholds, whence = (gates, origin or "given") if gates is not None else _recipes_gates(ours)
    if override:
        thresholds, whence = {**thresholds, **override}, f"{whence}, overridden" if thresholds else "given"
    asked = _asked(thresholds, strict)
    known = {variant(case.spec) for case in theirs.values()} if matches.new else frozenset[str]()
    unanswered = [Match(Case(()), case) for case in matches.new if variant(case.spec) in known]
    found = beside_baseline(_findings(matches.both, unanswered, asked, alpha, kept), matches.both)
    found += [gone(case) for case in matches.gone]
    methods = named(theirs) | (named(ours) if ours is not theirs else {})
    found = [
        each if each.method == methods[each.case_id] else replace(each, method=methods[each.case_id]) for each in found
    ]
    measured = {finding.metric for finding in found}
    return Regression(
        base=_side(names[0], theirs, damaged[0], kept),
        head=_side(names[1], ours, damaged[1], kept),
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
    matches: Sequence[Match], unanswered: Sequence[Match], asked: Sequence[Gated], alpha: float, kept: KeptEntries
) -> list[Finding]:
    """``unanswered`` are runs that only HEAD has, of variants that BASE has: their results cannot be compared."""
    about = as_text([alpha, [(each.name, each.threshold, each.in_force) for each in asked]])
    measured = [*(each for each in matches if each.base.measured and each.head.measured), *unanswered]
    found = [_Measured(variant(each.head.spec), each, compared(each, asked, alpha, about, kept)) for each in measured]
    identical, sizes = _identical(found), _sizes_once(found)
    drafts: list[Finding | Pending] = [ended for each in matches if (ended := ending(each))]
    for one in found:
        drafts += (
            draft
            for each in one.own.drafts
            if (draft := each.finding or each.pending)
            and (not each.sides or sizes[one.variant, each.metric] is one.own)
        )
    return _judged([_by_identity(draft, identical) for draft in drafts])


def _sizes_once(found: Sequence[_Measured]) -> dict[tuple[str, str], Compared]:
    """By variant and gate, the match that a size is taken from: several runs of a variant give the same ones.

    A match in which both sides know it has priority over one in which only one side does.
    """
    best: dict[tuple[str, str], tuple[int, Compared]] = {}
    for one in sorted(found, key=lambda each: each.match.head.rank):
        for draft in one.own.drafts:
            if not draft.sides:
                continue
            key = (one.variant, draft.metric)
            if draft.sides > (best[key][0] if key in best else 0):
                best[key] = draft.sides, one.own
    return {key: chosen for key, (_, chosen) in best.items()}


def _identical(found: Sequence[_Measured]) -> frozenset[str]:
    """The cases of variants that compute exactly the same function: all their likelihoods are equal, bit for bit."""
    seen: dict[str, bool] = {}
    for one in found:
        if one.own.identical is not None:
            seen[one.variant] = seen.get(one.variant, True) and one.own.identical
    return frozenset(one.match.head.spec.case_id for one in found if seen.get(one.variant))


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
    variants: dict[tuple[str, str, str], list[Finding]] = {}
    for each in findings:
        variants.setdefault((each.model, each.method, each.engine), []).append(each)
    key: Callable[[Finding], tuple[int, str, str]] = lambda each: (ranks[each.metric], each.where, each.case_id)  # noqa: E731
    return [each for name in sorted(variants) for each in sorted(variants[name], key=key)]


def _side(name: str, found: Mapping[str, Case], damaged: Sequence[Damaged], kept: KeptEntries) -> Side:
    counted = {run.session for case in found.values() for run in case.runs}
    doubts = {
        title(case): why
        for case in found.values()
        if isinstance(case.spec.job, MeasureQuality) and case.spec.is_baseline and case.well
        if (why := kept.implausible(case.spec.model, case.well[-1]))
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
