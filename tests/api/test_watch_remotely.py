"""``watch`` and ``report --watch`` follow a sweep into a bucket from another machine, on a real S3 server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from instant_executor import InstantExecutor
from object_store import ObjectStore, served
from run_specs import run_spec
from typer.testing import CliRunner

from harness.api import watch as watching
from harness.api.locations import open_results
from harness.api.merge import merge
from harness.api.watch import ResultsWatch, write_report_on_change
from harness.cli.app import app
from harness.cli.render.watch import frame_text
from harness.core.inputs import Input
from harness.core.model import MethodRef, ModelRef
from harness.core.progress import Ending, SweepProgress
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import Node
from harness.errors import ResultsError
from harness.execution import progress
from harness.execution.progress import ProgressNote
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.storage.cache import Cache
from harness.storage.progress import write_progress

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
SPECS = [
    run_spec("quality", "sweep", ModelRef(f"m{n}", f"m{n}", f"{n}", "directory", "/m"), NONE, NONE) for n in range(3)
]
BEGAN = "2026-01-01T00:00:00+00:00"
WAIT_S = 600.0
"""How long a test waits for what must happen; far longer than it takes."""


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with served() as store:
        yield store


@pytest.fixture
def url(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "watching"))
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
    monkeypatch.setattr(progress, "QUIET_S", 0.01)
    store, executor = open_results(url, tmp_path / "sweeping"), Patient(Cache(tmp_path / "artifacts"))

    def run() -> None:
        with ProgressNote(store, "sweep") as note:
            note.plan(SPECS, lambda spec: "")
            sweep([PlannedRun(each) for each in SPECS], store, executor, note.follow)  # type: ignore[arg-type]

    sweeping = threading.Thread(target=run)
    sweeping.start()
    watch, frames, pages = ResultsWatch(url), [], []

    def until(done: int) -> None:
        """Waits until the note says so, as ``watch`` does, and keeps what it prints."""
        for _ in range(int(WAIT_S / 0.05)):
            seen = watch.look_at_sweeps().sweeps
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
    assert not any(sweep.runs for sweep in watch.look().sweeps)


def note(url: str, tmp_path: Path, ending: Ending = "running") -> None:
    """A sweep that noted just now how far it is."""
    now = datetime.now(UTC).isoformat()
    progress = SweepProgress("sweep", BEGAN, now, 10.0, 3, ended={"ok": 1}, saved=1, ending=ending)
    write_progress(open_results(url, tmp_path / "sweeping").place, progress)


@pytest.mark.parametrize("command", [["watch"], ["watch", "--once"], ["report", "--watch"]])
def test_a_store_that_cannot_be_reached_at_the_start_is_one_message(
    command: list[str], url: str, server: ObjectStore, tmp_path: Path
) -> None:
    note(url, tmp_path)
    with server.failing(lambda method, path, number: "500"):
        ended = CliRunner().invoke(app, [command[0], url, *command[1:]])
    assert isinstance(ended.exception, ResultsError)
    assert str(ended.exception).startswith(f"{url}: cannot list: ")
    ended = CliRunner().invoke(app, [command[0], "s3://no-such-bucket/results", *command[1:]])
    assert isinstance(ended.exception, ResultsError)
    assert "bucket does not exist" in str(ended.exception)


def test_an_outage_is_shown_and_waited_out_however_long_it_lasts(
    url: str, server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    note(url, tmp_path)
    watch = ResultsWatch(url)
    before = watch.look()
    assert (before.trouble, watch.goes_on(before)) == ("", True)
    with server.failing(lambda method, path, number: "500"):
        for _ in range(3):
            clock.now_s += 60.0  # a sweep that is heard no more for so long is dead
            seen = watch.look()
            assert seen.sweeps[0].runs, "nobody knows whether it is silent"
            assert seen.sweeps == before.sweeps
            assert watch.goes_on(seen)
        assert f"{url}: cannot list: " in frame_text(seen)
        assert "1 of 3 runs" in frame_text(seen)
    clock.now_s += 2.0
    after = watch.look()
    assert (after.trouble, watch.goes_on(after)) == ("", True)
    clock.now_s += 60.0
    assert not watch.look().sweeps[0].runs, "it can be heard again, and is silent"


def test_an_outage_does_not_end_the_writing_of_a_report(url: str, server: ObjectStore, tmp_path: Path) -> None:
    list(merge([EXAMPLE], url))
    note(url, tmp_path)
    written: list[Path] = []
    troubles: list[str] = []
    looks = iter(range(3))

    def wait(seconds: float) -> None:
        """The store fails from the first look to the third, and then the sweep has ended."""
        look = next(looks)
        server.fault = lambda method, path, number: "500" if look < 2 else None
        if look == 2:
            note(url, tmp_path, "finished")

    write_report_on_change(
        url, tmp_path / "reports", ["csv"], on_written=written.extend, on_trouble=troubles.append, wait=wait
    )
    assert len(written) == 1
    assert [each.startswith(f"{url}: cannot list: ") for each in troubles] == [True]
