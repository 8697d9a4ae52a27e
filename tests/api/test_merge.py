"""``merge`` makes one results folder from several: nothing is lost or counts twice, and sources stay as they are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from newer_records import make_newer
from run_specs import run_spec
from typer.testing import CliRunner, Result

from harness.api.merge import merge
from harness.api.verify import verify
from harness.cli.app import app
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.core.run import HourlyPrice, ReaderSettings
from harness.errors import ExitCode, ResultsError, UsageError
from harness.storage.reading import attempt_folders, read_records
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
LOG = b"measured\n"


def record(content: str = "one", session: str = "first", second: int = 0, recipe: str = "sweep") -> RunRecord:
    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    spec = run_spec("quality", recipe, ModelRef("m", "m", content, "directory", "/m"), none, none)
    nll = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.25 + second), item_ids=("a", "b"))
    return RunRecord(spec, Outcome("ok", measurements=(nll,)), session, 1, f"2026-01-01T00:00:{second:02}+00:00", 1.5)


def saved(root: Path, *records: RunRecord) -> Path:
    for each in records:
        Store(root).save(each, LOG)
    return root


def actions(sources: list[Path], into: Path) -> Counter[str]:
    return Counter(each.action for each in merge(sources, into))


def contents(root: Path) -> dict[str, str]:
    """Every file of a folder and its hash."""
    files = (each for each in sorted(root.rglob("*")) if each.is_file() and each.name != ".lock")
    return {str(each.relative_to(root)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def test_attempts_of_different_runs_are_copied_byte_for_byte(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "1", record("one")), saved(tmp_path / "2", record("two"), record("one", recipe="other"))
    before = contents(one), contents(two)
    assert actions([one, two], tmp_path / "all") == {"copied": 3}
    assert contents(tmp_path / "all") == before[0] | before[1]
    assert (contents(one), contents(two)) == before


def test_an_old_schema_and_evidence_of_real_runs_stay_as_they_are(tmp_path: Path) -> None:
    assert set(actions([EXAMPLE], tmp_path / "all")) == {"copied"}
    assert read_records(tmp_path / "all") == read_records(EXAMPLE)


def test_a_second_merge_adds_nothing(tmp_path: Path) -> None:
    sources = [saved(tmp_path / "1", record("one")), saved(tmp_path / "2", record("two"))]
    actions(sources, tmp_path / "all")
    before = contents(tmp_path / "all")
    assert actions(sources, tmp_path / "all") == {"already there": 2}
    assert contents(tmp_path / "all") == before


def test_a_source_that_is_named_twice_is_taken_once(tmp_path: Path) -> None:
    """Also by another path, within another source, or as a copy."""
    source = saved(tmp_path / "1", record("one"), record("two"))
    (tmp_path / "link").symlink_to(source)
    shutil.copytree(source, tmp_path / "copy")
    ended = command(source, f"{source}/", tmp_path / "link", source, "--into", tmp_path / "all")
    assert ended.exit_code == ExitCode.OK
    assert contents(tmp_path / "all") == contents(source)
    assert actions([source / "sweep", source, tmp_path / "copy"], tmp_path / "again") == {
        "copied": 2,
        "already there": 4,
    }
    assert contents(tmp_path / "again") == contents(source)


def test_a_merge_goes_on_after_an_interruption(tmp_path: Path) -> None:
    sources = [saved(tmp_path / "1", record("one"), record("two"), record("three"))]
    steps = merge(sources, tmp_path / "all")
    next(steps)
    steps.close()  # the lock is released
    assert actions(sources, tmp_path / "all") == {"already there": 1, "copied": 2}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_sweeps_that_measured_the_same_run_are_all_kept_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    sweeps = [record(session=f"machine {number}", second=number) for number in range(3)]
    sources = [saved(tmp_path / str(number), each) for number, each in enumerate(sweeps)]
    assert actions([sources[number] for number in order], tmp_path / "all") == {"copied": 1, "renumbered": 2}
    merged = read_records(tmp_path / "all")
    assert [replace(each, attempt=1) for each in merged] == sweeps
    assert sorted(each.attempt for each in merged) == [1, 2, 3]
    assert all(path.read_bytes() == LOG for path in (tmp_path / "all").rglob("log.txt"))
    assert {each.state for each in verify(tmp_path / "all")} == {"ok"}
    assert actions(sources, tmp_path / "all") == {"already there": 3}


def test_an_attempt_that_was_withdrawn_anywhere_counts_nowhere(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "1", record()), saved(tmp_path / "2", record())
    Store(two).withdraw(record(), Failure("verify", "InvalidRunError", "the model's folder changed"))
    assert actions([one, two], tmp_path / "forth") == {"copied": 1, "withdrawn": 1}
    assert actions([two, one], tmp_path / "back") == {"copied": 1, "already there": 1}
    assert read_records(tmp_path / "forth") == read_records(tmp_path / "back") == read_records(two)
    assert read_records(two)[0].status == "invalid"


def test_settings_that_a_later_sweep_changed_are_those_of_the_merged_results(tmp_path: Path) -> None:
    """A sweep with another price saves a finished attempt again: the same run, session and start, the next number."""
    prices = [ReaderSettings(price=HourlyPrice(each, "EUR")) for each in (2.0, 3.0, 2.0)]
    restated = [
        replace(record(), spec=replace(record().spec, readers=each), attempt=number)
        for number, each in enumerate(prices, 1)
    ]
    whole, older = saved(tmp_path / "whole", *restated), saved(tmp_path / "older", *restated[:2])
    assert actions([whole], tmp_path / "all") == {"copied": 3}
    assert actions([older, whole], tmp_path / "all") == {"already there": 5}
    assert actions([older, whole], tmp_path / "in order") == {"copied": 3, "already there": 2}
    for name in ("all", "in order"):
        merged = sorted(read_records(tmp_path / name), key=lambda each: each.attempt)
        assert [each.spec.readers for each in merged] == prices
    edited = replace(restated[2], outcome=replace(record().outcome, measurements=()))
    assert actions([saved(tmp_path / "edited", edited)], tmp_path / "all") == {"conflict": 1}
    Store(older).withdraw(restated[1], Failure("verify", "InvalidRunError", "the model's folder changed"))
    assert actions([older], tmp_path / "all") == {"already there": 1, "withdrawn": 1}
    assert {each.status for each in read_records(tmp_path / "all")} == {"invalid"}


def test_two_copies_that_differ_are_a_conflict_and_the_first_is_kept(tmp_path: Path) -> None:
    edited = replace(record(), outcome=replace(record().outcome, measurements=()))
    one, two = saved(tmp_path / "1", record()), saved(tmp_path / "2", edited)
    ended = command(one, two, "--into", tmp_path / "all")
    assert ended.exit_code == ExitCode.GATE_FAILED
    assert "1 copied, 1 conflict" in ended.stdout
    assert read_records(tmp_path / "all") == (record(),)


def test_a_damaged_or_newer_attempt_is_left_out_and_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "1", record("one"), record("two"), record("three"))
    first, second, third = attempt_folders(source)
    (first / "evidence.parquet").write_bytes(b"not parquet")
    make_newer(second / "record.json")
    ended = command(source, "--into", tmp_path / "all", "--json")
    assert ended.exit_code == ExitCode.GATE_FAILED
    steps = {step["path"]: step["action"] for step in map(json.loads, ended.stdout.splitlines())}
    assert [steps[str(each)] for each in (first, second, third)] == ["left out", "left out", "copied"]
    assert len(read_records(tmp_path / "all")) == 1


def test_an_attempt_with_a_damaged_log_is_taken_without_it(tmp_path: Path) -> None:
    source = saved(tmp_path / "1", record())
    (folder,) = attempt_folders(source)
    (folder / "log.txt").write_bytes(b"something else")
    assert actions([source], tmp_path / "all") == {"renumbered": 1}
    assert read_records(tmp_path / "all") == (record(),)
    assert [each.state for each in verify(tmp_path / "all")] == ["ok"]


def test_a_target_within_a_source_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source = saved(tmp_path / "1", record())
    before = contents(tmp_path)
    for target in (source, source / "sweep", tmp_path):
        with pytest.raises(UsageError, match="--into"):
            merge([source], target)
    with pytest.raises(ResultsError, match="no such folder"):
        merge([source, tmp_path / "missing"], tmp_path / "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="contains no records"):
        merge([source, tmp_path / "empty"], tmp_path / "all")
    assert contents(tmp_path) == before


def test_a_target_that_a_sweep_writes_is_left_alone(tmp_path: Path) -> None:
    source = saved(tmp_path / "1", record())
    with Store(tmp_path / "all").locked("sweep"), pytest.raises(ResultsError, match="is writing here"):
        actions([source], tmp_path / "all")
    assert list((tmp_path / "all").rglob("record.json")) == []
