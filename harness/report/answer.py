"""The answer to a query in one sentence per model, and what is uncertain about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.analysis.choice import Candidate, Check, Recommendation
from harness.analysis.query import Limit, Query, default_limits
from harness.analysis.recommend import pick
from harness.analysis.summaries import Summaries
from harness.analysis.ties import SURE, ties_of
from harness.core.label import Label
from harness.core.record import Damaged
from harness.figures.ask import Ask, Objective, Reading, Use
from harness.figures.divergence import KL
from harness.figures.figure import Figure
from harness.figures.formats import BINARY, DECIMAL, NumberStyle, SizeUnit, significant, size_unit
from harness.figures.notes import interval_note, with_interval
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.serving import CAPACITY
from harness.figures.table import Table, VariantRow

MOST_TIES = 3
"""Maximum number of equally good variants that are named; more are counted."""
MOST_DAMAGED = 3
"""Maximum number of damaged records that an answer names; more are counted."""
NOTABLE = 0.05
"""The share of draws from which another variant is named next to the pick."""


@dataclass(frozen=True)
class Answer:
    """``question`` and ``finding`` are the two halves of the sentence; ``variant`` is the pick's label, or None.

    ``short`` names the pick or says why there is none, ``facts`` are its size, speed and quality, and ``ties`` says
    what decided between equals. ``uncertain`` says why the choice may not hold; ``noted`` has the labels of its row.
    """

    question: str
    variant: str | None
    short: str
    facts: tuple[str, ...] = ()
    ties: str = ""
    uncertain: tuple[str, ...] = ()
    noted: tuple[Label, ...] = ()

    @property
    def finding(self) -> str:
        return "; ".join(part for part in (self.short, ", ".join(self.facts), self.ties) if part)

    @property
    def sentence(self) -> str:
        return f"{self.question}: {self.finding}"


def default_answer(table: Table, damaged: Sequence[Damaged] = (), summaries: Summaries | None = None) -> Answer | None:
    """The answer for the recipe's budget and 1% of perplexity; None where no size was measured, since it asks for one.

    Where no quality was measured: for the largest load that a server holds, which it says; None without such a load.
    """
    limits = default_limits(table)
    if any(ask_of(limit.figure).of_quality for limit in limits):
        found = pick(table, Query(limits), damaged, summaries)
        sized = any(each.objective.estimate for each in (*found.admissible, *found.rejected))
        return answer(found) if sized or found.untrusted else None
    if not any(ladder.capacity for row in table.rows for ladder in row.ladders):
        return None
    held = answer(pick(table, Query(limits, CAPACITY), damaged, summaries))
    return replace(held, uncertain=("no quality was measured", *held.uncertain))


def answer(found: Recommendation) -> Answer:
    chosen = found.pick
    if chosen is None:
        return Answer(_question(found), None, _nobody(found))
    return Answer(
        _question(found),
        chosen.row.label,
        name(chosen.row),
        tuple(sides(chosen.row, found.use)),
        _ties(found),
        tuple(_doubts(found, chosen)),
        chosen.row.labels,
    )


def name(row: VariantRow) -> str:
    """The variant's label, marked if it is the baseline, whose method may be called none."""
    return f"{row.label} (the baseline)" if row.is_baseline else row.label


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)


def limit_words(limit: Limit) -> str:
    """``≤ 8 GiB of memory``."""
    return limit.figure.limit.words.format(_bound(limit))


def ask_of(figure: Figure[Any]) -> Ask:
    assert figure.ask is not None
    return figure.ask


def objective_of(figure: Figure[Any]) -> Objective:
    objective = ask_of(figure).objective
    assert objective is not None
    return objective


def reading_words(figure: Figure[Any], reading: Reading, unit: SizeUnit | None = None) -> str:
    """The figure with its interval and unit, or why it is missing. Sizes are in ``unit`` if it is given."""
    estimate, ask = reading.estimate, ask_of(figure)
    if estimate is None:
        return reading.basis
    if ask.sizes:
        if unit is None or not 0.01 <= estimate.value / unit.bytes < 10_000:
            unit = size_unit([int(estimate.value)], ask.sizes)
        least = "at least " if estimate.high is not None and estimate.high > estimate.value else ""
        words = f"{least}{significant(estimate.value / unit.bytes)} {unit.name}"
    else:
        form = _format(figure)
        words = with_interval(estimate, form.text, _suffix(form))
    if reading.includes:
        words = f"{words}, {reading.includes}"
    return f"{words} ({reading.basis})" if reading.basis and ask.explained else words


