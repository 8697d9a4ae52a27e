"""A recommendation as Markdown and as JSON; what the terminal shows is made of the same words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from harness.analysis.aspects import AspectName, Figure
from harness.analysis.choice import Candidate, Recommendation
from harness.core.json_values import finite
from harness.core.label import codes
from harness.figures.formats import BLANK
from harness.report.answer import NAMES, answer, bound_unit, figure_words, limit_words, name, reasons
from harness.report.renderers.markdown import escape

FOOT = (
    "?: kept by the figure, but not by its whole interval. Pick: the share of draws from all intervals in which a "
    "variant is the first."
)


def headings(found: Recommendation) -> tuple[str, ...]:
    """Of the table of admissible variants: the objective where no limit is on it, and each limit."""
    names = [limit_words(limit) for limit in found.wish.limits]
    return ("", "variant", *([] if _limited(found) else [NAMES[found.wish.objective]]), *names, "pick")


def cells(found: Recommendation, rank: int, candidate: Candidate) -> tuple[str, ...]:
    """One admissible variant under those headings."""
    kept = [
        figure_words(check.limit.aspect, check.figure, bound_unit(check.limit))
        + (" ?" if check.standing == "probably met" else "")
        for check in candidate.checks
    ]
    chance = BLANK if candidate.pick_probability is None else f"{candidate.pick_probability:.1%}"
    if not _limited(found):
        kept.insert(0, figure_words(found.wish.objective, candidate.objective))
    return (str(rank), name(candidate.row), *kept, chance)


def _limited(found: Recommendation) -> bool:
    """Whether a limit is on what is to be best as well."""
    return any(limit.aspect == found.wish.objective for limit in found.wish.limits)


def place_words(found: Recommendation) -> str:
    """The machine, the protocol, and where speed and memory are looked at."""
    place, asked = found.place, {found.wish.objective, *(limit.aspect for limit in found.wish.limits)}
    said = [found.table.hardware, f"perplexity protocol: {found.table.protocol}"]
    if place.point:
        said.append(f"speed at {place.point.label}")
    if "memory" in asked:
        beyond = "" if place.measured else ", worked out from what was measured of fewer"
        said.append(f"memory of {place.batch} × {place.tokens} tokens{beyond}")
    return "; ".join(said)


def markdown(recommendations: Sequence[Recommendation]) -> str:
    """A section for each table; text of a record can neither mark anything up nor leave its cell."""
    return "\n\n".join(part for found in recommendations for part in _section(found)) + "\n"


def _section(found: Recommendation) -> Iterable[str]:
    said = answer(found)
    yield f"## {escape(found.table.model)}"
    yield f"**{escape(said.question)}:** {escape(said.finding)}."
    yield f"{escape(place_words(found))}."
    remarks = [*(f"Uncertain: {doubt}." for doubt in said.uncertain), *(f"⚠ {label.sentence}." for label in said.noted)]
    remarks += [f"⚠ {label.sentence}." for label in found.table.labels]
    if remarks:
        yield "\n".join(f"- {escape(remark)}" for remark in remarks)
    if found.admissible:
        rows = [cells(found, rank, each) for rank, each in enumerate(found.admissible, 1)]
        yield _grid([headings(found), *rows], numbers=True)
        yield FOOT
    if found.fallen:
        yield _grid([("fell", "why"), *((name(each.row), "; ".join(reasons(each))) for each in found.fallen)])


def _grid(rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    head, *body = ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
    columns = len(rows[0])
    rule = ["---"] * columns if not numbers else ["---:", "---", *["---:"] * (columns - 2)]
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])


def json_line(found: Recommendation) -> str:
    """One line: the question, the answer, every variant with its figures. A figure that is infinite is null."""
    said = answer(found)
    return json.dumps(
        finite(
            {
                "model": found.table.model,
                "hardware": found.table.hardware,
                "protocol": found.table.protocol,
                "point": found.place.point.label if found.place.point else None,
                "memory_at": {"batch": found.place.batch, "tokens": found.place.tokens},
                "objective": found.wish.objective,
                "limits": [{"limit": limit.option, "bound": limit.bound} for limit in found.wish.limits],
                "sentence": said.sentence,
                "pick": said.variant,
                "holds": found.holds,
                "implausible_baseline": [asdict(each) for each in found.table.implausible],
                "certain_pick": found.certain_pick.row.label if found.certain_pick else None,
                "uncertain": said.uncertain,
                "draws": found.draws,
                "none_probability": found.none_probability,
                "better_than_second_probability": found.lead,
                "ties": [{"variant": tie.row.label, "decided_by": tie.decided_by} for tie in found.ties],
                "nearest": found.nearest.row.label if found.nearest else None,
                "binding": [limit.option for limit in found.binding],
                "admissible": [_candidate(each, found.wish.objective) for each in found.admissible],
                "fallen": [_fallen(each, found.wish.objective) for each in found.fallen],
            }
        ),
        ensure_ascii=False,
        allow_nan=False,
    )


def _candidate(each: Candidate, objective: AspectName) -> Mapping[str, object]:
    return {
        "variant": each.row.label,
        "baseline": each.row.is_baseline,
        "labels": [label.sentence for label in each.row.labels],
        "label_codes": codes(each.row.labels),
        "pick_probability": each.pick_probability,
        "objective": _figure(each.objective),
        "limits": {check.limit.option: {**_figure(check.figure), "standing": check.standing} for check in each.checks},
    }


def _fallen(each: Candidate, objective: AspectName) -> Mapping[str, object]:
    barred_by = each.barred.code if each.barred else None
    return {**_candidate(each, objective), "reasons": reasons(each), "barred_by": barred_by}


def _figure(figure: Figure) -> Mapping[str, object]:
    estimate = figure.estimate
    value, low, high = (estimate.value, estimate.low, estimate.high) if estimate else (None,) * 3
    return {"value": value, "low": low, "high": high, "basis": figure.basis or None}
