"""``watch`` and ``report --watch`` follow a sweep into a bucket from another machine, on a real S3 server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from instant_executor import InstantExecutor
from object_store import ObjectStore, served
from run_specs import run_spec
from typer.testing import CliRunner

from harness.api.locations import open_results
from harness.api.watch import ResultsWatch, write_report_on_change
from harness.cli.app import app
from harness.core.inputs import Input
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import Node
from harness.execution import progress
from harness.execution.progress import ProgressNote
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.storage.cache import Cache

NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
SPECS = [
    run_spec("quality", "sweep", ModelRef(f"m{n}", f"m{n}", f"{n}", "directory", "/m"), NONE, NONE) for n in range(3)
]
WAIT_S = 600.0
"""How long a test waits for what must happen; far longer than it takes."""


@pytest.fixture
def url() -> Iterator[str]:
    with served() as server:
        yield _bucket(server)


def _bucket(server: ObjectStore) -> str:
    return server.bucket("watched") + "/results"


class Patient(InstantExecutor):
    """Begins each run once it is told to."""

    def __init__(self, artifacts: Cache) -> None:
        super().__init__(artifacts)
        self.go = threading.Semaphore(0)

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        on_phase("score")
        assert self.go.acquire(timeout=WAIT_S)
        return super().run(spec, inputs, on_phase, node)


def test_a_sweep_into_a_bucket_is_followed_from_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "watching"))
    monkeypatch.setattr(progress, "QUIET_S", 0.01)
    store, executor = open_results(url, tmp_path / "sweeping"), Patient(Cache(tmp_path / "artifacts"))

    def run() -> None:
        with ProgressNote(store, SPECS) as note:
            sweep([PlannedRun(each) for each in SPECS], store, executor, note.follow)  # type: ignore[arg-type]

    sweeping = threading.Thread(target=run)
    sweeping.start()
    watch, frames, pages = ResultsWatch(url), [], []

    def until(done: int) -> None:
        """Waits until the note says so, as ``watch`` does, and keeps what it prints."""
        for _ in range(int(WAIT_S / 0.05)):
            seen = watch.sweeps()
            if seen and seen[0].progress.done == done and (seen[0].progress.running or done == len(SPECS)):
                break
            threading.Event().wait(0.05)
        frames.append(CliRunner().invoke(app, ["watch", url, "--once"]).stdout)

    def written(paths: Sequence[Path]) -> None:
        rows = sum(f"m{number}" in paths[0].read_text(encoding="utf-8") for number in range(3))
        if rows not in pages:
            until(rows)
            executor.go.release()
        pages.append(rows)

    until(0)
    executor.go.release()
    write_report_on_change(
        url, tmp_path / "reports", ["csv"], on_written=written, wait=lambda _: threading.Event().wait(0.05)
    )
    sweeping.join()
    assert "0 of 3 runs · 1 running · 2 waiting" in frames[0]
    assert "quality none · m0  score" in frames[0]
    assert "1 of 3 runs · 1 ok · 1 running · 1 waiting" in frames[1]
    assert "3 of 3 runs · 3 ok" in frames[-1]
    assert sorted(set(pages)) == [1, 2, 3], "the report is written again as records arrive"
    assert not watch.look().runs