def bound_unit(limit: Limit) -> SizeUnit | None:
    """The unit of a size's bound, in which figures beside it are written too."""
    return _size_unit(limit.bound) if ask_of(limit.figure).sizes else None


def reasons(candidate: Candidate) -> tuple[str, ...]:
    """Why a variant was rejected: each value with its limit."""
    if candidate.barred:
        return (candidate.barred.sentence,)
    found = [_reason(each) for each in candidate.missed]
    lacking = candidate.objective.estimate is None and not found
    return (f"the objective: {candidate.objective.basis}",) if lacking else tuple(found)


def sides(row: VariantRow, use: Use) -> list[str]:
    """Size, speed and quality relative to the baseline, and the largest load, as far as measured."""
    parts = []
    if row.size_ratio and not row.is_baseline:
        parts.append(_size(row.size_ratio))
    speed = row.speed_at(use.point) if use.point else None
    if speed and speed.decode_ratio:
        why = "".join(f" ({note.text})" for note in interval_note(speed.decode_ratio))
        fast = f"decodes {with_interval(speed.decode_ratio, significant, '×')}{why} as fast as {_baseline_of(row)}"
        parts.append(fast)
    load = CAPACITY.read(row, use)
    if load.estimate:
        parts.append(f"holds {with_interval(load.estimate, significant)} {load.basis} at the SLO")
    quality = PERPLEXITY_CHANGE if row.perplexity_change else KL if row.kl_mean and not row.is_baseline else None
    if quality:
        parts.append(f"{ask_of(quality).name} {reading_words(quality, quality.read(row, use))}")
    return parts


def _baseline_of(row: VariantRow) -> str:
    """The baseline that was timed, and its engine if that is not the variant's."""
    timed = row.evidence.baseline_performance if row.evidence else ()
    engine = timed[0].spec.engine_label if timed else row.engine
    return "the baseline" if engine == row.engine else f"the baseline on {engine}"


def _ties(found: Recommendation) -> str:
    """Which variants tie on the objective, and what decided between them."""
    parts = []
    for tie in found.ties[:MOST_TIES]:
        equal = f"{objective_of(found.query.objective).equal} {name(tie.row)}"
        if tie.decided_by is None or tie.ours is None or tie.theirs is None:
            parts.append(f"{equal}, which no other figure distinguishes from it")
            continue
        ours, theirs = (reading_words(tie.decided_by, reading) for reading in (tie.ours, tie.theirs))
        parts.append(f"{equal}, and better by {ties_of(tie.decided_by).words}: {ours} against {theirs}")
    more = len(found.ties) - MOST_TIES
    return "; ".join([*parts, *([f"likewise {more} more"] if more > 0 else [])])


def _question(found: Recommendation) -> str:
    asked = [limit_words(limit) for limit in found.query.limits]
    best = objective_of(found.query.objective).words
    if not asked:
        return best[0].upper() + best[1:]
    return f"For {listed(asked)}, {best}"


def _nobody(found: Recommendation) -> str:
    if found.untrusted:
        return f"not known; no quality figure relative to this baseline can be trusted: {_doubted(found)}"
    if found.unmeasured:
        lacking = dict.fromkeys(reason for each in found.rejected if each.open for reason in reasons(each))
        return f"not known; {'; '.join(lacking)}"
    if found.missing:
        return f"not known; {_left_out(found.missing)}, and no other variant meets the limits"
    nearest = found.nearest
    if nearest is None:
        return "no variant could be evaluated"
    nearest_words = f"no variant; the closest is {name(nearest.row)}: {'; '.join(reasons(nearest))}"
    binding = [limit_words(limit) for limit in found.binding]
    return (
        f"{nearest_words}. There would be one without the limit {' or without '.join(binding)}"
        if binding
        else nearest_words
    )


def _left_out(missing: Sequence[Damaged]) -> str:
    more = f" and {len(missing) - MOST_DAMAGED} more" if len(missing) > MOST_DAMAGED else ""
    named = "; ".join(each.sentence for each in missing[:MOST_DAMAGED])
    return f"{'a damaged record was' if len(missing) == 1 else 'damaged records were'} left out ({named}{more})"


