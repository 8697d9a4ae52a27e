"""The sweep runs through whatever is an Executor: the local one, and one that this file adds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.core.inputs import Input
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import HERE, Machine, Node
from harness.execution.events import Ended, Event, PhaseBegan, ReadingResults, Started
from harness.execution.executor import Executor
from harness.execution.local import LocalExecutor, LocalSite, local_site
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe
from harness.storage.json_codec import encode
from harness.storage.outcome_file import read_outcome
from harness.storage.store import LOG

pytestmark = pytest.mark.heavy


@dataclass(frozen=True)
class Polite:
    """Runs the same worker at a lower priority, in a working folder of its own, as a batch queue might."""

    site: LocalSite
    desk: Path

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return False

    def nodes(self, device: str) -> tuple[Node, ...]:
        return (HERE,)

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        folder = self.desk / spec.run_id
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(encode(spec), encoding="utf-8")
        (folder / "inputs.json").write_text(encode(list(inputs)), encoding="utf-8")
        files, cache = ("spec.json", "inputs.json", "outcome.json"), str(self.site.artifacts.root.absolute())
        read, write = os.pipe()
        ended = subprocess.run(
            ["nice", "-n", "1", sys.executable, "-m", "harness.execution.worker", *files, cache, str(write)],
            cwd=folder,
            pass_fds=[write],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as phases:
            for line in phases:
                on_phase(line.strip())
        return read_outcome(folder / "outcome.json"), b"polite\n" + ended.stdout

    def stop(self) -> None:
        """It runs one at a time."""


def local(folder: Path) -> Executor:
    return LocalExecutor(local_site(folder / "cache"))


def polite(folder: Path) -> Executor:
    return Polite(replace(local_site(folder / "cache"), hardware=Machine("cpu", "a polite CPU")), folder / "desk")


@pytest.mark.parametrize("make", [local, polite])
def test_a_sweep_runs_through_any_executor(sweeps, tiny: Path, make: Callable[[Path], Executor]) -> None:
    """Quantizing, which leaves an artifact; then again, when it is done, and when the artifact is gone."""
    executor = make(sweeps.folder)
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": [{"rtn": {"group_size": 32}}],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}},
            "device": "cpu",
            "threads": 1,
        }
    )
    planned = [run for run in plan(load_recipe(recipe), executor.site) if run.spec.kind == "quantize"]
    (spec,) = (run.spec for run in planned)
    assert spec.hardware == executor.site.machine("cpu").hardware
    events: list[Event] = []
    (record,) = sweep(planned, sweeps.store, executor, events.append)
    assert record.status == "ok", record.outcome.failure
    assert executor.site.artifacts.outcome(spec) == record.outcome
    assert [type(event) for event in events[:2]] == [ReadingResults, Started]
    assert "quantize" in [event.name for event in events if isinstance(event, PhaseBegan)]
    log = (sweeps.store.folder("sweep", spec.run_id) / "1" / LOG).read_text(encoding="utf-8")
    assert log.startswith("polite") == isinstance(executor, Polite)

    for _ in range(2):
        assert sweep(planned, sweeps.store, executor, events.append) == (record,)
        assert isinstance(events[-1], Ended)
        assert events[-1].reused
        executor.site.artifacts.remove(spec)  # no run that is left needs it
