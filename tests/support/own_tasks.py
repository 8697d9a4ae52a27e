"""Small tasks of a user's own: questions in a file, beside the definition that lm-eval reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

SUBJECTS = ("river", "bridge", "market", "garden", "winter", "letter", "kitchen", "harbour", "forest", "station")
CHOOSES: Mapping[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "The {{subject}} was",
    "doc_to_choice": ["cold and quiet.", "old.", "as wide as the sea."],
    "doc_to_target": "{{answer}}",
}
WRITES: Mapping[str, Any] = {"output_type": "generate_until", "doc_to_target": "{{target}}"}


def choosing(folder: Path, name: str, rows: Iterable[Mapping[str, object]] | None = None, **changes: object) -> Path:
    """The definition of a task to choose how a sentence goes on; by default eight sentences."""
    usual = [{"subject": subject, "answer": index % 3} for index, subject in enumerate(SUBJECTS[:8])]
    return _write(folder, name, usual if rows is None else rows, {**scored("acc"), **CHOOSES, **changes})


def writing(folder: Path, name: str, rows: Iterable[Mapping[str, object]], **changes: object) -> Path:
    """The definition of a task to write what each row has as its target, greedily."""
    return _write(folder, name, rows, {**scored("exact_match"), **WRITES, **changes})


def scored(*metrics: str) -> dict[str, object]:
    """By the means of these metrics of lm-eval's."""
    return {"metric_list": [{"metric": each, "aggregation": "mean", "higher_is_better": True} for each in metrics]}


def _write(folder: Path, name: str, rows: Iterable[Mapping[str, object]], asked: Mapping[str, object]) -> Path:
    data, path = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    path.write_text(yaml.safe_dump({"task": name, **source, **asked}), encoding="utf-8")
    return path
