"""Figures over time in every format, and ``qharness history``: golden files, bad input, text that does no harm."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import harness
from harness.analysis.history.series import History
from harness.analysis.history.trace import trace
from harness.cli.app import app
from harness.core.model import MethodRef
from harness.core.record import Damaged, RunRecord
from harness.errors import ExitCode, UsageError
from harness.report.history import FORMATS, only_changed, render
from harness.report.history.terminal import terminal
from harness.report.history.words import sparkline
from harness.storage.store import Store

SUFFIXES = {"terminal": "txt", "markdown": "md", "json": "json", "csv": "csv"}
HOSTILE = "=x<script>alert(1)</script> | `a` [b](http://evil) \x1b[31m \x00"
METRICS = ("perplexity", "decode", "stored_bytes")


def sweep(bench: Any, none: MethodRef, looks: Any) -> list[RunRecord]:
    """Ten nights: a new torch costs quality on the sixth; the fourth is slow for one variant, and so are all after."""
    records = []
    int8 = looks[0]
    for night in range(1, 11):
        here = replace(bench, session=f"s{night:02}", day=night, torch="2.13.0" if night < 6 else "2.14.0")
        drift = float(np.exp(0.005 * np.random.default_rng(night).standard_normal()))
        slow = 0.8 if night >= 4 else 1.0
        records += [here.quality(none), here.quality(int8.method, int8.bits, 0.02 + (0.01 if night >= 6 else 0))]
        for repetition in range(3):
            records.append(here.performance(none, drift, repetition))
            records.append(here.performance(int8.method, int8.speed * drift * slow, repetition))
        if night == 9:
            records.append(here.failed(here.spec("quality", looks[1].method), message="no <kernel> | here"))
    return [replace(each, attempt=int(each.session[1:])) for each in records]


@pytest.fixture(scope="module")
def nightly(made_up: Any) -> list[RunRecord]:
    return sweep(made_up.bench(), made_up.none, made_up.looks)


@pytest.fixture
def found(nightly: list[RunRecord]) -> History:
    return trace(
        nightly,
        metrics=METRICS,
        names=("nightly",),
        damaged=(Damaged(Path("nightly/r/1/record.json"), "not a whole record"),),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_golden(name: str, found: History, golden: Any) -> None:
    golden(f"history.{SUFFIXES[name]}", render(found, name))


def test_csv_has_a_line_per_figure_and_marks_changes(found: History) -> None:
    lines = list(csv.DictReader(render(found, "csv").splitlines()))
    assert len(lines) == sum(len(each.points) for each in found.series)
    marked = [line for line in lines if line["change"]]
    assert {(line["metric"], line["session"]) for line in marked} == {("perplexity", "s06"), ("decode", "s04")}
    assert [line["environment"] for line in marked if line["metric"] == "perplexity"] == ["torch: 2.13.0 → 2.14.0"]
    assert float(lines[0]["value"]) == found.series[0].points[0].value


def test_only_what_changed(found: History) -> None:
    assert {each.metric for each in only_changed(found).series} == {"perplexity", "decode"}
    nothing = only_changed(replace(found, series=tuple(replace(each, changes=()) for each in found.series)))
    assert "no figure changed by more than its threshold in 10 sessions" in render(nothing)


def test_hostile_text_does_no_harm(bench: Any) -> None:
    evil = MethodRef("rtn", 1, {"as": HOSTILE}, HOSTILE, "on_load")
    other = replace(bench, session=HOSTILE, day=2, torch=HOSTILE)
    broken = replace(bench, session="s3", day=3)
    told = trace(
        [
            bench.quality(evil, 4.5, 0.2),
            other.quality(evil, 4.6, 0.2),
            broken.failed(broken.spec("quality", evil), message=HOSTILE),
        ]
    )
    shown = terminal(told)
    assert "\x1b" not in shown
    assert "\x00" not in shown
    text = render(told, "markdown")
    assert "<script>" not in text
    assert "\\](http" in text
    rows = [line for line in text.splitlines() if line.startswith("| 2026")]
    assert rows
    assert {row.replace("\\|", "").count("|") for row in rows} == {9}
    assert json.loads(render(told, "json"))["series"][0]["method"] == HOSTILE
    assert {line["method"][:2] for line in csv.DictReader(render(told, "csv").splitlines())} == {"'="}


def test_sparklines() -> None:
    assert sparkline([1, 2, 3]) == "▁▅█"
    assert sparkline([4, 4]) == "▄▄"
    assert len(sparkline(list(range(100)))) == 32


def test_an_unknown_format_is_refused(found: History) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'markdown'"):
        render(found, "markdwn")


class TestCommand:
    @pytest.fixture(scope="class")
    def halves(self, tmp_path_factory: pytest.TempPathFactory, nightly: list[RunRecord]) -> Path:
        """A folder with one results folder for each half of the nights."""
        folder = tmp_path_factory.mktemp("halves")
        for each in nightly:
            Store(folder / ("early" if each.session < "s05" else "late")).save(each)
        return folder

    @pytest.fixture
    def command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halves: Path) -> Any:
        """In a folder with both halves."""
        shutil.copytree(halves, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)

        def run(*arguments: object) -> Result:
            return CliRunner().invoke(app, ["history", *map(str, arguments)])

        return run

    def test_several_folders_are_one_history(self, command: Callable[..., Result]) -> None:
        ended = command("early", "late", "--metric", "perplexity", "--method", "INT8")
        assert ended.exit_code == ExitCode.OK
        assert ended.stdout.startswith("1 change in 1 series of 10 sessions; 1 for the worse")
        assert "torch: 2.13.0 → 2.14.0" in ended.stdout
        told = json.loads(command("early", "late", "--format", "json", "--model", "smollm2").stdout)
        assert told["names"] == ["early", "late"]
        assert told["sessions"] == 10

    def test_a_baseline_is_a_place_too(self, command: Callable[..., Result]) -> None:
        assert CliRunner().invoke(app, ["baseline", "set", "good", "early"]).exit_code == ExitCode.OK
        ended = command("good", "late", "--metric", "stored_bytes")
        assert ended.exit_code == ExitCode.OK

    def test_it_writes_a_file(self, command: Callable[..., Result], tmp_path: Path) -> None:
        ended = command("early", "--format", "markdown", "--out", "made/history.md", "--changed")
        assert ended.exit_code == ExitCode.OK
        assert (tmp_path / "made/history.md").read_text().startswith("## qharness history: ")

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("absent",), "absent: neither a results folder nor a baseline"),
            (("early", "--metric", "perplexty"), "did you mean 'perplexity'"),
            (("early", "--metric", "accuracy"), "none of these records holds a figure of accuracy"),
            (("early", "--method", "gptq"), "no figure of gptq; there are figures of SmolLM2-135M × bnb-int8"),
        ],
    )
    def test_nothing_to_show(self, command: Callable[..., Result], arguments: tuple[str, ...], expected: str) -> None:
        ended = command(*arguments)
        assert isinstance(ended.exception, UsageError)
        assert ended.exception.exit_code == ExitCode.USAGE
        assert expected in str(ended.exception)

    def test_the_same_from_python(self, command: Callable[..., Result]) -> None:
        found = harness.history("early", "late", metrics=["decode"])
        assert [change.session for each in found.series for change in each.changes] == ["s04"]
        with pytest.raises(UsageError, match="name a results folder"):
            harness.history()
