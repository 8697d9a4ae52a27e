"""Every command goes on where a record is damaged, and names it; none passes because a record is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from instant_executor import InstantExecutor
from newer_records import make_newer
from run_specs import run_spec
from typer.testing import CliRunner, Result

import harness
from harness.cli.app import app
from harness.cli.render.sweep import display
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Outcome, RunRecord
from harness.errors import ExitCode, ResultsError
from harness.execution.events import DamageFound, Event
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.storage.cache import Cache
from harness.storage.reading import read_records
from harness.storage.store import Store

KEPT = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The example's records, sealed."""
    store = Store(tmp_path / "results")
    for each in read_records(KEPT):
        store.save(each, b"its log\n")
    return tmp_path / "results"


@pytest.fixture
def torn(results: Path) -> Path:
    """The attempt of a quantized variant's quality run, whose evidence lost a bit."""
    quality = [each for each in read_records(results) if each.spec.kind == "quality" and not each.spec.is_baseline]
    folder = results / "example" / quality[0].spec.run_id / "1"
    content = bytearray((folder / "evidence.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "evidence.parquet").write_bytes(content)
    return folder


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_report_names_it_and_shows_the_rest(results: Path, torn: Path, tmp_path: Path) -> None:
    ended = command("report", results, "--out", tmp_path / "out", "--format", "html,md,github")
    assert ended.exit_code == ExitCode.OK
    reason = "evidence.parquet: its content is not what was sealed"
    assert f"left out: {torn}: {reason}" in ended.stderr
    for name in ("report.html", "report.md", "summary.md"):
        (page,) = (tmp_path / "out").rglob(name)
        assert "Damaged records" in page.read_text()
        assert reason in page.read_text()


def test_a_damaged_log_is_named_and_the_figures_stay(results: Path, tmp_path: Path) -> None:
    whole = harness.load_results(results)
    log = next(results.rglob("log.txt"))
    log.write_bytes(b"its lag\n")
    ended = command("report", results, "--out", tmp_path / "out", "--format", "csv")
    assert f"the figures are valid, but the log is damaged: {log.parent}: log.txt: " in ended.stderr
    compared = command("compare", results, results)
    assert compared.exit_code == command("compare", KEPT, KEPT).exit_code
    assert "the log is damaged" in compared.stdout.replace("\n", " ")
    with pytest.warns(UserWarning, match="the log is damaged"):
        assert harness.load_results(results).equals(whole)


def test_no_gate_passes_and_no_choice_holds_without_it(results: Path, torn: Path, tmp_path: Path) -> None:
    head = results.rename(tmp_path / "head")
    torn_too = head / torn.relative_to(results)
    for each in read_records(KEPT):
        Store(results).save(each)
    found = harness.compare(results, head, {"stored_bytes": 0})
    assert found.outcome == "undecided"
    assert [each.path for each in found.head.damaged] == [torn_too]
    well, doubtful = (harness.recommend(folder)[0] for folder in (results, head))
    assert well.pick is not None
    assert doubtful.missing
    assert not doubtful.holds
    strict = command("recommend", head, "--strict")
    assert strict.exit_code == ExitCode.INCONCLUSIVE
    assert f"left out: {torn_too}" in strict.stderr
    none = command("recommend", head, "--max-memory", "1KiB")
    assert none.exit_code == ExitCode.INCONCLUSIVE, "the record left out might meet the limit"
    assert command("recommend", results, "--max-memory", "1KiB").exit_code == ExitCode.GATE_FAILED


def test_a_history_and_a_table_go_on_and_what_must_be_whole_refuses(results: Path, torn: Path, tmp_path: Path) -> None:
    assert "left out: " in command("history", results, "--format", "markdown").stdout
    with pytest.warns(UserWarning, match=r"left out: .*evidence\.parquet"):
        frame = harness.load_results(results)
    assert torn.parent.name not in set(frame.run_id)
    for arguments in (("baseline", "set", "main"), ("export", "mlflow", "--tracking-uri", tmp_path.as_uri())):
        ended = command(*arguments, results)
        assert isinstance(ended.exception, ResultsError)
        assert str(torn) in str(ended.exception)


def planned(number: int) -> PlannedRun:
    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    return PlannedRun(run_spec("quality", "sweep", ModelRef("m", "m", f"{number}", "directory", "/m"), none, none))


class TestRun:
    def test_what_is_damaged_is_set_aside_and_made_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store, executor = Store(tmp_path / "results"), InstantExecutor(Cache(tmp_path / "cache"))
        runs = [planned(number) for number in range(4)]
        first = sweep(runs, store, executor, lambda event: None)  # type: ignore[arg-type]
        folders = [store.root / "sweep" / each.spec.run_id / "1" for each in runs]
        (folders[0] / "record.json").write_text("{")
        text, replaced = re.subn(r'"wall_s": [0-9.e-]+', '"wall_s": NaN', (folders[1] / "record.json").read_text())
        assert replaced
        (folders[1] / "record.json").write_text(text)
        (folders[2] / "log.txt").unlink()
        events: list[Event] = []
        executor.ran.clear()
        again = sweep(runs, store, executor, events.append)  # type: ignore[arg-type]
        assert executor.ran == [each.spec for each in runs[:2]]
        assert [each.attempt for each in again] == [2, 2, 1, 1]
        assert again[2:] == first[2:]
        damaged = {each.damaged.path: each.moved_to for each in events if isinstance(each, DamageFound)}
        aside = store.root / "sweep" / ".damaged"
        moved = {folder: str(aside / f"{folder.parent.name}.1") for folder in folders[:2]}
        assert damaged == {**moved, folders[2]: None}
        assert (aside / f"{folders[0].parent.name}.1" / "log.txt").read_bytes() == b"measured\n"
        assert [each.path for each in store.read().damaged] == [folders[2]], "a damaged log counts, and is named again"
        self._shown(events, capsys)

    def _shown(self, events: Sequence[Event], capsys: pytest.CaptureFixture[str]) -> None:
        for as_json in (False, True):
            with display(as_json) as show:
                for each in events:
                    if isinstance(each, DamageFound):
                        show(each)
        lines = capsys.readouterr().out.splitlines()
        assert sum("and made again" in line for line in lines[:3]) == 2
        parsed = [json.loads(line) for line in lines[3:]]
        assert [(each["event"], each["log_only"], each["moved_to"] is None) for each in parsed].count(
            ("damaged", True, True)
        ) == 1

    def test_a_newer_record_stops_it_and_stays(self, tmp_path: Path) -> None:
        store, executor = Store(tmp_path / "results"), InstantExecutor(Cache(tmp_path / "cache"))
        sweep([planned(0)], store, executor, lambda event: None)  # type: ignore[arg-type]
        path = store.root / "sweep" / planned(0).spec.run_id / "1" / "record.json"
        make_newer(path)
        kept = path.read_bytes()
        with pytest.raises(ResultsError, match="written by a newer qharness"):
            sweep([planned(0)], store, executor, lambda event: None)  # type: ignore[arg-type]
        assert path.read_bytes() == kept

    def test_a_withdrawn_record_is_sealed_too(self, tmp_path: Path) -> None:
        from harness.core.record import Failure

        store, executor = Store(tmp_path / "results"), InstantExecutor(Cache(tmp_path / "cache"))
        (made,) = sweep([planned(0)], store, executor, lambda event: None)  # type: ignore[arg-type]
        store.withdraw(made, Failure("inputs", "InvalidRunError", "changed"))
        found = store.read()
        assert [each.status for each in found.records] == ["invalid"]
        assert not found.damaged


def test_a_plan_names_it_and_counts_its_run_as_to_do(tmp_path: Path, tiny: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: r\nmodels: [{tiny}]\nmethods: [none]\nmeasure: {{memory: {{}}}}\n")
    (run,) = (each for each in harness.plan(harness.load_recipe(recipe)) if each.spec.kind == "performance")
    store = Store(tmp_path / "results")
    path = store.save(RunRecord(run.spec, Outcome("ok"), "s", 1, "2026-01-01T00:00:00+00:00", 1.0))

    def planned_again() -> tuple[str, str]:
        ended = command("plan", recipe, "--results", store.root, "--json", "--cache", tmp_path / "cache")
        (line,) = (line for line in map(json.loads, ended.stdout.splitlines()) if line["run_id"] == run.spec.run_id)
        return line["state"], ended.stderr

    assert planned_again() == ("done", "")
    path.write_text("{")
    state, named = planned_again()
    assert state == "to do"
    assert "record.json: not valid JSON" in named


def test_a_lost_baseline_does_not_hide_the_others(results: Path, tmp_path: Path) -> None:
    for name in ("good", "lost"):
        command("baseline", "set", name, results, "--baselines", tmp_path / "kept")
    for path in (tmp_path / "kept" / "lost").rglob("record.json"):
        path.write_text("{")
    listed = command("baseline", "list", "--baselines", tmp_path / "kept")
    assert listed.exit_code == ExitCode.OK
    assert listed.stdout.startswith("good  ")
    assert "lost: " in listed.stderr
