"""What happened in the answers that a variant wrote, each figure paired with the baseline's, and what several show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.core.record import Measurement
from harness.core.run import HourlyPrice, RunSpec
from harness.figures.ask import Ask, LimitOption, Objective, Reading, Ties, Use, measured, share
from harness.figures.derived.answers import (
    MAJORITY,
    PASS,
    SCORE_MARGIN,
    SECONDS_PER_RIGHT,
    SEED_SPREAD,
    TOKENS_PER_RIGHT,
    key_of,
)
from harness.figures.figure import Figure, Note, Value
from harness.figures.formats import PERCENT, SIGNED_PERCENT, NumberStyle, signed
from harness.figures.gate import Gate
from harness.figures.notes import judgement, verdict_note
from harness.figures.statistic import Items
from harness.figures.table import AnswerFigure, AnswersKey, Table, VariantRow
from harness.stats.estimate import clustered_mean
from harness.stats.shares import mean_share
from harness.tasks.aspects import ASPECTS, LOOPS, LOST, TOKENS, TRUNCATED, Aspect

GROUP, SAMPLES = "Answers", "Samples"
POINTS = NumberStyle("points", signed, 100)
BY_ANSWER = (
    "paired answer by answer with the baseline, over questions, with its 95% interval; the word below holds for all "
    "words on answers of the table at once"
)


def _places(name: str) -> Callable[[Table], tuple[AnswersKey, ...]]:
    def places(table: Table) -> tuple[AnswersKey, ...]:
        return tuple(dict.fromkeys(each.key for row in table.rows for each in row.answers if each.name == name))

    return places


def _of(name: str, pick: Callable[[AnswerFigure], Value]) -> Callable[[VariantRow, AnswersKey], Value]:
    return lambda row, key: None if (found := row.answer_figure(name, key)) is None else pick(found)


def _where(spec: RunSpec, measurement: Measurement) -> str:
    return key_of(measurement).label


def _pair(
    name: str,
    group: str,
    heading: str,
    help: str,
    direction: str,
    written: NumberStyle,
    changed: NumberStyle,
    gate: Gate | None = None,
    items: Items | None = None,
    ask: Ask | None = None,
    key: bool = False,
) -> tuple[Figure[AnswersKey], ...]:
    """A figure, its difference from the baseline's, and the verdict on that."""
    places = _places(name)
    value = Figure(
        name,
        group,
        heading,
        f"{{place}}: {help}",
        _of(name, lambda found: found.estimate),
        direction,  # type: ignore[arg-type]
        written,
        places,
        f"{{place}}_{name}",
        interval=True,
        key=key,
        statistic=items,
        gate=gate,
        ask=ask,
    )
    if direction == "neither":
        return (value,)

    def notes(row: VariantRow, place: AnswersKey) -> tuple[Note, ...]:
        found = row.answer_figure(name, place)
        if found is None or found.comparison is None:
            return ()
        return verdict_note(found.comparison) if written is PERCENT else (Note(found.comparison.verdict),)

    change = Figure(
        f"{name}_change",
        group,
        f"Δ {heading}",
        f"{{place}}: difference of {heading}, {BY_ANSWER}.",
        _of(name, lambda found: found.change),
        direction,  # type: ignore[arg-type]
        changed,
        places,
        f"{{place}}_{name}_change",
        interval=True,
        notes=notes,
        key=key,
    )

    def compared(row: VariantRow, place: AnswersKey):  # type: ignore[no-untyped-def]
        found = row.answer_figure(name, place)
        return found.comparison if found else None

    judged = judgement(group, f"{name}_change", compared, places, f"{{place}}_{name}_change")
    return (value, change, *judged)


def _read_worst(name: str) -> Callable[[VariantRow, Use], Reading]:
    """The figure in the task in which it is largest."""

    def read(row: VariantRow, use: Use) -> Reading:
        found = [(key, row.answer_figure(name, key)) for key in _places(name)(use.table)]
        if not found:
            return Reading(None, "no task with written answers was run")
        missing = next((key for key, each in found if each is None), None)
        if missing is not None:
            return Reading(None, f"{missing.label} not measured")
        key, worst = max(found, key=lambda each: each[1].estimate.value if each[1] else 0.0)
        return measured(worst.estimate if worst else None, key.label)

    return read


