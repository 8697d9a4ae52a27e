"""What a recipe does not say in numbers is counted in the run, before it measures: a run may take hours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.core.metric import Windows
from harness.core.workload import TaskWorkload
from harness.errors import RunError
from harness.execution.jobs import reference
from harness.execution.worker import classify
from harness.tasks import evaluate

pytestmark = pytest.mark.heavy


def test_the_tokens_of_a_text_are_counted_once_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows([[0] * 11] * 2, [1, 1], ["0", "1"], {})
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", 120)
    reference._refuse_too_many(windows)
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", 119)
    expected = "120 values are more than 119, .*: 6 values of divergence for each of 20 tokens of the text"
    with pytest.raises(RunError, match=expected) as caught:
        reference._refuse_too_many(windows)
    assert classify(caught.value) == "failed"


@pytest.mark.parametrize(("limit", "count"), [(None, 5), (3, 5), (2, 4)])
def test_the_questions_of_a_task_are_counted_once_it_is_loaded(
    limit: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of two questions and one of three; each answer has eight values, and each question two."""
    task = TaskWorkload("pair", "pair.yaml", limit=limit, samples=4, temperature=0.6)
    tasks = [SimpleNamespace(eval_docs=[{}] * number) for number in (2, 3)]
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", count * (4 * 8 + 2))
    evaluate._refuse_too_many(task, tasks)
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", count * (4 * 8 + 2) - 1)
    with pytest.raises(RunError, match=f": {count} questions of pair are answered 4 times each; lower 'samples' or"):
        evaluate._refuse_too_many(task, tasks)
    evaluate._refuse_too_many(TaskWorkload("pair", "pair.yaml"), tasks)  # answered once: never too many
