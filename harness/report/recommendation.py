"""What readers see of a recommendation, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from harness.analysis.choice import Candidate, Recommendation
from harness.analysis.ties import Tie
from harness.core.json_values import finite_text
from harness.core.label import codes
from harness.figures.ask import Reading
from harness.figures.formats import BLANK
from harness.figures.memory import MEMORY
from harness.report.answer import (
    Answer,
    answer,
    ask_of,
    bound_unit,
    limit_words,
    name,
    objective_of,
    reading_words,
    reasons,
)
from harness.report.escape import json_text as json_escaped
from harness.report.shown_recommendation import ShownRecommendation


def shown(found: Recommendation) -> ShownRecommendation:
    conclusion = answer(found)
    return ShownRecommendation(
        model=found.table.model,
        question=conclusion.question,
        finding=conclusion.finding,
        uncertain=conclusion.uncertain,
        warnings=tuple(label.sentence for label in (*conclusion.noted, *found.table.labels)),
        place=_place(found),
        headings=_headings(found),
        admissible=tuple(_cells(found, rank, each) for rank, each in enumerate(found.admissible, 1)),
        rejected=tuple((name(each.row), "; ".join(reasons(each))) for each in found.rejected),
        json_line=_json_line(found, conclusion),
        has_pick=found.pick is not None,
        is_unknown=found.unknown,
        holds=found.holds,
    )


def _headings(found: Recommendation) -> tuple[str, ...]:
    """For the table of admissible variants: the objective if it has no limit, and each limit."""
    names = [limit_words(limit) for limit in found.query.limits]
    return ("", "variant", *([] if _limited(found) else [ask_of(found.query.objective).name]), *names, "pick")


def _cells(found: Recommendation, rank: int, candidate: Candidate) -> tuple[str, ...]:
    """One admissible variant under those headings."""
    kept = [
        reading_words(check.limit.figure, check.reading, bound_unit(check.limit))
        + (" ?" if check.standing == "probably met" else "")
        for check in candidate.checks
    ]
    chance = BLANK if candidate.pick_probability is None else f"{candidate.pick_probability:.1%}"
    if not _limited(found):
        kept.insert(0, reading_words(found.query.objective, candidate.objective))
    return (str(rank), name(candidate.row), *kept, chance)


def _limited(found: Recommendation) -> bool:
    """Whether the objective has a limit too."""
    return any(limit.figure is found.query.objective for limit in found.query.limits)


def _place(found: Recommendation) -> str:
    """The machine, the protocol, and the point to which speed and memory refer."""
    use = found.use
    parts = [found.table.hardware, f"perplexity protocol: {found.table.protocol}"]
    if use.point:
        parts.append(f"speed at {use.point.label}")
    if MEMORY in found.query.figures:
        beyond = "" if use.measured else ", extrapolated from smaller measurements"
        parts.append(f"memory of {use.batch} × {use.tokens} tokens{beyond}")
    return "; ".join(parts)


def json_line(found: Recommendation) -> str:
    """One line: the query, the answer, every variant with its figures. An infinite figure is null."""
    return _json_line(found, answer(found))


def _json_line(found: Recommendation, conclusion: Answer) -> str:
    text = finite_text(
        {
            "model": found.table.model,
            "hardware": found.table.hardware,
            "protocol": found.table.protocol,
            "point": found.use.point.label if found.use.point else None,
            "load": found.use.level,
            "memory_at": {"batch": found.use.batch, "tokens": found.use.tokens},
            "objective": objective_of(found.query.objective).name,
            "limits": [{"limit": limit.option, "bound": limit.bound} for limit in found.query.limits],
            "sentence": conclusion.sentence,
            "pick": conclusion.variant,
            "holds": found.holds,
            "implausible_baseline": [asdict(each) for each in found.table.implausible],
            "certain_pick": found.certain_pick.row.label if found.certain_pick else None,
            "uncertain": conclusion.uncertain,
            "draws": found.draws,
            "none_probability": found.none_probability,
            "better_than_second_probability": found.lead,
            "ties": [{"variant": tie.row.label, "decided_by": _decided_by(tie)} for tie in found.ties],
            "nearest": found.nearest.row.label if found.nearest else None,
            "binding": [limit.option for limit in found.binding],
            "admissible": [_candidate(each) for each in found.admissible],
            "fallen": [_rejected(each) for each in found.rejected],
        }
    )
    return json_escaped(text)


def _decided_by(tie: Tie) -> str | None:
    """The tie-breaker's name as an objective, if it can be one; otherwise its own name."""
    figure = tie.decided_by
    if figure is None:
        return None
    objective = ask_of(figure).objective
    return objective.name if objective else figure.name


def _candidate(each: Candidate) -> Mapping[str, object]:
    return {
        "variant": each.row.label,
        "baseline": each.row.is_baseline,
        "labels": [label.sentence for label in each.row.labels],
        "label_codes": codes(each.row.labels),
        "pick_probability": each.pick_probability,
        "objective": _reading(each.objective),
        "limits": {
            check.limit.option: {**_reading(check.reading), "standing": check.standing} for check in each.checks
        },
    }


def _rejected(each: Candidate) -> Mapping[str, object]:
    barred_by = each.barred.code if each.barred else None
    return {**_candidate(each), "reasons": reasons(each), "barred_by": barred_by}


def _reading(reading: Reading) -> Mapping[str, object]:
    estimate = reading.estimate
    value, low, high = (estimate.value, estimate.low, estimate.high) if estimate else (None,) * 3
    found = {"value": value, "low": low, "high": high, "basis": reading.basis or None}
    return {**found, "includes": reading.includes} if reading.includes else found
