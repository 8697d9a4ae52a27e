"""Downloads what a sweep needs from a hub, before its workers run offline.

Run as ``python -m harness.execution.fetch SPECS WHAT``, where SPECS is a file of specs. It is a separate process
because the libraries that read data sets import a backend, which the parent must not. It has the user's hub token and
runs no code that a recipe names: tasks whose code a recipe trusts are read by a second such process, without the token.
Some of lm-eval's own tasks load a metric's code from the hub; that code is trusted like lm-eval.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.core.model import ModelRef
from harness.core.owner import temporary_folder
from harness.core.run import RunSpec
from harness.core.workload import TaskWorkload, TextRef
from harness.errors import SourceError
from harness.stacks.variables import for_fetching

PLAIN, WITH_CODE = "plain", "with-code"
"""What to fetch: everything except the tasks whose code a recipe trusts, or only these."""


def fetch(specs: Sequence[RunSpec]) -> bool:
    """Returns True if it fetched a model that was not here. Raises SourceError if something cannot be fetched."""
    absent = any(model.kind == "hub" and not model.path for model in _models(specs))
    tasks = _hub_tasks(specs)
    if absent or any(text.hub for text in _texts(specs)) or any(not task.trust_task_code for task in tasks):
        _fetch(specs, PLAIN, dict(os.environ))
    if any(task.trust_task_code for task in tasks):
        _fetch(specs, WITH_CODE, for_fetching())
    return absent


def _fetch(specs: Sequence[RunSpec], what: str, variables: Mapping[str, str]) -> None:
    with temporary_folder() as folder:
        path = folder / "specs.json"
        path.write_text(json.dumps([asdict(spec) for spec in specs]), encoding="utf-8")
        command = [sys.executable, "-m", "harness.execution.fetch", str(path), what]
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**variables, "PYTHONSAFEPATH": "1"},
        )
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise SourceError(f"could not fetch what the recipe names from the hub: {last[0]}")


def main(path: str, what: str) -> None:
    from harness.models.sources import fetch as fetch_model
    from harness.storage.json_codec import decode
    from harness.text.sources import rows

    specs = decode(list[RunSpec], json.loads(Path(path).read_text(encoding="utf-8")), path)
    if what == PLAIN:
        for model in {model.content: model for model in _models(specs) if model.kind == "hub"}.values():
            fetch_model(model)
        for text in dict.fromkeys(text for text in _texts(specs) if text.hub):
            rows(text)
    for task in _hub_tasks(specs):
        if task.trust_task_code == (what == WITH_CODE):
            from harness.tasks.definitions import load

            load(task)


def _models(specs: Sequence[RunSpec]) -> Iterator[ModelRef]:
    for spec in specs:
        yield from spec.job.models


def _hub_tasks(specs: Sequence[RunSpec]) -> tuple[TaskWorkload, ...]:
    """The tasks whose questions are in a data set on the hub, each once."""
    tasks = (task for spec in specs for task in spec.job.tasks if task.data is None)
    return tuple(dict.fromkeys(tasks))


def _texts(specs: Sequence[RunSpec]) -> Iterator[TextRef]:
    for spec in specs:
        yield from spec.job.texts


if __name__ == "__main__":
    main(*sys.argv[1:])
