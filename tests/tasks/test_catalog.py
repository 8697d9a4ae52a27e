"""Names of tasks, held against lm-eval's own index of the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.tasks.catalog import catalog, read

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'qharness[eval]'")


@pytest.mark.parametrize("folder", ["arc", "mmlu/default", "scrolls", "blimp", "hellaswag", "leaderboard"])
def test_names_and_tags_are_those_of_lm_evals_index(folder: str) -> None:
    from lm_eval.tasks._index import Kind, TaskIndex

    path = Path(lm_eval.__file__).parent / "tasks" / folder
    index = TaskIndex.build([path])
    found = read(path)
    assert dict(found.paths) == {name: entry.yaml_path for name, entry in index.items() if entry.kind != Kind.TAG}
    assert dict(found.tags) == {
        name: tuple(sorted(entry.tags)) for name, entry in index.items() if entry.kind == Kind.TAG
    }


def test_a_tag_is_the_tasks_that_bear_it() -> None:
    assert catalog().members("ai2_arc") == ("arc_challenge", "arc_easy")
    assert catalog().members("mmlu") == ("mmlu",)


def test_an_unknown_name_is_told_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"knows no task 'hellaswagg'; did you mean '.*hellaswag.*'"):
        catalog().members("hellaswagg")
    with pytest.raises(UsageError, match="'lm-eval ls tasks' lists those it has"):
        catalog().members("qqqqqqqqqqqqqqq")


def test_the_data_set_of_a_task_is_that_of_lm_evals_own_configuration() -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    known = catalog()
    for name in ("arc_easy", "hellaswag", "gpqa_diamond_zeroshot", "mmlu_pro_biology"):
        expected = load_yaml(known.paths[name], resolve_func=False)["dataset_path"]
        assert "/" in expected
        assert known.data_set(name) == expected


def test_a_group_has_a_data_set_if_its_tasks_share_it() -> None:
    assert catalog().data_set("mmlu") == catalog().data_set("mmlu_anatomy") == "cais/mmlu"
    assert catalog().data_set("leaderboard") is None
    assert catalog().data_set("qqqq") is None
