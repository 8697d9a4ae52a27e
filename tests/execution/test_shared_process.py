"""The tasks of one variant are answered in one process that loads the variant once, and with the same results."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_tasks import choosing

from harness.core.record import RunRecord

pytestmark = [pytest.mark.heavy, pytest.mark.thorough]


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Three tasks of a user's own."""
    names = ("spring", "autumn", "winter")
    return [str(choosing(tmp_path, name, doc_to_text=f"The {{{{subject}}}} in the {name} was")) for name in names]


def test_shared_and_separate_processes_agree(sweep_type, tmp_path: Path, tiny: Path, tasks: list[str]) -> None:
    """Of both variants; the spec, its ids among it, does not depend on what else the process answers."""

    def answered(folder: str, *asked: str) -> dict[tuple[str, str], RunRecord]:
        (tmp_path / folder).mkdir()
        records = sweep_type(tmp_path / folder).run(
            {
                "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
                "methods": ["none", {"rtn": {"group_size": 32}}],
                "measure": {"tasks": [{"name": task} for task in asked], "memory": {}},
                "device": "cpu",
                "threads": 1,
            }
        )
        assert {record.status for record in records} == {"ok"}
        return {(r.spec.method.name, Path(r.spec.task.name).stem): r for r in records if r.spec.task is not None}

    names = [Path(task).stem for task in tasks]
    together = answered("together", *tasks)
    apart = answered("apart", tasks[-1])
    assert len(together) == 6
    assert {key for key in together if key[1] == names[-1]} == apart.keys()
    for (_, task), record in together.items():
        earlier = tuple(names[: names.index(task)])
        shared = [fact.arguments["earlier"] for fact in record.outcome.facts if fact.code == "process_shared"]
        assert shared == ([earlier] if earlier else [])
        assert ("load" in [phase.name for phase in record.outcome.phases]) == (not earlier)
    for key, alone in apart.items():
        record = together[key]
        assert record.spec.run_id == alone.spec.run_id
        assert record.find("task_score") == alone.find("task_score"), "values, and the hashes of prompts and targets"
        assert record.outcome.labels == alone.outcome.labels
        own = {fact.code: fact for fact in record.outcome.facts if fact.code != "process_shared"}
        assert own == {fact.code: fact for fact in alone.outcome.facts}
