"""Model cards: for each variant a folder whose files go into its repository on the Hugging Face hub.

``README.md`` has the ``model-index`` and the figures in Markdown; beside it are a badge and ``.eval_results``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.figures.table import Table, TaskKey, VariantRow
from harness.report.column import Column, cell, columns, shown_columns
from harness.report.escape import file_name, yaml
from harness.report.escape import markdown as escape
from harness.report.page import compared_with, noise_floor, table_labels
from harness.report.renderers.badge import Badge, badge, svg
from harness.report.renderers.eval_results import eval_results, prompts
from harness.report.renderers.markdown import heading, table_line
from harness.stats.estimate import Estimate

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


BADGE = "qharness.svg"
HASH_DIGITS = 12


def model_cards(tables: Sequence[Table]) -> Iterator[tuple[str, str]]:
    """Path and content of the files of every variant with figures whose weights are not the baseline's; its card first.

    Those weights are measured on other engines and with other key-value caches too.
    """
    used: set[str] = set()
    for table in tables:
        unquantized = {_made_by(row) for row in table.rows if row.is_baseline or row.is_control}
        for row in table.rows:
            if row.status == "ok" and _made_by(row) not in unquantized:
                folder, shown = file_name(f"{table.model} {row.label}", used), badge(table, row)
                yield f"{folder}/README.md", _card(table, row, shown)
                if shown is not None:
                    yield f"{folder}/{BADGE}", svg(shown)
                yield from ((f"{folder}/{name}", content) for name, content in eval_results(row))


def _made_by(row: VariantRow) -> str:
    """What identifies the method that made its weights: labels are only names."""
    return row.evidence.variant.method.content_id if row.evidence else row.method


def _card(table: Table, row: VariantRow, shown: Badge | None) -> str:
    """Metadata and Markdown for a README.md; the author adds the rest of the card."""
    from huggingface_hub import ModelCardData

    name = f"{table.model} {row.label}"
    origin = {"base_model": yaml(table.hub_id), "base_model_relation": "quantized"} if table.hub_id else {}
    results = _apart([*_text_results(table, row), *_task_results(row)])
    named = {"model_name": yaml(name), "eval_results": results} if results else {}
    data = ModelCardData(tags=["quantized", "qharness"], **named, **origin)
    return f"---\n{data}\n---\n\n" + "\n\n".join(_block(table, row, shown)) + "\n"


def _apart(results: Iterable[EvalResult]) -> list[EvalResult]:
    """The same results, with unique pairs of data set configuration and metric.

    The hub's library merges all results with the same task, data set and configuration (``unique_identifier``) into
    one entry; a difference in ``dataset_args`` alone does not separate them.
    """
    made: list[EvalResult] = []
    seen: set[tuple[object, ...]] = set()
    for result in results:
        number, config = 1, result.dataset_config
        while (key := (*result.unique_identifier, result.metric_type, result.metric_name)) in seen:
            number += 1
            result = replace(result, dataset_config=f"{config or 'default'} ({number})")
        seen.add(key)
        made.append(result)
    return made


def _text_results(table: Table, row: VariantRow) -> Iterator[EvalResult]:
    """The results on the text of the perplexity protocol, with all its conditions."""
    from huggingface_hub import EvalResult

    conditions = {name.replace(" ", "_"): value for name, value in table.conditions}
    text = str(conditions.get("text", "text"))
    for column in columns(table):
        value = _number(column, row)
        if column.figure.hub and value is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=text,
                dataset_name=text,
                dataset_config=table.protocol,
                dataset_args=conditions,
                metric_type=column.figure.hub,
                metric_name=column.heading,
                metric_value=value,
            )


def _task_results(row: VariantRow) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for score in row.tasks:
        if score.headline and math.isfinite(score.estimate.value):
            shots = {} if score.key.fewshot is None else {"num_few_shot": score.key.fewshot}
            yield EvalResult(
                task_type="text-generation",
                dataset_type=score.key.task,
                dataset_name=score.key.task,
                dataset_config=_asked(row, score.key),
                dataset_args=shots or None,
                metric_type=score.key.score,
                metric_name=score.key.label,
                metric_value=score.estimate.value,
            )


def _asked(row: VariantRow, key: TaskKey) -> str | None:
    """What tells a task's result from another of the same task: ``25-shot, chat template, prompts 3f2a9c…``.

    The hash of the prompts stands for the questions chosen, their examples, the system prompt and the task's version.
    """
    asked, hashed = key.asked, prompts(row, key)
    return ", ".join([*([asked] if asked else []), *([f"prompts {hashed[:HASH_DIGITS]}"] if hashed else [])]) or None


def _number(column: Column, row: VariantRow) -> float | None:
    value = column.value(row)
    number = value.value if isinstance(value, Estimate) else value
    return float(number) if isinstance(number, int | float) and math.isfinite(number) else None


def _block(table: Table, row: VariantRow, shown: Badge | None) -> Iterable[str]:
    """The variant compared with the baseline, a line per figure."""
    yield f"## Quantization: {escape(row.label)}"
    if shown is not None:
        yield f"![{escape(f'{shown.name} {shown.finding}')}]({BADGE})"
    for label in (*table_labels(table), *row.labels):
        yield f"**⚠ {escape(label.sentence)}.**"
    base = table.baseline
    head = ["", escape(row.label), *([escape(base.label)] if base else [])]
    lines = [table_line(head), table_line(["---", *("---:" for _ in head[1:])])]
    for column in shown_columns(table):
        if column.value(row) is not None:
            figures = [cell(column, each).whole for each in (row, base) if each]
            lines.append(table_line([heading(column), *map(escape, figures)]))
    yield "\n".join(lines)
    remarks = [each for each in (noise_floor(table), compared_with(table)) if each]
    yield (
        f"Measured with qharness on {escape(table.hardware)}; perplexity protocol: {escape(table.protocol)}. "
        "Brackets: 95% intervals; for energy, the range over processes."
        f"{''.join(' ' + escape(each) for each in remarks)}"
    )
