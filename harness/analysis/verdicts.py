"""The verdicts in a table: every variant compared with the baseline, in three families of tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from harness.figures.table import VariantRow
from harness.stats.comparison import Comparison, holm


def judged(rows: Sequence[VariantRow]) -> tuple[VariantRow, ...]:
    """The rows with verdicts that hold for all rows at once within each of three families.

    Perplexity and each task's headline score say whether a variant is worse. The other scores of the tasks, and the
    figures of written answers, say in what. These two families are apart from the first, so that an explanation that
    is measured beside a score leaves the score's verdict as it was.

    Whether a divergence lies above its noise floor is decided for each row separately: it says what a figure can mean,
    not which variant is worse, and a few windows could not decide it for all at once.
    """
    headlines = _together(
        found
        for row in rows
        for found in (row.perplexity_comparison, *(each.comparison for each in row.tasks if each.headline))
    )
    others = _together(each.comparison for row in rows for each in row.tasks if not each.headline)
    answers = _together(each.comparison for row in rows for each in row.answers)
    return tuple(
        row.altered(
            perplexity_comparison=next(headlines),
            tasks=tuple(replace(each, comparison=next(headlines if each.headline else others)) for each in row.tasks),
            answers=tuple(replace(each, comparison=next(answers)) for each in row.answers),
        )
        for row in rows
    )


def _together(family: Iterable[Comparison | None]) -> Iterator[Comparison | None]:
    """The comparisons of a family in their order, as they are judged together; None stays in its place."""
    members = list(family)
    found = iter(holm([each for each in members if each is not None]))
    return iter([None if each is None else next(found) for each in members])
