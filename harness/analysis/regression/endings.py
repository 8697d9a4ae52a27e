"""Whether what worked in BASE still works in HEAD."""

from __future__ import annotations

from dataclasses import replace

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import RUNS, Finding
from harness.analysis.regression.matching import Match


def ending(match: Match) -> Finding | None:
    """A finding where a run failed on either side; None where all ended well on both."""
    base, head = match.base, match.head
    blank = replace(_blank(head), base=_share(base), head=_share(head))
    if base.status == head.status == "ok":
        if len(head.well) == len(head.runs):
            return None
        again = "as in BASE" if len(base.well) < len(base.runs) else "all of BASE's ended well"
        told = f"{len(head.well)} of {len(head.runs)} repetitions ended well; {again}; {head.reason}"
        return replace(blank, verdict="inconclusive", reasons=(told,), gated=again != "as in BASE")
    if base.status != "ok" and head.status != "ok":
        return replace(blank, verdict="unchanged", gated=False, reasons=(f"fails on both sides: {head.reason}",))
    if head.status == "ok":
        return replace(blank, verdict="improved", reasons=(f"failed in BASE: {base.reason}",))
    bars = match.bars if match.one_machine else (*match.bars, "hardware differs")
    return replace(
        blank,
        verdict="incomparable" if bars else "regressed",
        reasons=(f"worked in BASE, {head.status.replace('_', ' ')} in HEAD: {head.reason}", *bars),
    )


def gone(case: Case) -> Finding:
    """What BASE measured and HEAD did not try: not a pass, unless it had failed before."""
    why = "gone from HEAD" if case.well else f"gone from HEAD; it failed in BASE: {case.reason}"
    return replace(_blank(case), base=_share(case), gated=bool(case.well), reasons=(why,))


def title(case: Case) -> str:
    spec = case.spec
    return f"{spec.variant}: {asked(case)}"


def asked(case: Case) -> str:
    """Which run a finding speaks of."""
    spec = case.spec
    what = spec.task.name if spec.task else spec.perplexity.protocol if spec.perplexity else ""
    return f"{spec.kind} {what}".strip()


def _blank(case: Case) -> Finding:
    spec = case.spec
    return Finding(
        case_id=spec.case_id,
        model=spec.model.label,
        method=spec.method.label,
        engine=spec.engine,
        metric=RUNS,
        where=asked(case),
        verdict="incomparable",
        gated=True,
        unit="ended well",
    )


def _share(case: Case) -> float:
    return len(case.well) / len(case.runs)