def _limit(aspect: Aspect, option: str, words: str, rank: int) -> Ask:
    return Ask(
        aspect.heading,
        LimitOption(
            option,
            share,
            "SHARE",
            f"{aspect.help.removesuffix('.')}: for every task, as a share of its answers.",
            f"≤ {{}}% of answers {words} in any task",
            rank=rank,
        ),
        read=_read_worst(aspect.name),
        format=PERCENT,
        explained=True,
    )


_ASKS = {
    TRUNCATED.name: _limit(TRUNCATED, "max-truncated", "truncated", 62),
    LOOPS.name: _limit(LOOPS, "max-loops", "looping", 64),
}


def _of_aspect(aspect: Aspect) -> tuple[Figure[AnswersKey], ...]:
    shared = aspect.unit == "share"
    judged = aspect.direction != "neither"
    gate = Gate("points" if shared else "relative", aspect.margin, f"{aspect.heading} of answers", usual=False)
    return _pair(
        aspect.name,
        GROUP,
        aspect.heading,
        aspect.help,
        aspect.direction,
        PERCENT if shared else NumberStyle("" if aspect.unit == "token" else aspect.unit),
        POINTS if shared else NumberStyle(write=signed),
        gate if judged else None,
        Items(aspect.name, mean_share if shared else clustered_mean, where=_where),
        _ASKS.get(aspect.name),
    )


def _spread_notes(row: VariantRow, key: AnswersKey) -> tuple[Note, ...]:
    found = row.answer_figure(SEED_SPREAD, key)
    return (Note(found.estimate.method),) if found else ()


SPREAD = Figure(
    SEED_SPREAD,
    SAMPLES,
    "spread of seeds",
    "{place}: standard deviation of the score from one sample of every question to the next, and its range. Two "
    "variants that differ by less would not be told apart by one sample of each.",
    _of(SEED_SPREAD, lambda found: found.estimate.value),
    "neither",
    NumberStyle("points", factor=100),
    _places(SEED_SPREAD),
    f"{{place}}_{SEED_SPREAD}",
    notes=_spread_notes,
)


@dataclass(frozen=True)
class PassKey:
    """The chance of a right answer among ``k`` answers of a task."""

    key: AnswersKey
    k: int

    @property
    def name(self) -> str:
        return f"{self.key.name}_pass_at_{self.k}"

    @property
    def label(self) -> str:
        return f"{self.key.label}: pass@{self.k}"


def _passes(table: Table) -> tuple[PassKey, ...]:
    found = [
        PassKey(each.key, int(each.name.removeprefix(f"{PASS}_")))
        for row in table.rows
        for each in row.answers
        if each.name.startswith(f"{PASS}_")
    ]
    return tuple(dict.fromkeys(found))


def _passed(row: VariantRow, place: PassKey) -> AnswerFigure | None:
    return row.answer_figure(f"{PASS}_{place.k}", place.key)


def _is_last(table: Table, place: PassKey) -> bool:
    return place.k == max(each.k for each in _passes(table) if each.key == place.key)


def _pass_notes(row: VariantRow, place: PassKey) -> tuple[Note, ...]:
    found = _passed(row, place)
    return verdict_note(found.comparison) if found else ()


PASS_AT = Figure(
    "pass_at",
    SAMPLES,
    lambda table, place: f"pass@{place.k}",
    lambda table, place: (
        f"{place.key.label}: the chance that one of {place.k} answers is right, by the unbiased estimator of Chen et "
        "al., arXiv:2107.03374; 95% interval over questions, exact if each question counts as 0 or 1."
    ),
    lambda row, place: found.estimate if (found := _passed(row, place)) else None,
    "higher",
    PERCENT,
    _passes,
    "{place}",
    _is_last,
    interval=True,
)
PASS_AT_CHANGE = Figure(
    "pass_at_change",
    SAMPLES,
    lambda table, place: f"Δ pass@{place.k}",
    lambda table, place: f"{place.key.label}: difference of pass@{place.k}, {BY_ANSWER}.",
    lambda row, place: found.change if (found := _passed(row, place)) else None,
    "higher",
    POINTS,
    _passes,
    "{place}_change",
    _is_last,
    interval=True,
    notes=_pass_notes,
)


