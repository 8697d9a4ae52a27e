"""The columns on tasks: each score, its difference from the baseline's, and what lies behind the difference."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures.formats import signed
from harness.figures.table import Table, TaskKey, TaskScore, VariantRow
from harness.report.column import Column, Value, figure
from harness.report.judgement import PAIRED, judgement, words
from harness.stats.comparison import Comparison

GROUP = "Tasks"


def task_columns(table: Table) -> tuple[Column, ...]:
    return tuple(column for key in table.tasks for column in _columns(table, key))


def _columns(table: Table, key: TaskKey) -> tuple[Column, ...]:
    found = [score for row in table.rows if (score := row.task(key))]
    shown = any(score.headline for score in found)
    share = all(0 <= score.estimate.value <= 1 for score in found)
    relative = any(score.relative for score in found)
    name = "_".join(key.label.replace("(", "").replace(")", "").split())

    def of(pick: Callable[[TaskScore], Value]) -> Callable[[VariantRow], Value]:
        return lambda row: None if (score := row.task(key)) is None else pick(score)

    def compared(row: VariantRow) -> Comparison | None:
        mine = row.task(key)
        return mine.comparison if mine else None

    def hidden(suffix: str, pick: Callable[[TaskScore], Value]) -> Column:
        return figure(GROUP, f"{name}_{suffix}", suffix, of(pick))

    return (
        Column(
            name,
            GROUP,
            key.label,
            "%" if share else "",
            "Score on the task, with its 95% interval.",
            of(lambda score: score.estimate),
            factor=100 if share else 1,
            shown=shown,
            interval=True,
        ),
        Column(
            f"{name}_change",
            GROUP,
            "Δ",
            "%" if relative else "points" if share else "",
            f"Difference of {key.label}, {PAIRED}. Lost are questions that only the baseline had right; won those that "
            "only the variant had right.",
            of(lambda score: score.change),
            signed,
            factor=100 if share or relative else 1,
            shown=shown,
            interval=True,
            notes=lambda row: _notes(row.task(key)),
        ),
        *judgement(GROUP, f"{name}_change", compared),
        hidden("right_to_wrong", lambda score: score.flips.right_to_wrong if score.flips else None),
        hidden("wrong_to_right", lambda score: score.flips.wrong_to_right if score.flips else None),
        hidden("batch_noise_nat", lambda score: score.batch_noise_nat),
    )


def _notes(score: TaskScore | None) -> tuple[str, ...]:
    if score is None or not score.headline:
        return ()
    turned = (f"{score.flips.right_to_wrong} lost, {score.flips.wrong_to_right} won",) if score.flips else ()
    return (*words(score.comparison), *turned)
