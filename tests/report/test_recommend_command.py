"""``qharness recommend``: exit codes and formats; the answers themselves are tested beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import harness
from harness.cli.app import app
from harness.core.record import RunRecord
from harness.errors import UsageError
from harness.storage.store import Store


@pytest.fixture(scope="module")
def command() -> CliRunner:
    return CliRunner()


@pytest.fixture
def folder(records: list[RunRecord], tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    for record in records:
        store.save(record)
    return store.root


def test_exit_codes_and_formats(command: CliRunner, folder: Path) -> None:
    def ended(*options: str) -> Result:
        return command.invoke(app, ["recommend", str(folder), *options])

    found = ended("--format", "json", "--max-size", "8GB", "--max-perplexity-increase", "1%")
    assert found.exit_code == 0
    (line,) = found.stdout.splitlines()
    assert json.loads(line)["pick"] == "torchao int8-weight-only"
    assert json.loads(line)["holds"] is True
    nobody = ended("--max-size", "1MB", "--format", "markdown")
    assert nobody.exit_code == 1
    assert "no variant; the closest is rtn 2-bit g64" in nobody.stdout
    unmeasured = ended("--max-accuracy-drop", "1%")
    assert unmeasured.exit_code == 4
    assert "not known" in unmeasured.stdout
    uncertain = ("--max-perplexity-increase", "0.45%")  # +0.449% [+0.372, +0.526]
    assert ended(*uncertain).exit_code == 0
    assert ended(*uncertain, "--strict").exit_code == 4
    wrong = ended("--max-memory", "0GiB")
    assert isinstance(wrong.exception, UsageError)
    assert str(wrong.exception).startswith("--max-memory: expected a size above zero")
    unloaded = ended("--max-e2e", "2s", "--at-load", "8")
    assert isinstance(unloaded.exception, UsageError)
    assert str(unloaded.exception).startswith("--at-load 8: this load was not measured; measured: none")


def test_from_python(folder: Path, records: list[RunRecord]) -> None:
    (found,) = harness.recommend(folder, max_size="8GB", max_perplexity_increase=0.01)
    assert found.pick is not None
    assert found.pick.row.label == "torchao int8-weight-only"
    (same,) = harness.recommend(records, max_size=8 * 10**9, max_perplexity_increase="1%")
    assert [each.row.label for each in same.admissible] == [each.row.label for each in found.admissible]
