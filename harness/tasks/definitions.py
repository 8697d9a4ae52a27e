"""Loads lm-eval's own task objects from their definitions, with the data that the recipe substitutes.

Each definition gets a file in a temporary folder that includes the original, so that lm-eval indexes only
these files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.core.owner import temporary_folder
from harness.core.workload import TaskWorkload
from harness.errors import UnsupportedError
from harness.tasks import trust
from harness.tasks.catalog import catalog

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict

QUESTIONS, EXAMPLES = "test", "train"
"""The names of the splits made from local files."""
TEMPLATES = 256
"""Compiled templates that are kept; a task has fewer than ten, a group some more."""


def load(workload: TaskWorkload) -> TaskDict:
    """The task, or the group and its tasks, with their questions loaded.

    Raises UnsupportedError if they cannot be loaded, or if a definition runs code that the recipe does not trust.
    """
    from lm_eval.api.samplers import get_sampler
    from lm_eval.tasks import TaskManager

    if workload.own is not None and not workload.trust_task_code:
        untrusted = trust.definition(Path(workload.definition)).code
        if untrusted:
            raise UnsupportedError(f"{workload.name}: {'; '.join(untrusted)}; the recipe does not trust it")
    _confine_templates()
    with temporary_folder() as folder:
        for index, path in enumerate(_needed(Path(workload.definition))):
            definition = {"include": str(path), **_replaced(path, workload)}
            (folder / f"{index}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
        try:
            loaded = TaskManager(include_path=str(folder), include_defaults=False).load([workload.name])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnsupportedError(f"{workload.name}: its questions cannot be read: {error}") from error
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UnsupportedError(f"{task.task_name} runs code that the model writes; that is not done here")
        if getattr(task, "MULTIMODAL", False):
            raise UnsupportedError(f"{task.task_name} asks about images or sound; only text is measured")
        if workload.fewshot is not None:
            task.set_config(key="num_fewshot", value=workload.fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        if workload.sampler is not None and task.fewshot_docs() is not None:
            task.sampler = get_sampler(workload.sampler)(list(task.fewshot_docs()))
        task.set_fewshot_seed(seed=workload.seed)
    return loaded


def _confine_templates() -> None:
    """Makes lm-eval render templates in jinja's sandbox; outside it a template can call any Python function.

    Each template is compiled once. lm-eval compiles it again for each question and each example, which takes more time
    than everything else that building requests does.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        confined = SandboxedEnvironment(undefined=utils.env.undefined, keep_trailing_newline=True)
        confined.filters.update(utils.env.filters)
        confined.from_string = lru_cache(TEMPLATES)(confined.from_string)  # type: ignore[method-assign, assignment]
        utils.env = confined


def _needed(path: Path) -> Iterator[Path]:
    """A definition and, if it is a group, those of all its members."""
    yield path
    members = _content(path).get("task")
    for member in members if isinstance(members, list) else ():
        named = member if isinstance(member, str) else member.get("group", member.get("task"))
        known = catalog()
        for each in known.tags.get(named, (named,)):
            if each in known.paths:  # a member defined inside the group needs no file
                yield from _needed(known.paths[each])


def _replaced(path: Path, workload: TaskWorkload) -> dict[str, Any]:
    """The keys of one definition that the recipe overrides."""
    content = _content(path)
    if isinstance(content.get("task"), list):
        return {}
    if workload.data is None:
        return {}
    files = {QUESTIONS: workload.data.path}
    if workload.fewshot_data is not None:
        files[EXAMPLES] = workload.fewshot_data.path
    replaced: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": None,
        "validation_split": None,
        "test_split": QUESTIONS,
    }
    if workload.fewshot_data is not None:
        replaced["fewshot_split"] = EXAMPLES
    elif "samples" not in (content.get("fewshot_config") or {}):  # a task may define its own examples
        replaced["fewshot_split"] = QUESTIONS  # same as test_split: lm-eval then excludes the question itself
    return replaced


def _content(path: Path) -> Mapping[str, Any]:
    """A definition merged with its includes; ``!function`` values stay text."""
    from lm_eval.tasks._yaml_loader import load_yaml

    content: Mapping[str, Any] = load_yaml(path, resolve_func=False)
    return content
