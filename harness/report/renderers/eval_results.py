"""``.eval_results/*.yaml``: the scores of a variant on tasks, as the Hugging Face hub shows them on a model's page.

The format: huggingface.co/docs/hub/eval-results. An entry names the data set on the hub, so a score on other questions
(the user's own files, a task that lm-eval does not have) has none. The hub itself knows which data sets are benchmarks
and what their tasks are called there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.core.record import Measurement, RunRecord
from harness.core.workload import TaskWorkload
from harness.errors import UsageError
from harness.figures.derived.scores import key_of
from harness.figures.notes import with_interval
from harness.figures.table import TaskKey, TaskScore, VariantRow
from harness.report.escape import yaml
from harness.tasks.catalog import catalog

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry


def eval_results(row: VariantRow) -> Iterator[tuple[str, str]]:
    """A file for each headline score, by its path in the model's repository; the hub asks for one file per setting."""
    from huggingface_hub import eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    for score in row.tasks:
        entry = _entry(row, score) if score.headline and math.isfinite(score.estimate.value) else None
        if entry is not None:
            name = re.sub(r"[^A-Za-z0-9_]+", "-", f"{score.key.task} {score.key.asked or ''}").strip("-").lower()
            yield f".eval_results/{name[:120]}.yaml", yaml_dump(eval_result_entries_to_yaml([entry]))


def prompts(row: VariantRow, key: TaskKey) -> str | None:
    """A hash of all that was asked for a score: the questions, their examples and the template around them."""
    measured = _measured(row, key)
    return None if measured is None else str(measured[1].protocol.get("prompts_sha256", "")) or None


def _measured(row: VariantRow, key: TaskKey) -> tuple[RunRecord, Measurement] | None:
    """The run that a score is from, and what it measured."""
    for run in row.runs_with_figures:
        for found in run.outcome.measured("task_score"):
            if found.values and key_of(found) == key:
                return run, found
    return None


def _entry(row: VariantRow, score: TaskScore) -> EvalResultEntry | None:
    from huggingface_hub import EvalResultEntry

    measured = _measured(row, score.key)
    task = measured[0].spec.task if measured else None
    found = _data_set(task, score.key.task) if task else None
    if measured is None or found is None:
        return None
    data_set, revision = found
    figure = f"{score.key.score} {with_interval(score.estimate)}"
    return EvalResultEntry(
        dataset_id=yaml(data_set),
        task_id=yaml(score.key.task),
        value=score.estimate.value,
        dataset_revision=revision,
        date=measured[0].started_at[:10],
        notes=yaml(", ".join([*([score.key.asked] if score.key.asked else []), figure, row.label, "qharness"])),
    )


def _data_set(task: TaskWorkload, name: str) -> tuple[str, str | None] | None:
    """The hub's data set that the questions are from, and its revision if it is known.

    The path of a definition in a record is another machine's: tasks of lm-eval are looked up in the one installed here.
    """
    if task.data is not None:
        return (task.data.hub, task.data.revision) if task.data.hub else None
    if task.own is not None:
        return None
    try:
        found = catalog().data_set(name)
    except UsageError:  # lm-eval is not installed here
        return None
    return (found, None) if found and re.fullmatch(r"[\w.-]+/[\w.-]+", found) else None
