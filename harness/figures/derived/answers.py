"""Figures of the answers that a variant wrote, each paired with the baseline's answers to the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.core.record import Measurement, RunRecord
from harness.figures.derived.scores import headline, writing
from harness.figures.table import AnswerFigure, AnswersKey
from harness.stats.comparison import Better, Comparison
from harness.stats.estimate import Estimate, clustered_mean
from harness.stats.rule import compare
from harness.stats.shares import by_sample, mean_share, pass_at, ratio, ratio_change, spread
from harness.tasks.aspects import ASPECTS, SECONDS, THINKING, TOKENS, Aspect

SEED_SPREAD, MAJORITY, PASS = "seed_spread", "majority", "pass"
TOKENS_PER_RIGHT, SECONDS_PER_RIGHT = "tokens_per_right_answer", "seconds_per_right_answer"
SCORE_MARGIN = 0.01
"""A difference of a score that does not matter: one percentage point."""


@dataclass(frozen=True)
class _Answered:
    """What one run measured of a task's answers, by metric, and the task's headline score."""

    key: AnswersKey
    score: Measurement | None
    found: Mapping[str, Measurement]


def answer_figures(runs: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> tuple[AnswerFigure, ...]:
    """The figures of a variant's task runs, compared with those of the baseline that asked in the same way."""
    theirs = {each.key: each for run in baseline if (each := _answered(run)) is not None}
    return tuple(
        figure
        for run in runs
        if (mine := _answered(run)) is not None
        for figure in (*_aspects(mine, theirs.get(mine.key)), *_scores(mine, theirs.get(mine.key)))
    )


def _answered(run: RunRecord) -> _Answered | None:
    if run.status != "ok" or not run.outcome.measured(TOKENS.name):
        return None
    names = [*(each.name for each in ASPECTS), "task_majority"]
    found = {name: measured[0] for name in names if (measured := run.outcome.measured(name))}
    tokens = found[TOKENS.name]
    if THINKING.name not in found:  # as where no answer has any
        found[THINKING.name] = replace(tokens, metric=THINKING.name, values=(0.0,) * len(tokens.values))
    scores = [each for each in run.outcome.measured("task_score") if each.evidence == "paired"]
    return _Answered(key_of(tokens), headline(scores), found)


def key_of(measured: Measurement) -> AnswersKey:
    """Which task's answers they are."""
    protocol = measured.protocol
    fewshot = protocol.get("fewshot")
    return AnswersKey(
        task=str(protocol["task"]),
        fewshot=fewshot if isinstance(fewshot, int) else None,
        chat=protocol.get("chat_template") is not None,
        writing=writing(protocol),
    )


def _aspects(mine: _Answered, other: _Answered | None) -> Iterator[AnswerFigure]:
    for aspect in ASPECTS:
        measured = mine.found.get(aspect.name)
        theirs = other.found.get(aspect.name) if other else None
        if measured is not None and (aspect is not THINKING or any(measured.values) or (theirs and any(theirs.values))):
            yield _figure(aspect.name, mine.key, measured, theirs, aspect)


def _scores(mine: _Answered, other: _Answered | None) -> Iterator[AnswerFigure]:
    """What several answers to a question say, and what a right answer costs."""
    if (majority := mine.found.get("task_majority")) is not None:
        yield _figure(MAJORITY, mine.key, majority, other.found.get("task_majority") if other else None)
    score, base = mine.score, other.score if other else None
    if score is None or not set(score.values) <= {0.0, 1.0}:
        return
    samples = by_sample(score)
    if len(samples) > 1:
        least, most = (f"{100 * end:.1f}%" for end in (min(samples), max(samples)))
        method = f"{least} to {most} over {len(samples)} seeds"
        yield AnswerFigure(SEED_SPREAD, mine.key, Estimate(spread(samples), None, None, len(samples), method))
        for k in ks(len(samples)):
            if (passed := pass_at(score, k)) is not None:
                yield _figure(f"{PASS}_{k}", mine.key, passed, pass_at(base, k) if base else None)
    for name, aspect in ((TOKENS_PER_RIGHT, TOKENS), (SECONDS_PER_RIGHT, SECONDS)):
        spent = mine.found.get(aspect.name)
        if spent is None or spent.item_ids != score.item_ids or (found := ratio(spent, score)) is None:
            continue
        their = other.found.get(aspect.name) if other else None
        like = their is not None and base is not None and their.item_ids == base.item_ids and aspect is TOKENS
        change = ratio_change(spent, score, their, base) if like and their and base else None
        yield AnswerFigure(name, mine.key, found, change, relative=True)


def ks(samples: int) -> tuple[int, ...]:
    """The numbers of answers for which the chance of a right one is given: powers of two, and all."""
    powers = [2**power for power in range(1, samples.bit_length()) if 2**power <= samples]
    return tuple(dict.fromkeys([*powers, samples]))


def _figure(
    name: str, key: AnswersKey, mine: Measurement, other: Measurement | None, aspect: Aspect | None = None
) -> AnswerFigure:
    share = aspect is None or aspect.unit == "share"
    estimate = mean_share(mine) if share else clustered_mean(mine)
    comparison = _compared(mine, other, aspect) if other is not None else None
    return AnswerFigure(name, key, estimate, comparison.effect if comparison else None, comparison)


def _compared(mine: Measurement, other: Measurement, aspect: Aspect | None) -> Comparison | None:
    """The paired comparison; None if no direction is better, or the two cannot be paired."""
    if aspect is not None and aspect.direction == "neither":
        return None
    better: Better = "higher" if aspect is None or aspect.direction == "higher" else "lower"
    margin = aspect.margin if aspect else SCORE_MARGIN
    if aspect is not None and aspect.unit != "share":
        margin *= other.mean
    try:
        return compare(mine, other, margin, better)
    except ValueError:
        return None