@dataclass(frozen=True)
class PricedAnswers:
    """A task's answers, at a price."""

    key: AnswersKey
    price: HourlyPrice

    @property
    def name(self) -> str:
        return f"{self.key.name}_{self.price.currency.lower()}_per_right_answer"

    @property
    def label(self) -> str:
        return f"{self.key.label}, at {self.price.per_hour:g} {self.price.currency} per hour"


def _priced(table: Table) -> tuple[PricedAnswers, ...]:
    price = table.price
    return tuple(PricedAnswers(key, price) for key in _places(SECONDS_PER_RIGHT)(table)) if price else ()


def _cost(row: VariantRow, place: PricedAnswers) -> Value:
    found = row.answer_figure(SECONDS_PER_RIGHT, place.key)
    if found is None:
        return None
    rate = place.price.per_hour / 3600
    ends = [None if end is None else end * rate for end in (found.estimate.low, found.estimate.high)]
    return replace(found.estimate, value=found.estimate.value * rate, low=ends[0], high=ends[1])


TOKENS_PER_RIGHT_ANSWER = Figure(
    TOKENS_PER_RIGHT,
    GROUP,
    "tokens per right answer",
    "{place}: all tokens written, over the right answers; 95% interval over questions.",
    _of(TOKENS_PER_RIGHT, lambda found: found.estimate),
    "lower",
    NumberStyle(),
    _places(TOKENS_PER_RIGHT),
    f"{{place}}_{TOKENS_PER_RIGHT}",
    interval=True,
    ask=Ask(
        "tokens per right answer",
        None,
        Objective(
            "tokens", "the fewest tokens per right answer", "not distinguishable by tokens per right answer from", 70
        ),
        Ties(tolerance=0.01),
        _read_worst(TOKENS_PER_RIGHT),
        explained=True,
    ),
)
TOKENS_PER_RIGHT_CHANGE = Figure(
    f"{TOKENS_PER_RIGHT}_change",
    GROUP,
    "Δ tokens per right answer",
    "{place}: relative change of tokens per right answer, paired with the baseline; 95% interval over questions.",
    _of(TOKENS_PER_RIGHT, lambda found: found.change),
    "lower",
    SIGNED_PERCENT,
    _places(TOKENS_PER_RIGHT),
    f"{{place}}_{TOKENS_PER_RIGHT}_change",
    interval=True,
)
ONE_RUN = "of one run, whose batches the engine chose; the interval over questions says nothing about another run"
SECONDS_PER_RIGHT_ANSWER = Figure(
    SECONDS_PER_RIGHT,
    GROUP,
    "seconds per right answer",
    f"{{place}}: all seconds of writing, over the right answers, {ONE_RUN}.",
    _of(SECONDS_PER_RIGHT, lambda found: found.estimate),
    "neither",
    NumberStyle("s"),
    _places(SECONDS_PER_RIGHT),
    f"{{place}}_{SECONDS_PER_RIGHT}",
    interval=True,
)
COST_PER_RIGHT_ANSWER = Figure(
    "cost_per_right_answer",
    GROUP,
    "cost per right answer",
    f"{{place}}: seconds per right answer at that price, {ONE_RUN}.",
    _cost,
    "neither",
    lambda table, place: NumberStyle(place.price.currency),
    _priced,
    "{place}",
    interval=True,
)
_OF_ASPECTS = tuple(figure for aspect in ASPECTS for figure in _of_aspect(aspect))
DRAWN = tuple(each for each in _OF_ASPECTS if each.name in {TOKENS.name, TRUNCATED.name, LOST.name, LOOPS.name})
"""The figures of a plot: how long answers are, and what kept them from a right end."""
FIGURES = (
    SPREAD,
    *_pair(
        MAJORITY,
        SAMPLES,
        "majority",
        "score of the answer given most often, ties divided; 95% interval over questions, exact if each question "
        "counts as 0 or 1.",
        "higher",
        PERCENT,
        POINTS,
        Gate("points", SCORE_MARGIN, "score of the majority's answers", usual=False),
        Items("task_majority", mean_share, where=_where),
    ),
    PASS_AT,
    PASS_AT_CHANGE,
    *_OF_ASPECTS,
    TOKENS_PER_RIGHT_ANSWER,
    TOKENS_PER_RIGHT_CHANGE,
    SECONDS_PER_RIGHT_ANSWER,
    COST_PER_RIGHT_ANSWER,
)
