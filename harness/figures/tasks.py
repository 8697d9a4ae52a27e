"""Task scores: each score, its difference from the baseline's, and what explains the difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.core.record import Measurement
from harness.core.run import RunSpec
from harness.figures.ask import Ask, LimitOption, Objective, Reading, Ties, Use, share
from harness.figures.control import with_engine_share
from harness.figures.derived.scores import SCORE_MARGIN, figure_of, headline
from harness.figures.figure import Figure, Note, Value
from harness.figures.formats import PERCENT, SIGNED_PERCENT, NumberStyle, signed
from harness.figures.gate import Gate
from harness.figures.notes import PAIRED, judgement, verdict_note
from harness.figures.statistic import Items
from harness.figures.table import Table, TaskKey, TaskScore, VariantRow
from harness.stats.comparison import Comparison
from harness.stats.estimate import Estimate

GROUP = "Tasks"
LARGE_LOSS = 0.05
"""A difference of accuracy that no speed makes up for."""


def _tasks(table: Table) -> tuple[TaskKey, ...]:
    return table.tasks


def _scores(table: Table, key: TaskKey) -> list[TaskScore]:
    return [score for row in table.rows if (score := row.task(key))]


def _is_headline(table: Table, key: TaskKey) -> bool:
    return any(score.headline for score in _scores(table, key))


def _is_share(table: Table, key: TaskKey) -> bool:
    return all(0 <= score.estimate.value <= 1 for score in _scores(table, key))


def _change_format(table: Table, key: TaskKey) -> NumberStyle:
    if any(score.relative for score in _scores(table, key)):
        return SIGNED_PERCENT
    return NumberStyle("points", signed, 100) if _is_share(table, key) else NumberStyle(write=signed)


def _of(pick: Callable[[TaskScore], Value]) -> Callable[[VariantRow, TaskKey], Value]:
    return lambda row, key: None if (score := row.task(key)) is None else pick(score)


def _compared(row: VariantRow, key: TaskKey) -> Comparison | None:
    score = row.task(key)
    return score.comparison if score else None


def _notes(row: VariantRow, key: TaskKey) -> tuple[Note, ...]:
    score = row.task(key)
    if score is None or not score.headline:
        return ()
    turned = (Note(f"{score.flips.right_to_wrong} lost, {score.flips.wrong_to_right} won"),) if score.flips else ()
    return (*verdict_note(score.comparison), *turned)


def _hidden(suffix: str, unit: str, pick: Callable[[TaskScore], Value]) -> Figure[TaskKey]:
    return Figure(
        f"task_{suffix}",
        GROUP,
        suffix,
        "",
        _of(pick),
        format=NumberStyle(unit),
        places=_tasks,
        column=f"{{place}}_{suffix}",
        shown=False,
    )


def _where(spec: RunSpec, measurement: Measurement) -> str:
    protocol = measurement.protocol
    filtered = "" if protocol.get("filter") in (None, "none") else f", {protocol['filter']}"
    return f"{protocol.get('task')} {protocol.get('score')}{filtered}"


def _unit(measurement: Measurement) -> str:
    return "perplexity" if measurement.unit.startswith("nat") else measurement.unit


ACCURACY = Figure(
    "accuracy",
    GROUP,
    "{place}",
    "Score on the task, with its 95% interval.",
    _of(lambda score: score.estimate),
    "higher",
    lambda table, key: PERCENT if _is_share(table, key) else NumberStyle(),
    _tasks,
    "{place}",
    _is_headline,
    interval=True,
    statistic=Items("task_score", figure_of, headline, _unit, _where),
    gate=Gate("points", SCORE_MARGIN, "a task's headline score, question by question", rank=40),
)
ACCURACY_CHANGE = Figure(
    "accuracy_change",
    GROUP,
    "Δ {place}",
    f"Difference of {{place}}, {PAIRED}. Lost are questions that only the baseline had right; won those that "
    "only the variant had right.",
    _of(lambda score: score.change),
    "higher",
    _change_format,
    _tasks,
    "{place}_change",
    _is_headline,
    interval=True,
    notes=_notes,
    key=True,
)


def _tasks_with_control(table: Table) -> tuple[TaskKey, ...]:
    return tuple(key for key in table.tasks if any(score.over_control for score in _scores(table, key)))


ACCURACY_OVER_CONTROL = Figure(
    "accuracy_over_control",
    GROUP,
    "Δ {place} over control",
    "Difference of {place} from that of the control, the unquantized model on the same engine; paired, with its 95% "
    "interval.",
    _of(lambda score: score.over_control),
    "higher",
    _change_format,
    _tasks_with_control,
    "{place}_over_control",
    _is_headline,
    interval=True,
)


def _read_drop(row: VariantRow, use: Use) -> Reading:
    """The largest drop over all tasks, for a score between 0 and 1; its interval is that of the worst case."""
    changes = _changes(row, use)
    if isinstance(changes, Reading):
        return changes
    drops = {score.key.label: _negative(change) for score, change in changes}
    worst = max(drops, key=lambda name: drops[name].value)
    lows, highs = [drop.low for drop in drops.values()], [drop.high for drop in drops.values()]
    known = all(low is not None for low in lows)
    own = {score.key.label: _engine_share(score) for score, _ in changes}[worst]
    found = Reading(
        replace(
            drops[worst],
            low=max(low for low in lows if low is not None) if known else None,
            high=max(high for high in highs if high is not None) if known else None,
        ),
        worst,
    )
    return _named(found, row, None if own is None else PERCENT.text(-own))


def _named(found: Reading, row: VariantRow, own: str | None) -> Reading:
    """The reading with its engine's share, in per cent; the baseline's is zero by definition and has none."""
    return found if row.is_baseline else with_engine_share(found, row, own and f"{own}%")


def _engine_share(score: TaskScore) -> float | None:
    """How much of a score's difference from the baseline's is the engine's own; None if it is not known."""
    change, over = score.change, score.over_control
    return change.value - over.value if change and over else None


