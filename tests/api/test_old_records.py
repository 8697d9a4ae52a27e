"""Every command that reads results reads records of schema version 1, as an earlier qharness wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import load_results
from harness.cli.app import app

ROOT = Path(__file__).parents[2]
FOLDERS = {"record": ROOT / "tests" / "data" / "records" / "version-1", "sweep": ROOT / "results" / "example"}


@pytest.fixture(params=FOLDERS)
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a results folder, all of whose records are of version 1."""
    folder = tmp_path / "results" / "old"
    shutil.copytree(FOLDERS[request.param], folder)
    versions = {json.loads(path.read_text())["schema_version"] for path in folder.rglob("record.json")}
    assert versions == {1}
    return folder


def output(*arguments: object) -> str:
    """Of a command that ends well, or with nothing to decide by."""
    ended = CliRunner().invoke(app, list(map(str, arguments)))
    assert ended.exit_code in (0, 4), ended.output
    return ended.stdout


def test_a_report_has_a_row_for_each_variant(results: Path, tmp_path: Path) -> None:
    methods = set(load_results(results).method.dropna())
    output("report", results, "--out", tmp_path, "--format", "html,md,csv,parquet,model-card")
    (table,) = tmp_path.rglob("report.csv")
    page, markdown = (table.with_name(name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for method in methods:
        assert method in page
        assert method in markdown


def test_nothing_changed_beside_itself(results: Path) -> None:
    for form in ("terminal", "markdown", "junit"):
        assert output("compare", results, results, "--format", form)
    compared = json.loads(output("compare", results, results, "--format", "json"))
    assert compared["findings"]
    assert {each["verdict"] for each in compared["findings"]} <= {"unchanged", "incomparable"}


def test_history_recommendations_and_baselines_read_it(results: Path, tmp_path: Path) -> None:
    for form in ("terminal", "csv", "json", "markdown"):
        assert output("history", results, "--format", form)
    assert "none" in output("recommend", results)
    baselines = tmp_path / "baselines"
    output("baseline", "set", "old", results, "--baselines", baselines)
    assert "old" in output("baseline", "list", "--baselines", baselines)
    assert json.loads(output("compare", "old", results, "--baselines", baselines, "--format", "json"))["findings"]


def test_it_is_logged_to_mlflow(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'qharness[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logged = output("export", "mlflow", results, "--tracking-uri", (tmp_path / "mlruns").as_uri())
    assert "variant" in logged
