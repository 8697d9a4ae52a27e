"""The verdicts in a table: every variant compared with the baseline, by every judged metric, all together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.figures.table import VariantRow
from harness.stats.comparison import Comparison, holm


def judged(rows: Sequence[VariantRow]) -> tuple[VariantRow, ...]:
    """The rows with verdicts that hold for all of them at once: perplexity and each task's headline score.

    Whether a divergence lies above its noise floor is decided for each row separately: it says what a figure can mean,
    not which variant is worse, and a few windows could not decide it for all at once.
    """
    verdicts = iter(holm([each for row in rows for each in _comparisons(row)]))
    made = []
    for row in rows:
        perplexity = next(verdicts) if row.perplexity_comparison else None
        tasks = tuple(
            replace(score, comparison=next(verdicts)) if score.headline and score.comparison else score
            for score in row.tasks
        )
        made.append(row.altered(perplexity_comparison=perplexity, tasks=tasks))
    return tuple(made)


def _comparisons(row: VariantRow) -> Iterator[Comparison]:
    scores = (score.comparison for score in row.tasks if score.headline)
    for each in (row.perplexity_comparison, *scores):
        if each is not None:
            yield each
