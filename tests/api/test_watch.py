"""A sweep notes how far it is beside its results; ``watch`` and ``report --watch`` show it from there. No worker."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Semaphore, Thread
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from run_specs import run_spec
from typer.testing import CliRunner

from harness.api import watch as watching
from harness.api.run import run
from harness.api.verify import verify
from harness.api.watch import ResultsWatch, write_report_on_change
from harness.cli.app import app
from harness.cli.render import watch as showing
from harness.cli.render.watch import clock, frame_text
from harness.core.model import MethodRef
from harness.core.progress import RunFailure, RunUnderWay, SweepProgress
from harness.core.record import Failure, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.errors import ResultsError, UsageError
from harness.execution import progress as noting
from harness.execution.events import Ended, Lost, PhaseBegan, ReadingResults, Remaining, Started, Withdrawn
from harness.execution.progress import ProgressNote
from harness.planning.forecast.forecast import Span
from harness.storage.anonymizer import Anonymizer
from harness.storage.place import LocalPlace
from harness.storage.progress import PREPARING, PROGRESS, read_progress, write_progress
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
NOTE = SweepProgress("sweep", "2026-01-01T00:00:00+00:00", "2026-01-01T00:05:00+00:00", 10.0, 9)
WAIT_S = 300.0
"""How long a test waits for what must happen; far longer than it takes."""
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def specs(count: int) -> list[RunSpec]:
    return [
        run_spec("quality", method=MethodRef("rtn", 1, {"bits": n}, f"rtn bits={n}", "on_load")) for n in range(count)
    ]


def record(spec: RunSpec, status: str = "ok", message: str = "") -> RunRecord:
    failure = None if status == "ok" else Failure("load", "OSError", message)
    return RunRecord(spec, Outcome(status, failure), "now", 1, "2026-01-01T00:00:00+00:00", 1.0)  # type: ignore[arg-type]


def planned_note(
    store: Store, planned: Sequence[RunSpec], device_of: Callable[[RunSpec], str] = lambda spec: ""
) -> ProgressNote:
    note = ProgressNote(store, "sweep")
    note.plan(planned, device_of)
    note.follow(ReadingResults("sweep"))
    return note


def noted(root: Path) -> SweepProgress:
    [note] = read_progress(LocalPlace(root))
    return note


def wait_for(root: Path, holds: Callable[[SweepProgress], bool]) -> SweepProgress:
    """The note of the one sweep, once it is so."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        if (found := read_progress(LocalPlace(root))) and holds(found[0]):
            return found[0]
        time.sleep(0.005)
    raise AssertionError("the note did not come")


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who watches sees clocks that stand still at NOW, so that ages do not depend on how long a test takes."""
    for module in (watching, showing):
        monkeypatch.setattr(module, "datetime", SimpleNamespace(now=lambda zone: NOW))
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: 1e6, sleep=time.sleep))


def put(root: Path, note: SweepProgress) -> SweepProgress:
    write_progress(LocalPlace(root), note)
    return note


def test_a_finished_sweep_has_noted_each_run_once(tmp_path: Path) -> None:
    planned = specs(6)
    note = planned_note(Store(tmp_path), planned)
    with note:
        for index, spec in enumerate(planned[:5], 1):
            note.follow(Started(spec, index, 6))
            note.follow(PhaseBegan(spec, "load"))
            status = ("ok", "ok", "failed", "ok", "unsupported")[index - 1]
            note.follow(Ended(record(spec, status, "first line\nsecond line"), index, 6, reused=index == 1))
        note.follow(Withdrawn(record(planned[3], "invalid", "an input changed")))
    found = noted(tmp_path)
    assert found.ending == "finished"
    assert (found.recipe, found.runs, found.done, found.waiting) == ("sweep", 6, 5, 1)
    assert found.ended == {"failed": 1, "invalid": 1, "ok": 2, "unsupported": 1}
    assert (found.reused, found.saved) == (1, 6)  # each once, and one again
    assert found.running == ()
    assert [(each.title, each.message) for each in found.failures] == [
        (planned[2].title, "first line"),
        (planned[3].title, "an input changed"),
    ]


@pytest.mark.parametrize(
    ("error", "ending"), [(KeyboardInterrupt, "interrupted"), (ResultsError, "failed"), (None, "finished")]
)
def test_the_note_says_how_the_sweep_ended(tmp_path: Path, error: type[BaseException] | None, ending: str) -> None:
    [spec] = specs(1)
    note = planned_note(Store(tmp_path), [spec])

    def sweep() -> None:
        with note:
            note.follow(Ended(record(spec), 1, 1, reused=False))
            if error is not None:
                raise error

    if error is None:
        sweep()
    else:
        with pytest.raises(error):
            sweep()
    assert noted(tmp_path).ending == ending


def test_what_executes_is_noted_while_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noting, "QUIET_S", 0.0)
    planned = specs(3)
    note = planned_note(Store(tmp_path), planned)

    with note:
        note.follow(Started(planned[0], 1, 3))
        note.follow(Ended(record(planned[0]), 1, 3, reused=False))
        note.follow(Started(planned[1], 2, 3, "node-1"))
        note.follow(Lost(planned[1], "node-1", "it does not answer", for_good=True, again=True))
        note.follow(Started(planned[1], 2, 3, "node-2"))
        note.follow(Remaining(Span(120.0, 60.0, 180.0)))
        note.follow(PhaseBegan(planned[1], "score"))
        found = wait_for(tmp_path, lambda each: any(run.phase == "score" for run in each.running))
        assert [(run.title, run.where) for run in found.running] == [(planned[1].title, "node-2")]
        assert (found.done, found.waiting, found.ending) == (1, 1, "running")
        assert found.left_s is not None
        assert 60 < found.left_s <= 120


def test_the_device_of_a_run_is_noted_where_it_is_one_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting, "QUIET_S", 0.0)
    first, second, third = specs(3)
    devices = {first.run_id: "GPU 0", second.run_id: "GPU 3"}
    with planned_note(Store(tmp_path), [first, second, third], lambda spec: devices.get(spec.run_id, "")) as note:
        for number, spec in enumerate((first, second, third), 1):
            note.follow(Started(spec, number, 3, "node-1" if spec is third else ""))
            note.follow(PhaseBegan(spec, "load"))
        found = wait_for(tmp_path, lambda each: [run.phase for run in each.running] == ["load"] * 3)
        assert [run.where for run in found.running] == ["GPU 0", "GPU 3", "node-1"]


@pytest.fixture
def nodes_never_come(monkeypatch: pytest.MonkeyPatch) -> Iterator[Semaphore]:
    """A cluster whose nodes are waited for until the semaphore is released, and then refused."""
    monkeypatch.setattr(noting, "QUIET_S", 0.0)
    refused = Semaphore(0)

    def wait(choice: object, site: object, report: Callable[[str], None]) -> NoReturn:
        report("waiting for 2 of 4 nodes")
        assert refused.acquire(timeout=WAIT_S)
        raise UsageError("the nodes are unlike")

    monkeypatch.setattr("harness.api.run.open_executor", wait)
    yield refused
    refused.release()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: sweep\nmodels: [x]\nmethods: [none]\nmeasure: {memory: {}}\ndevice: cpu\n", encoding="utf-8")
    return path


def begin(recipe: Path, results: Path) -> Future[object]:
    """A sweep in a thread."""
    begun: Future[object] = Future()

    def sweep() -> None:
        try:
            begun.set_result(run(recipe, results, results.with_name("cache")))
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            begun.set_exception(error)

    Thread(target=sweep, daemon=True).start()
    return begun


@pytest.mark.parametrize("before", ["dead", "interrupted", "none"])
def test_a_sweep_is_seen_before_it_has_planned_also_where_an_earlier_one_ended(
    tmp_path: Path, recipe: Path, nodes_never_come: Semaphore, before: str
) -> None:
    results = tmp_path / "results"
    if before != "none":
        put(results, replace(NOTE, ending="running" if before == "dead" else "interrupted"))
    begun = begin(recipe, results)
    wait_for(results, lambda each: each.preparing == "waiting for 2 of 4 nodes")
    watch = ResultsWatch(results)
    seen = watch.look()
    assert watch.goes_on(seen)
    [line, *rest] = frame_text(seen).splitlines()
    assert line.startswith("sweep · running for ")
    assert rest == ["  waiting for 2 of 4 nodes, before the first run"]
    nodes_never_come.release()
    assert isinstance(begun.exception(WAIT_S), UsageError)
    seen = watch.look()
    assert not watch.goes_on(seen)
    assert frame_text(seen).startswith("sweep · failed after ")


def test_a_sweep_that_is_kept_out_by_another_does_not_hide_it(
    tmp_path: Path, recipe: Path, nodes_never_come: Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    with Store(results).locked("sweep"):
        other = put(results, replace(NOTE, noted=datetime.now(UTC).isoformat()))
        begun = begin(recipe, results)
        until = time.monotonic() + WAIT_S
        while not (results / "sweep" / PREPARING).exists() and time.monotonic() < until:
            time.sleep(0.005)
        assert noted(results) == other
        nodes_never_come.release()
        assert isinstance(begun.exception(WAIT_S), UsageError)
        assert noted(results) == other


@pytest.mark.parametrize(
    ("begun", "preparing", "shown"),
    [
        ({"ending": "running", "noted": ago(9)}, ago(0), "begun"),
        ({"ending": "running", "noted": ago(90)}, ago(0), "preparing"),
        ({"ending": "finished", "noted": ago(9)}, ago(0), "preparing"),
        ({"ending": "finished", "noted": ago(0)}, ago(9), "begun"),
    ],
)
def test_a_sweep_that_prepares_hides_an_older_one_that_does_not_run(
    tmp_path: Path, begun: dict[str, Any], preparing: str, shown: str
) -> None:
    notes = {"begun": replace(NOTE, **begun), "preparing": replace(NOTE, noted=preparing, preparing="planning")}
    for note in notes.values():
        put(tmp_path, note)
    assert noted(tmp_path) == notes[shown]


def test_a_sweep_that_plans_locks_nothing_and_its_note_goes_when_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting, "QUIET_S", 0.0)
    file = tmp_path / "sweep" / PREPARING
    with Store(tmp_path).locked("sweep"), ProgressNote(Store(tmp_path), "sweep") as note:
        wait_for(tmp_path, lambda each: each.preparing == "planning")
        note.plan(specs(2), lambda spec: "")
        assert file.exists()
        note.follow(ReadingResults("sweep"))
        assert wait_for(tmp_path, lambda each: not each.preparing).runs == 2
        until = time.monotonic() + WAIT_S
        while file.exists() and time.monotonic() < until:
            time.sleep(0.005)
        assert not file.exists()


def test_a_sweep_that_is_just_being_started_is_waited_for(tmp_path: Path) -> None:
    watch = ResultsWatch(tmp_path)
    looks = [watch.goes_on(watch.look_at_sweeps()) for _ in range(3)]
    put(tmp_path, replace(NOTE, noted=ago(0)))
    looks += [watch.goes_on(watch.look_at_sweeps())]
    put(tmp_path, replace(NOTE, noted=ago(0), ending="finished"))
    assert looks == [True] * 4
    assert not watch.goes_on(watch.look_at_sweeps()), "one has run"
    idle = ResultsWatch(tmp_path)
    assert sum(iter(lambda: idle.goes_on(idle.look_at_sweeps()), False)) == 5


def test_a_sweep_that_executes_nothing_leaves_the_note_of_the_one_before(tmp_path: Path) -> None:
    earlier = put(tmp_path, replace(NOTE, ending="finished"))
    [spec] = specs(1)
    note = planned_note(Store(tmp_path), [spec])
    with note:
        note.follow(Started(spec, 1, 1))
        note.follow(Ended(record(spec), 1, 1, reused=True))
    assert noted(tmp_path) == earlier


def test_a_note_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    [spec] = specs(1)
    (tmp_path / "sweep").write_text("a file where the folder should be", encoding="utf-8")
    note = planned_note(Store(tmp_path), [spec])
    with note:
        note.follow(Ended(record(spec), 1, 1, reused=False))
    assert (tmp_path / "sweep").is_file()


def test_a_note_names_no_path_of_this_machine(tmp_path: Path) -> None:
    [spec] = specs(1)
    note = planned_note(Store(tmp_path, Anonymizer({"/home/ada": "~"})), [spec])
    with note:
        note.follow(Ended(record(spec, "failed", "no such file: /home/ada/model"), 1, 1, reused=False))
    assert noted(tmp_path).failures[0].message == "no such file: ~/model"


def test_notes_are_read_from_all_recipes_or_from_one(tmp_path: Path) -> None:
    one, two = put(tmp_path, NOTE), put(tmp_path, replace(NOTE, recipe="another"))
    assert read_progress(LocalPlace(tmp_path)) == (two, one)
    assert read_progress(LocalPlace(tmp_path / "sweep")) == (one,)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"recipe": 3}', b"\xff", b" " * 2**21])
def test_a_damaged_note_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, NOTE)
    other = put(tmp_path, replace(NOTE, recipe="whole"))
    (tmp_path / "sweep" / PROGRESS).write_bytes(content)
    assert read_progress(LocalPlace(tmp_path)) == (other,)


def test_results_with_a_note_are_as_intact_as_before(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example")
    before = list(verify(tmp_path))
    put(tmp_path, replace(NOTE, recipe="example"))
    assert list(verify(tmp_path)) == before


def test_a_sweep_that_is_silent_for_four_heartbeats_is_dead(tmp_path: Path) -> None:
    put(tmp_path, replace(NOTE, noted=ago(39)))
    [alive] = ResultsWatch(tmp_path).look_at_sweeps().sweeps
    assert alive.runs
    put(tmp_path, replace(NOTE, noted=ago(41)))
    [dead] = ResultsWatch(tmp_path).look_at_sweeps().sweeps
    assert not dead.runs
    assert "dead: silent for 0:41" in frame_text(ResultsWatch(tmp_path).look())
    put(tmp_path, replace(NOTE, noted=ago(41), ending="finished"))
    assert "finished after" in frame_text(ResultsWatch(tmp_path).look())


def test_a_note_that_changes_is_a_sign_of_life_whatever_the_clocks_say(tmp_path: Path) -> None:
    watch = ResultsWatch(tmp_path)
    put(tmp_path, replace(NOTE, noted="2001-01-01T00:00:00+00:00"))
    assert not watch.look_at_sweeps().sweeps[0].runs
    put(tmp_path, replace(NOTE, noted="2001-01-01T00:00:10+00:00"))
    assert watch.look_at_sweeps().sweeps[0].runs


def test_a_sweep_whose_note_cannot_be_read_for_a_moment_still_runs(tmp_path: Path) -> None:
    watch = ResultsWatch(tmp_path)
    put(tmp_path, replace(NOTE, noted=ago(0)))
    before = watch.look_at_sweeps().sweeps
    (tmp_path / NOTE.recipe / PROGRESS).write_text('{"cut":', encoding="utf-8")
    assert [each.progress for each in watch.look_at_sweeps().sweeps] == [each.progress for each in before]
    assert watch.look_at_sweeps().sweeps[0].runs
    put(tmp_path, replace(NOTE, noted=ago(0), ending="finished"))
    assert not watch.look_at_sweeps().sweeps[0].runs


def test_records_are_read_again_only_after_some_were_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example")
    read: list[Store] = []
    real = Store.read
    monkeypatch.setattr(Store, "read", lambda store: read.append(store) or real(store))
    watch = ResultsWatch(tmp_path)
    put(tmp_path, replace(NOTE, noted=ago(0), saved=1))
    first = watch.look()
    put(tmp_path, replace(NOTE, noted=ago(0), saved=1, running=(RunUnderWay("a", "load", ago(0), "cpu"),)))
    assert watch.look().tables == first.tables
    assert len(read) == 1
    put(tmp_path, replace(NOTE, noted=ago(0), saved=2))
    watch.look()
    assert len(read) == 2


@pytest.mark.parametrize("width", [80, 132])
def test_a_frame_has_the_sweep_and_the_figures_within_the_width(tmp_path: Path, width: int) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example")
    put(
        tmp_path,
        replace(
            NOTE,
            recipe="example",
            noted=ago(1),
            ended={"ok": 5, "failed": 1},
            running=(RunUnderWay("quality rtn bits=4", "score", ago(65), "cpu"),),
            failures=(RunFailure("quantize gptq bits=2", "failed", "load", "it has no such layer"),),
            left_s=7384.0,
        ),
    )
    lines = frame_text(ResultsWatch(tmp_path).look(), width).splitlines()
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert "example · running for" in text
    assert "≈ 2:03:03" in text
    assert "6 of 9 runs · 5 ok · 1 failed · 1 running · 2 waiting" in text
    assert "quality rtn bits=4  score  1:05" in text
    assert "quantize gptq bits=2: failed in load: it has no such layer" in text
    assert "rtn bits=8 group_size=32" in text
    assert "more columns: see qharness report" in text


def test_a_note_has_no_effect_on_the_terminal(tmp_path: Path) -> None:
    bad = "\x1b[2J[bold]x[/bold]"
    put(tmp_path, replace(NOTE, noted=ago(1), running=(RunUnderWay(bad, bad, bad, bad),), ended={bad: 1}))
    found = CliRunner().invoke(app, ["watch", str(tmp_path), "--once"])
    assert found.exit_code == 0
    assert "\x1b" not in found.stdout
    assert "[bold]x[/bold]" in found.stdout


def test_the_command_says_what_is_not_there(tmp_path: Path) -> None:
    assert "no sweep has noted" in CliRunner().invoke(app, ["watch", str(tmp_path), "--once"]).stdout
    missing = CliRunner().invoke(app, ["watch", str(tmp_path / "nowhere"), "--once"])
    assert isinstance(missing.exception, ResultsError)


class Sweeping:
    """In place of waiting, saves one more record of the example and notes it, until none is left."""

    def __init__(self, root: Path, heartbeats: int = 0) -> None:
        self.root, self.heartbeats = root, heartbeats
        self.left = sorted(path for path in EXAMPLE.iterdir() if path.is_dir())
        self.note = replace(NOTE, recipe="example", noted=ago(0), runs=len(self.left))
        put(root, self.note)

    def wait(self, seconds: float) -> None:
        assert seconds == watching.LOOK_EVERY_S
        if self.heartbeats:
            self.heartbeats -= 1
            self.note = replace(self.note, noted=ago(0))
        elif self.left:
            run = self.left.pop()
            shutil.copytree(run, self.root / "example" / run.name)
            status = json.loads((run / "1" / "record.json").read_text(encoding="utf-8"))["outcome"]["status"]
            ended = {**self.note.ended, status: self.note.ended.get(status, 0) + 1}
            self.note = replace(self.note, noted=ago(0), ended=ended, saved=self.note.saved + 1)
        else:
            self.note = replace(self.note, ending="finished")
        put(self.root, self.note)


def test_the_report_is_written_again_for_each_record_and_ends_with_the_sweep(tmp_path: Path) -> None:
    results, reports = tmp_path / "results", tmp_path / "reports"
    sweep = Sweeping(results, heartbeats=3)
    sweep.left = sweep.left[:4]
    pages: list[str] = []
    write_report_on_change(
        results,
        reports,
        ["csv"],
        on_written=lambda paths: pages.append(paths[0].read_text(encoding="utf-8")),
        wait=sweep.wait,
    )
    assert len(pages) == 4  # one per record: none for a heartbeat, none for the end
    waits: list[float] = []
    write_report_on_change(
        results, reports, ["csv"], on_written=lambda paths: pages.append(paths[0].read_text()), wait=waits.append
    )
    assert len(pages) == 5  # no sweep runs: once
    assert sum(waits) == 10, "one may be just being started"
    assert pages[-1] == pages[-2]


def test_the_page_is_written_again_too(tmp_path: Path) -> None:
    sweep = Sweeping(tmp_path / "results")
    sweep.left = [run for run in sweep.left if '"quality"' in (run / "1" / "record.json").read_text(encoding="utf-8")]
    sweep.left = sweep.left[:2]
    pages: list[str] = []
    write_report_on_change(
        sweep.root,
        tmp_path,
        ["html"],
        on_written=lambda paths: pages.extend(path.read_text(encoding="utf-8") for path in paths),
        wait=sweep.wait,
    )
    assert [path.name for path in tmp_path.rglob("*.html")] == ["report.html"]
    first, second = pages
    assert first != second
    assert (tmp_path / "example" / "report.html").read_text(encoding="utf-8") == second
    assert all(page.rstrip().endswith("</html>") for page in pages)


def test_a_job_summary_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="github"):
        write_report_on_change(tmp_path, tmp_path, ["github"])


def test_an_interrupt_ends_the_watching_of_a_report(tmp_path: Path) -> None:
    sweep = Sweeping(tmp_path / "results")
    sweep.wait(watching.LOOK_EVERY_S)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    written: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        write_report_on_change(tmp_path / "results", tmp_path, ["csv"], on_written=written.extend, wait=interrupt)
    assert [path.name for path in written] == ["report.csv"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (-3, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
