"""A variant's scores on tasks, each with its uncertainty, and compared with the baseline's question by question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from harness.core.identity import Scalar
from harness.core.record import Measurement, RunRecord
from harness.figures.table import TaskKey, TaskScore
from harness.stats.comparison import Better, Comparison
from harness.stats.estimate import Estimate, clustered_mean, exponential, transformed
from harness.stats.paired import Flips, flips
from harness.stats.rule import compare
from harness.tasks.aggregation import FIGURES
from harness.tasks.aggregation import headline as representative

SCORE_MARGIN = 0.01
"""A difference of a score, such as an accuracy, that does not matter: one percentage point."""
PERPLEXITY_MARGIN = 0.01
"""A relative difference of perplexities that does not matter."""
NATS_MARGIN = math.log(1 + PERPLEXITY_MARGIN)
"""The same difference of their logarithms."""


def scores(
    runs: Sequence[RunRecord], baseline: Sequence[RunRecord], control: Sequence[RunRecord] = ()
) -> tuple[tuple[TaskScore, ...], tuple[str, ...]]:
    """The scores of a variant's task runs, and notes on those that could not be compared.

    ``baseline`` and ``control`` hold the task runs of the baseline and of the control with the same libraries.
    """
    theirs = {key_of(found): found for found in _found(baseline)}
    controls = {key_of(found): found for found in _found(control)}
    made, notes = [], []
    for run in runs:
        found = _found([run])
        chosen = headline(found)
        noise = run.find("task_batch_noise")
        for mine in found:
            other = theirs.get(key_of(mine))
            comparison, turned, note = _beside(mine, other) if other is not None else (None, None, None)
            own = controls.get(key_of(mine))
            over, _, unlike = _beside(mine, own) if own is not None else (None, None, None)
            notes += [words for words in (note, unlike) if words]
            made.append(
                TaskScore(
                    key=key_of(mine),
                    headline=mine is chosen,
                    estimate=figure_of(mine),
                    change=_change(mine, comparison),
                    comparison=comparison,
                    flips=turned,
                    batch_noise_nat=noise.values[0] if noise else None,
                    over_control=_change(mine, over),
                )
            )
    return tuple(made), tuple(dict.fromkeys(notes))


def _found(runs: Iterable[RunRecord]) -> list[Measurement]:
    return [entry for run in runs if run.status == "ok" for entry in run.outcome.measured("task_score") if entry.values]


def key_of(score: Measurement) -> TaskKey:
    """Which score of which task it is."""
    protocol = score.protocol
    fewshot = protocol.get("fewshot")
    return TaskKey(
        task=str(protocol["task"]),
        score=str(protocol["score"]),
        filter=str(protocol["filter"]),
        fewshot=fewshot if isinstance(fewshot, int) else None,
        chat=protocol.get("chat_template") is not None,
        higher_is_better=score.direction == "higher",
        writing=writing(protocol),
    )


def writing(protocol: Mapping[str, Scalar]) -> str:
    """How answers were written, if not as the task does: ``8 samples at temperature 0.6``; empty otherwise."""
    samples, temperature, top_p, new_tokens, think_end = (
        protocol.get(name) for name in ("samples", "temperature", "top_p", "new_tokens", "think_end_token")
    )
    drawn = f"{samples or 1} sample{'s' * ((samples or 1) != 1)} at temperature {temperature}" if temperature else ""
    parts = (
        drawn,
        f"top-p {top_p}" if top_p else "",
        f"{new_tokens} tokens" if new_tokens else "",
        f"after {think_end}" if think_end else "",
    )
    return ", ".join(part for part in parts if part)


def headline(found: Sequence[Measurement]) -> Measurement | None:
    """The score that represents a task: the preferred one, under the first of its filters."""
    chosen = representative([str(entry.protocol["score"]) for entry in found])
    return next((entry for entry in found if entry.protocol["score"] == chosen), None)


def figure_of(score: Measurement) -> Estimate:
    """The figure as lm-eval reports it, with an interval if each question has a value."""
    if score.evidence != "paired":
        return Estimate(score.values[0], None, None, 1, "one figure of all questions")
    figure = FIGURES[str(score.protocol["aggregation"])]
    estimate = transformed(clustered_mean(score), figure)
    return estimate.within(0, 1) if _is_share(score) else estimate


def _is_share(score: Measurement) -> bool:
    return score.unit != "nat" and all(0 <= value <= 1 for value in score.values)


def _beside(mine: Measurement, other: Measurement) -> tuple[Comparison | None, Flips | None, str | None]:
    """The comparison with the baseline and the flipped questions; or why there is none."""
    if mine.evidence != "paired":
        return None, None, None
    try:
        found = compare(mine, other, NATS_MARGIN if mine.unit == "nat" else SCORE_MARGIN, _better(mine))
    except ValueError as error:
        return None, None, f"{key_of(mine).label} stands alone, {error}"
    binary = set(mine.values) | set(other.values) <= {0.0, 1.0} and "temperature" not in mine.protocol
    return found, flips(mine, other) if binary else None, None


def _better(score: Measurement) -> Better:
    return "higher" if score.direction == "higher" else "lower"


def _change(score: Measurement, comparison: Comparison | None) -> Estimate | None:
    """The effect for readers: for a perplexity the relative change, otherwise the difference of the scores."""
    if comparison is None:
        return None
    relative = score.unit == "nat"
    return transformed(comparison.effect, lambda nat: exponential(nat) - 1) if relative else comparison.effect
