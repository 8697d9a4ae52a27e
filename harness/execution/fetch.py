"""Brings what a sweep needs from a hub, before its workers run offline.

Run as ``python -m harness.execution.fetch SPECS``, a file of specs: a process of its own, because
the libraries that read data sets import a backend and the parent must not. It has the user's token for the hub, and
runs no code of a recipe's: a task whose code a recipe trusts is read by another such process, which has none. Some of
lm-eval's own tasks load a metric's code from the hub; that is trusted as lm-eval is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.core.model import ModelRef
from harness.core.run import RunSpec
from harness.core.workload import TaskWorkload, TextRef
from harness.errors import SourceError
from harness.stacks.variables import for_fetching

PLAIN, WITH_CODE = "plain", "with-code"
"""What is fetched: all but the tasks whose code a recipe trusts, and these alone."""


def fetch(specs: Sequence[RunSpec]) -> bool:
    """True where a model came that was not there. Raises SourceError where a model, a text or a task cannot be had."""
    absent = any(model.kind == "hub" and not model.path for model in _models(specs))
    tasks = _hub_tasks(specs)
    if absent or any(text.hub for text in _texts(specs)) or any(not task.trust_task_code for task in tasks):
        _fetch(specs, PLAIN, dict(os.environ))
    if any(task.trust_task_code for task in tasks):
        _fetch(specs, WITH_CODE, for_fetching())
    return absent


def _fetch(specs: Sequence[RunSpec], what: str, variables: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "specs.json"
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
    """The tasks whose questions lie in a data set on the hub, each once."""
    tasks = (task for spec in specs for task in spec.job.tasks if task.data is None)
    return tuple(dict.fromkeys(tasks))


def _texts(specs: Sequence[RunSpec]) -> Iterator[TextRef]:
    for spec in specs:
        yield from spec.job.texts


if __name__ == "__main__":
    main(*sys.argv[1:])
