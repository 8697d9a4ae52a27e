"""What commands keep beside results: no answer depends on it, whatever happens to it or to the records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from imported_files import all_imported
from typer.testing import CliRunner

import harness
from harness.analysis import kept_tables, keyed, recommend, summaries, tradeoff
from harness.analysis.history import trace, values
from harness.analysis.regression import compared, track
from harness.api.baselines import Baselines
from harness.cli.app import app
from harness.report.answer import Answer
from harness.storage import index, reading
from harness.storage.entry import IndexEntry
from harness.storage.reading import read_records
from harness.storage.seal import EVIDENCE, RECORD
from harness.storage.store import Store
from harness.storage.summaries import (
    CODE,
    COMPARED,
    COMPARISON,
    HISTORY,
    RECOMMENDATION,
    REPORT,
    SUMMARIES,
    TABLES,
    TRACED,
    SummaryFile,
)

Bench = Any  # the class in conftest.py, which cannot be imported
WHOLE = (COMPARISON, HISTORY, RECOMMENDATION, TABLES)
KEPT = (COMPARED, TRACED, SUMMARIES, *WHOLE)
COMMANDS = (
    ("compare", "{base}", "{head}", "--format", "json"),
    ("history", "{base}", "{head}", "--format", "json"),
    ("recommend", "{head}", "--format", "json"),
)
MORE_COMMANDS = (
    *COMMANDS,
    ("compare", "{head}", "{head}", "--all"),
    ("compare", "{base}", "{head}", "--gate", "perplexity=5%", "--strict", "--all"),
    ("history", "{head}", "--metric", "perplexity"),
)


@pytest.fixture(autouse=True, scope="module")
def _small_indexes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "MIN_RUNS", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Two results folders: some variants changed from the one to the other, and some are the same runs."""
    bench = request.getfixturevalue("made_up")
    folder = tmp_path_factory.mktemp("whole")
    looks = bench.looks[:2]
    before = bench.bench(session="s1", day=1).sweep(looks, repetitions=3)
    later = bench.bench(session="s2", day=2, torch="2.14.0")
    after = later.sweep([replace(look, damage=1.5 * look.damage, speed=0.8 * look.speed) for look in looks], 3)
    for name, records in (("base", before), ("head", [*before[:9], *after])):
        for record in records:
            Store(folder / name).save(record)
    return folder


def answers(folder: Path, commands: Sequence[Sequence[str]] = COMMANDS) -> list[tuple[int, str]]:
    names = {"base": str(folder / "base"), "head": str(folder / "head")}
    ended = (CliRunner().invoke(app, [word.format(**names) for word in words]) for words in commands)
    return [(each.exit_code, each.output) for each in ended]