def _read_gain(row: VariantRow, use: Use) -> Reading:
    """The mean change of all tasks' scores; their errors are assumed to be independent."""
    changes = _changes(row, use)
    if isinstance(changes, Reading):
        return changes
    gains = [change for _, change in changes]
    count, mean = len(gains), sum(change.value for change in gains) / len(gains)
    low = _reach([change.low for change in gains], gains)
    high = _reach([change.high for change in gains], gains)
    known = low is not None and high is not None
    estimate = Estimate(
        value=mean,
        low=mean - (low or 0) if known else None,
        high=mean + (high or 0) if known else None,
        n=min(change.n for change in gains),
        method="of the mean of independent tasks",
    )
    found = Reading(estimate, f"mean of {count} tasks")
    shares = [_engine_share(score) for score, _ in changes]
    own = sum(each for each in shares if each is not None) / count if None not in shares else None
    return _named(found, row, None if own is None else SIGNED_PERCENT.text(own))


def _reach(ends: Sequence[float | None], gains: Sequence[Estimate]) -> float | None:
    """How far the mean's interval extends to one side; None if an end is unknown."""
    reaches = [end - change.value for end, change in zip(ends, gains, strict=True) if end is not None]
    return math.hypot(*reaches) / len(gains) if len(reaches) == len(gains) else None


def _changes(row: VariantRow, use: Use) -> list[tuple[TaskScore, Estimate]] | Reading:
    """Each task's headline score minus the baseline's, higher being better; or what is missing."""
    wanted = use.table.remember("tasks with an accuracy", lambda: _with_accuracy(use.table))
    if not wanted:
        return Reading(None, "no task with an accuracy was run")
    changes = []
    for key in wanted:
        score = row.task(key)
        if score is None:
            return Reading(None, f"{key.label} not measured")
        change = Estimate(0, 0, 0, score.estimate.n, "the baseline") if row.is_baseline else score.change
        if change is None:
            return Reading(None, f"{key.label}: no like baseline to compare with")
        changes.append((score, change))
    return changes


def _with_accuracy(table: Table) -> tuple[TaskKey, ...]:
    scores = (score for row in table.rows for score in row.tasks)
    return tuple(dict.fromkeys(score.key for score in scores if score.headline and score.key.higher_is_better))


def _negative(estimate: Estimate) -> Estimate:
    low, high = estimate.low, estimate.high
    return replace(
        estimate,
        value=0 - estimate.value,
        low=None if high is None else 0 - high,
        high=None if low is None else 0 - low,
    )


def _nowhere(table: Table) -> tuple[TaskKey, ...]:
    return ()


ACCURACY_DROP = Figure(
    "accuracy_drop",
    GROUP,
    "Accuracy lost",
    "Points lost in the headline score of the task that lost most.",
    lambda row, key: None,
    "lower",
    PERCENT,
    _nowhere,
    None,
    ask=Ask(
        "accuracy lost",
        LimitOption(
            "max-accuracy-drop",
            share,
            "SHARE",
            "For every task, in points of its score: 1% is 0.01.",
            "≤ {}% accuracy lost in any task",
            rank=60,
        ),
        read=_read_drop,
        of_quality=True,
        explained=True,
    ),
)
ACCURACY_GAIN = Figure(
    "accuracy_gain",
    GROUP,
    "Accuracy gained",
    "Mean change of the headline scores of all tasks.",
    lambda row, key: None,
    "higher",
    SIGNED_PERCENT,
    _nowhere,
    None,
    ask=Ask(
        "accuracy gained",
        None,
        Objective("accuracy", "the highest accuracy", "not distinguishable by accuracy from", rank=30),
        Ties(harmless=SCORE_MARGIN, large=LARGE_LOSS, rank=30, words="change of accuracy"),
        _read_gain,
        of_quality=True,
    ),
)
FIGURES: tuple[Figure[TaskKey], ...] = (
    ACCURACY,
    ACCURACY_CHANGE,
    *judgement(GROUP, "accuracy_change", _compared, _tasks, "{place}_change"),
    _hidden("right_to_wrong", "", lambda score: score.flips.right_to_wrong if score.flips else None),
    _hidden("wrong_to_right", "", lambda score: score.flips.wrong_to_right if score.flips else None),
    _hidden("batch_noise_nat", "nat", lambda score: score.batch_noise_nat),
    ACCURACY_OVER_CONTROL,
    ACCURACY_DROP,
    ACCURACY_GAIN,
)
