"""Whether the unquantized model on the same engine changed too: then the cause is not the variant's quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.analysis.regression.cases import Case
from harness.analysis.regression.findings import RUNS, Finding
from harness.analysis.regression.matching import Match
from harness.core.identity import DecodeMode
from harness.core.model import MAIN_ENGINE
from harness.figures.formats import significant
from harness.figures.statistic import Items, PerProcess
from harness.plugins import gates

Place = tuple[DecodeMode, str]
"""How a case decodes and, if it is timed, on which node of HEAD's session."""
Key = tuple[str, str, str, str, Place | None]


def beside_baseline(findings: Sequence[Finding], matches: Sequence[Match]) -> list[Finding]:
    """The findings; for a change, adds how the unquantized model on the same engine changed between the same two sides.

    That is the machine or a shared library for a speed; for quality on another engine than that of the reference, the
    engine itself.
    """
    places = {each.head.spec.case_id: _place(each.head) for each in matches}
    base_ids = {each.head.spec.case_id for each in matches if each.head.spec.is_baseline}
    known = sorted(findings, key=_measured_again)  # of several, one that was compared counts
    theirs = {_key(found, places): found for found in known if found.case_id in base_ids and found.metric != RUNS}
    return [
        replace(found, reasons=(*found.reasons, *_baseline_note(found, theirs.get(_key(found, places)))))
        if found.verdict in ("improved", "regressed") and found.case_id not in base_ids
        else found
        for found in findings
    ]


def _place(case: Case) -> Place:
    return case.spec.decode_mode, case.runs[-1].node if case.spec.job.repeated else ""


def _key(found: Finding, places: Mapping[str, Place]) -> Key:
    return found.model, found.engine, found.metric, found.where, places.get(found.case_id)


def _baseline_note(own: Finding, baseline: Finding | None) -> tuple[str, ...]:
    if baseline is None:
        return ()
    statistic = gates()[baseline.metric].statistic
    if isinstance(statistic, PerProcess) and _measured_again(baseline):
        return (f"the unquantized baseline {_moved(baseline)}",)
    if isinstance(statistic, Items) and baseline.engine != MAIN_ENGINE:
        return (_engine_note(own, baseline),)
    return ()


def _measured_again(found: Finding) -> bool:
    """Whether two figures were compared, and not the same run with itself."""
    return found.change is not None or (found.n is not None and found.base != found.head)


def _moved(found: Finding) -> str:
    """``changed by +3.0% (unchanged)``; from what to what if no percentage says it."""
    if found.change is None:
        change = f"from {_figure(found.base, found.unit)} to {_figure(found.head, found.unit)}"
    elif found.verdict == "unchanged" and not round(found.change.value, 3):
        return "did not change"
    else:
        change = by(found.change.value)
    return f"changed {change} ({found.verdict})"


def by(change: float) -> str:
    """``by +3.0%``."""
    return f"by {change:+.1%}" if round(change, 3) else "by less than 0.05%"


def _figure(value: float | None, unit: str) -> str:
    return "no answer" if value is None else f"{significant(value)} {unit}".strip()


def engine_changed(engine: str, change: str, same_way: bool) -> str:
    """That an engine itself changed; ``change`` says how much its unquantized model did."""
    also = "" if same_way else ", the other way"
    return f"the engine itself changed{also}: the unquantized model on {engine} changed {change}"


def _engine_note(own: Finding, control: Finding) -> str:
    """Whether an engine itself changed, by what its unquantized model did."""
    moved = control.change.value if control.change else 0.0
    if control.verdict == "unchanged" and not (round(moved, 4) if control.relative else moved):
        return f"the unquantized model on {control.engine} did not change"
    if control.change is None:
        return f"the unquantized model on {control.engine} is {control.verdict}"
    value = f"{moved:+.2%}" if control.relative else f"{moved:+.3g} {control.unit}".strip()
    change = f"by {value} ({control.verdict})"
    if control.verdict in ("improved", "regressed"):
        return engine_changed(control.engine, change, control.verdict == own.verdict)
    return f"the unquantized model on {control.engine} changed {change}"