def derived_anew(folder: Path, commands: Sequence[Sequence[str]] = COMMANDS) -> list[tuple[int, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SummaryFile, "read", lambda file, first="": {})
        patch.setattr(SummaryFile, "add", lambda file, entries, records: None)
        patch.setattr(SummaryFile, "replace", lambda file, entries: None)
        return answers(folder, commands)


def flip(path: Path, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
    content = bytearray(path.read_bytes())
    content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    path.write_bytes(content)


def kept_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*/.*")) if path.name in KEPT]


def tampered(folder: Path, draw: Any, name: str) -> None:
    flip(draw(st.sampled_from(sorted(folder.glob(f"head/*/*/*/{name}")))), draw)


def on_kept(edit: Callable[[Path, Any], object]) -> Callable[[Path, Any], None]:
    def do(folder: Path, draw: Any) -> None:
        if there := kept_in(folder):
            edit(draw(st.sampled_from(there)), draw)

    return do


def another_run(folder: Path, draw: Any) -> None:
    records = read_records_of(folder / "head")
    chosen = draw(st.sampled_from(records))
    number = Store(folder / "head").next_attempt(chosen.spec.recipe, chosen.spec.run_id)
    again = replace(chosen, attempt=number, session="s3", started_at=f"2026-11-09T10:00:{number:02}+00:00")
    Store(folder / "head").save(again)


def read_records_of(folder: Path) -> tuple[Any, ...]:
    from harness.storage.reading import read_results

    return tuple(read_results(folder).records)


EDITS: tuple[Callable[[Path, Any], object], ...] = (
    on_kept(lambda path, draw: path.unlink()),
    on_kept(lambda path, draw: os.truncate(path, draw(st.integers(0, path.stat().st_size - 1)))),
    on_kept(flip),
    on_kept(lambda path, draw: path.write_bytes(path.read_bytes() + b"cut")),
    lambda folder, draw: tampered(folder, draw, EVIDENCE),
    lambda folder, draw: tampered(folder, draw, RECORD),
    another_run,
)


@pytest.mark.thorough
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_answers_are_those_that_are_derived_anew(whole: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("copy") / "both"
    shutil.copytree(whole, folder)
    answers(folder)
    for edit in data.draw(st.lists(st.sampled_from(EDITS), min_size=1, max_size=3)):
        edit(folder, data.draw)
    assert answers(folder) == derived_anew(folder)


def test_a_second_command_compares_nothing_again_and_opens_no_evidence(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    first = answers(folder, MORE_COMMANDS)
    assert first == derived_anew(folder, MORE_COMMANDS)
    assert {path.name for path in kept_in(folder)} == set(KEPT)
    sizes = [path.stat().st_size for path in kept_in(folder)]
    for name in (
        "harness.analysis.regression.compared._compared",
        "harness.analysis.history.values._values",
        "harness.analysis.summaries.row",
        "harness.storage.evidence.EvidenceFile._values",
    ):
        monkeypatch.setattr(name, None)
    assert answers(folder, MORE_COMMANDS) == first
    assert [path.stat().st_size for path in kept_in(folder)] == sizes
    for path in kept_in(folder):
        if path.name in WHOLE:
            path.unlink()
    assert answers(folder, MORE_COMMANDS) == first
    assert [path.stat().st_size for path in kept_in(folder)] == sizes


def test_what_a_baseline_gives_is_kept_beside_the_results_that_are_compared_with_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, baselines = tmp_path / "both", tmp_path / "baselines"
    shutil.copytree(whole, folder)
    Baselines(baselines).set("main", read_records_of(folder / "base"))
    command = ("compare", "main", "{head}", "--baselines", str(baselines), "--format", "json")
    first = answers(folder, [command])
    assert first == derived_anew(folder, [command])
    assert [path.relative_to(folder).parts for path in kept_in(folder)] == [("head", COMPARED), ("head", COMPARISON)]
    assert not kept_in(tmp_path)
    monkeypatch.setattr("harness.analysis.regression.compared._compared", None)
    assert answers(folder, [command]) == first
    (folder / "head" / COMPARISON).unlink()
    assert answers(folder, [command]) == first


ASKED_AGAIN = (
    *COMMANDS,
    ("recommend", "{head}", "--max-perplexity-increase", "1%"),
    ("compare", "{head}", "{head}", "--all"),
    ("history", "{head}", "--method", "rtn"),
)


@pytest.mark.parametrize("command", ASKED_AGAIN)
def test_the_last_answer_is_read_whole_without_building_a_record(
    command: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    first = answers(folder, [command])
    assert first == derived_anew(folder, [command])
    monkeypatch.setattr("harness.storage.entry.IndexEntry.record", None)
    assert answers(folder, [command]) == first


def test_an_answer_names_what_the_user_names_and_all_damage_however_it_was_asked_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    compared, traced = ("compare", "{head}", "./head", "--format", "json"), ("history", "./head", "--format", "json")
    answers(folder, COMMANDS)
    damaged = min(folder.glob(f"head/*/*/*/{RECORD}"))
    damaged.write_bytes(damaged.read_bytes()[1:])
    monkeypatch.chdir(folder)
    for command in (compared, traced):
        answered = answers(folder, [command, command])
        assert answered[0] == answered[1] == derived_anew(folder, [command])[0]
        assert damaged.parent.parent.name in answered[1][1]


@pytest.mark.thorough
def test_a_recommendation_is_shown_again_only_to_the_same_query_about_the_same_records(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    first = ("recommend", "{head}")
    others = (
        (*first, "--max-perplexity-increase", "50%"),
        (*first, "--maximize", "decode"),
        (*first, "--context", "4096", "--batch", "8", "--max-memory", "1GiB"),
        (*first, "--allow-labelled"),
    )
    answers(folder, [first])
    for command in others:
        assert answers(folder, [command, first]) == derived_anew(folder, [command, first])
    damaged = min(folder.glob(f"head/*/*/*/{RECORD}"))
    damaged.write_bytes(damaged.read_bytes()[1:])
    told = answers(folder, [first])
    assert told == answers(folder, [first]) == derived_anew(folder, [first])
    assert "damaged" in told[0][1]


OTHER_QUESTIONS = (
    ("recommend", "{head}", "--format", "json"),
    ("recommend", "{head}", "--max-kl", "0.3", "--format", "json"),
    ("recommend", "{head}", "--maximize", "decode", "--min-agreement", "10%"),
    ("recommend", "{head}", "--minimize", "kl", "--max-size", "1GB", "--allow-labelled", "--format", "markdown"),
)


def test_another_question_of_the_same_records_derives_no_table_and_builds_few_records(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    anew = derived_anew(folder, OTHER_QUESTIONS)
    answers(folder, OTHER_QUESTIONS[:1])
    with monkeypatch.context() as patch:
        patch.setattr("harness.analysis.tradeoff.tradeoff", None)
        assert answers(folder, OTHER_QUESTIONS) == anew
    built = []
    original = IndexEntry.record.func
    counted = cached_property(lambda entry: (built.append(entry), original(entry))[1])
    counted.__set_name__(IndexEntry, "record")
    monkeypatch.setattr(IndexEntry, "record", counted)
    assert answers(folder, OTHER_QUESTIONS[1:2]) == anew[1:2]
    assert len(built) < len(read_records(folder / "head")) / 2


@pytest.mark.parametrize("without", [SUMMARIES, TABLES])
def test_a_kept_table_is_not_used_without_its_rows_nor_after_a_record_changed(
    without: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    first, other = OTHER_QUESTIONS[:2]
    answers(folder, [first])
    (folder / "head" / without).unlink()
    assert answers(folder, [other]) == derived_anew(folder, [other])
    kept = (folder / "head" / TABLES).read_bytes()
    another_run(folder, lambda runs: next(iter(read_records_of(folder / "head"))))
    changed = answers(folder, OTHER_QUESTIONS)
    assert changed == derived_anew(folder, OTHER_QUESTIONS)
    (folder / "head" / TABLES).write_bytes(kept)  # that of fewer records
    (folder / "head" / RECOMMENDATION).unlink()
    assert answers(folder, OTHER_QUESTIONS) == changed


def test_a_recommendation_is_shown_again_only_by_the_code_that_made_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    command = ("recommend", "{head}")
    answers(folder, [command])
    monkeypatch.setattr("harness.report.recommendation.answer", lambda found: Answer("asked", None, "none"))
    ((_, kept),) = answers(folder, [command])
    monkeypatch.setattr("harness.api.results.report_code", lambda: "other code")
    ((_, made),) = answers(folder, [command])
    assert "asked: none" not in kept
    assert "asked: none" in made


def reported(folder: Path, out: Path, *options: str) -> dict[str, bytes]:
    """The files of the report of HEAD, and what was printed except their paths."""
    ended = CliRunner().invoke(app, ["report", str(folder / "head"), "--out", str(out), *options])
    assert ended.exit_code == 0, ended.output
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
    shutil.rmtree(out)
    return {**found, "printed": ended.output.replace(str(out), "").encode()}


def test_the_last_report_of_many_records_is_written_again_without_building_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    made = reported(folder, tmp_path / "made")
    assert {Path(name).suffix for name in made} == {".html", ".md", ".csv", ""}
    assert not (folder / "head" / REPORT).exists()
    monkeypatch.setattr("harness.api.report.MANY", 1)
    assert reported(folder, tmp_path / "first") == made
    with monkeypatch.context() as patch:
        patch.setattr("harness.storage.entry.IndexEntry.record", None)
        assert reported(folder, tmp_path / "again") == made
        paths = harness.write_report(folder / "head", tmp_path / "python")
        assert [path.read_bytes() for path in paths] == [made[f"smollm2-cpu/{path.name}"] for path in paths]
    monkeypatch.setattr("harness.api.results.report_code", lambda: "other code")
    monkeypatch.setattr(
        "harness.report.write.FORMATS", {name: lambda page: [("a.txt", b"")] for name in ("html", "md")}
    )
    assert reported(folder, tmp_path / "other", "--format", "md,html").keys() == {"smollm2-cpu/a.txt", "printed"}


@pytest.mark.thorough
def test_a_report_is_written_again_only_for_the_same_records_and_options(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)

    def changed(*options: str) -> dict[str, bytes]:
        """What is written with these options, after a report without any, which is what would be made anew."""
        with monkeypatch.context() as patch:
            made = reported(folder, tmp_path / "made", *options)
            patch.setattr("harness.api.report.MANY", 1)
            assert reported(folder, tmp_path / "kept", *options) == made
            assert reported(folder, tmp_path / "again", *options) == made
            return made

    first = changed("--format", "md")
    assert changed("--format", "csv") != first
    assert changed("--format", "md", "--redact") != first
    another_run(folder, lambda runs: read_records_of(folder / "head")[-1])
    second = changed("--format", "md")
    assert second != first
    damaged = min(folder.glob(f"head/*/*/*/{RECORD}"))
    damaged.write_bytes(damaged.read_bytes()[1:])
    assert damaged.parent.parent.name.encode() in next(iter(changed("--format", "md").values()))


def test_a_look_at_one_run_drops_nothing_that_was_kept_of_the_others(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.storage.summaries.SPARE_ENTRIES", 0)
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    answers(folder, [("history", "{head}")])
    kept = (folder / "head" / TRACED).read_bytes()
    run = [each.spec.run_id for each in read_records_of(folder / "head") if each.spec.job.repeated][-1]
    ((code, _),) = answers(folder, [("history", f"{{head}}@{run}")])
    assert code == 0
    assert (folder / "head" / TRACED).read_bytes().startswith(kept)
    assert (folder / "head" / TRACED).stat().st_size > len(kept)


def test_what_is_kept_lasts_until_code_changes_that_reads_records_or_derives_it() -> None:
    """Errors determine no figure, nor do recipes, whose fields parse options. The list of figures determines which ones
    a whole answer has.

    Which packages a machine has chooses the records that are compared, and these are in the keys.
    """
    kept = (compared, track, trace, values, summaries, recommend, tradeoff, kept_tables, keyed, reading)
    rooms = {path.partition("/")[0] for path in all_imported([each.__file__ for each in kept])}
    assert rooms - {"errors.py", "recipe", "host"} == set(CODE)


def test_a_new_run_is_compared_and_the_others_are_not(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    answers(folder)
    record = next(each for each in read_records(folder / "base") if each.spec.kind == "quality")
    later = replace(record, attempt=2, session="s3", started_at="2026-11-09T10:00:00+00:00")
    Store(folder / "head").save(later)
    seen = []
    original = compared._compared
    monkeypatch.setattr(compared, "_compared", lambda match, *rest: (seen.append(match), original(match, *rest))[1])
    CliRunner().invoke(app, ["compare", str(folder / "base"), str(folder / "head")])
    assert [each.head.spec.case_id for each in seen] == [record.spec.case_id]


@pytest.mark.thorough
def test_a_report_derives_the_values_of_a_new_run_and_of_no_other(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(whole, folder)
    reported(folder, tmp_path / "first", "--format", "html")
    record = next(
        each for each in read_records_of(folder / "head")[::-1] if each.spec.kind == "quality" and each.status == "ok"
    )
    later = replace(record, attempt=2, session="s3", started_at="2026-11-09T10:00:00+00:00")
    Store(folder / "head").save(later)
    seen = []
    original = values._values
    monkeypatch.setattr(values, "_values", lambda case, figure: (seen.append(case), original(case, figure))[1])
    again = reported(folder, tmp_path / "again", "--format", "html")
    assert {each.spec.case_id for each in seen} == {record.spec.case_id}
    with monkeypatch.context() as patch:
        patch.setattr(SummaryFile, "read", lambda file, first="": {})
        assert reported(folder, tmp_path / "anew", "--format", "html") == again
