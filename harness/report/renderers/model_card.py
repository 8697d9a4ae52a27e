"""Model cards: the ``model-index`` of each variant, as the Hugging Face hub reads it, and its figures in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.figures.table import Table, TaskKey, VariantRow
from harness.report.column import Column, cell, columns, shown_columns
from harness.report.escape import markdown as escape
from harness.report.escape import yaml
from harness.report.page import compared_with, noise_floor, table_labels
from harness.report.renderers.markdown import heading, table_line
from harness.stats.estimate import Estimate

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def model_cards(tables: Sequence[Table]) -> Iterator[tuple[str, str]]:
    """The file name and card of every variant with figures, except the baseline."""
    used: set[str] = set()
    for table in tables:
        for row in table.rows:
            if row.status == "ok" and not row.is_baseline:
                yield _file_name(f"{table.model} {row.label}", used), _card(table, row)


def _card(table: Table, row: VariantRow) -> str:
    """Metadata and Markdown for a README.md; the author adds the rest of the card."""
    from huggingface_hub import ModelCardData

    name = f"{table.model} {row.label}"
    origin = {"base_model": yaml(table.hub_id), "base_model_relation": "quantized"} if table.hub_id else {}
    results = _apart([*_text_results(table, row), *_task_results(row)])
    named = {"model_name": yaml(name), "eval_results": results} if results else {}
    data = ModelCardData(tags=["quantized", "qharness"], **named, **origin)
    return f"---\n{data}\n---\n\n" + "\n\n".join(_block(table, row)) + "\n"


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
                dataset_config=_asked(score.key),
                dataset_args=shots or None,
                metric_type=score.key.score,
                metric_name=score.key.label,
                metric_value=score.estimate.value,
            )


def _asked(key: TaskKey) -> str | None:
    """How a task's questions were asked, as far as it distinguishes results: ``25-shot, chat template``."""
    shots = [] if key.fewshot is None else [f"{key.fewshot}-shot"]
    return ", ".join([*shots, *(["chat template"] if key.chat else [])]) or None


def _number(column: Column, row: VariantRow) -> float | None:
    value = column.value(row)
    number = value.value if isinstance(value, Estimate) else value
    return float(number) if isinstance(number, int | float) and math.isfinite(number) else None


def _block(table: Table, row: VariantRow) -> Iterable[str]:
    """The variant compared with the baseline, a line per figure."""
    yield f"## Quantization: {escape(row.label)}"
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


def _file_name(words: str, used: set[str]) -> str:
    """Letters, digits, dots and dashes, with a number if two variants would share a name."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")[:120] or "variant"
    name, number = plain, 1
    while name in used:
        number += 1
        name = f"{plain}-{number}"
    used.add(name)
    return f"{name}.md"