def _doubted(found: Recommendation) -> str:
    return "; ".join(each.finding for each in found.untrusted)


def _doubts(found: Recommendation, chosen: Candidate) -> list[str]:
    doubts = [_doubt(each) for each in chosen.checks if each.standing == "probably met"]
    if not chosen.objective.bounded:
        why = f" ({chosen.objective.basis})" if chosen.objective.basis else ""
        doubts.append(f"{objective_of(found.query.objective).words} was decided by a figure without an interval{why}")
    doubts += _rivals(found, chosen)
    second = found.admissible[1] if len(found.admissible) > 1 else None
    if second and found.lead is not None and 1 - SURE < found.lead < SURE:
        doubts.append(
            f"it cannot be distinguished from {name(second.row)}: it is better in {_share(found.lead)} of draws"
        )
    certain = found.certain_pick
    if certain is not chosen:
        doubts.append(
            f"the first that meets every limit with certainty is {name(certain.row)}"
            if certain
            else "no variant meets every limit with certainty"
        )
    return [*doubts, *([_left_out(found.missing)] if found.missing else [])]


def _rivals(found: Recommendation, chosen: Candidate) -> list[str]:
    """How often random draws make it the pick, and which others."""
    if chosen.pick_probability is None or chosen.pick_probability >= SURE:
        return []
    others = sorted(
        (each for each in (*found.admissible, *found.rejected) if each is not chosen and each.pick_probability),
        key=lambda each: -(each.pick_probability or 0),
    )
    named = [
        f"{name(each.row)} in {_share(each.pick_probability or 0)}"
        for each in others
        if (each.pick_probability or 0) >= NOTABLE
    ]
    if found.none_probability >= NOTABLE:
        named.append(f"no variant in {_share(found.none_probability)}")
    return [", ".join([f"it is the pick in {_share(chosen.pick_probability)} of {found.draws} draws", *named])]


def _doubt(check: Check) -> str:
    words = reading_words(check.limit.figure, check.reading, bound_unit(check.limit))
    called, beyond = ask_of(check.limit.figure).name, _beyond(check.limit)
    if not check.reading.bounded:
        return f"{called} {words} has no interval, so it may be {beyond}"
    return f"{called} {words} may be {beyond}"


def _reason(check: Check) -> str:
    words = reading_words(check.limit.figure, check.reading, bound_unit(check.limit))
    if check.reading.estimate is None:
        return f"{ask_of(check.limit.figure).name}: {words}"
    perhaps = ", although the interval includes the limit" if check.standing == "probably missed" else ""
    return f"{ask_of(check.limit.figure).name} {words}, {_beyond(check.limit)}{perhaps}"


def _beyond(limit: Limit) -> str:
    """``above 1%``."""
    suffix = "" if ask_of(limit.figure).sizes else _suffix(_format(limit.figure))
    return f"{'above' if limit.figure.direction == 'lower' else 'below'} {_bound(limit)}{suffix}"


def _size(ratio: float) -> str:
    if ratio < 1:
        return f"{significant(1 / ratio)}× smaller than 16-bit"
    return "as large as 16-bit" if ratio == 1 else f"{significant(ratio)}× as large as 16-bit"


def _bound(limit: Limit) -> str:
    if ask_of(limit.figure).sizes:
        unit = _size_unit(limit.bound)
        return f"{limit.bound / unit.bytes:.4g} {unit.name}"
    return f"{limit.bound * _format(limit.figure).factor:.6g}"


def _format(figure: Figure[Any]) -> NumberStyle:
    """How an answer writes it: as its column does, unless its declaration says otherwise."""
    own = ask_of(figure).format
    if own is not None:
        return own
    return figure.format if isinstance(figure.format, NumberStyle) else NumberStyle()


def _suffix(form: NumberStyle) -> str:
    return form.unit if form.unit in ("", "%") else f" {form.unit}"


def _size_unit(count: float) -> SizeUnit:
    """The unit that makes the size a short number, as users write it; binary on a tie."""
    fitting = [unit for unit in (*BINARY, *DECIMAL) if count >= unit.bytes]
    return min(fitting or [BINARY[-1]], key=lambda unit: len(f"{count / unit.bytes:.10g}"))


def _share(value: float) -> str:
    return f"{value:.0%}" if 0.01 <= value <= 0.99 else f"{value:.1%}"
