"""Figures into MLflow: a real store in a folder holds what the report says; skipped where the extra is missing."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import CORPUS, spoiled
from typer.testing import CliRunner

from harness.cli.app import app
from harness.core.model import MethodRef
from harness.core.record import RunRecord
from harness.errors import ExitCode, UsageError
from harness.report import escape
from harness.report.flat import entries
from harness.report.page import page
from harness.report.renderers.mlflow_export import export
from harness.storage.store import Store


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'qharness[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


@pytest.fixture
def swept(bench: Any, looks: Sequence[Any], none: MethodRef) -> list[RunRecord]:
    made = [bench.quality(none), bench.quality(looks[0].method, looks[0].bits, looks[0].damage)]
    for repetition in range(2):
        made += [bench.performance(none, 1.0, repetition), bench.performance(looks[0].method, 0.6, repetition)]
    return [*made, bench.failed(bench.spec("quality", looks[1].method), message="no <kernel>")]


def stored(uri: str) -> tuple[Any, list[Any]]:
    """A client, and all runs of the experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("qharness")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def test_runs_hold_what_the_report_says(uri: str, swept: list[RunRecord], tmp_path: Path) -> None:
    (done,) = export(swept, uri, "qharness")
    client, runs = stored(uri)
    (parent,) = [run for run in runs if run.data.tags["qharness.kind"] == "session"]
    children = {run.data.tags["variant"]: run for run in runs if run.data.tags["qharness.kind"] == "variant"}
    (table,) = page(swept).tables
    lines = {str(line["variant"]): line for line in entries([table])}
    assert done.run_id == parent.info.run_id
    assert done.variants == len(children) == len(lines) == 3
    assert children.keys() == lines.keys()
    for name, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        told = {key: float(value) for key, value in lines[name].items() if isinstance(value, float | int)}
        told.pop("is_baseline")
        assert run.data.metrics == {key: pytest.approx(value) for key, value in told.items()}
    whole = children["bnb-int8"].data
    assert whole.metrics["stored_bytes"] == 220_218_624
    assert whole.params["method"] == "bnb_int8"
    assert whole.tags["software.torch"] == "2.13.0"
    assert whole.tags["hardware.cpu"] == "AMD EPYC 9B14"
    assert children["bnb-4bit nf4"].info.status == "FAILED"
    assert "no <kernel>" in children["bnb-4bit nf4"].data.tags["reason"]
    assert {each.path for each in client.list_artifacts(parent.info.run_id)} == {
        "report.html",
        "report.md",
        "report.csv",
    }


def test_each_session_once(uri: str, swept: list[RunRecord]) -> None:
    later = [replace(each, session="s2", started_at=each.started_at.replace("2026", "2027")) for each in swept]
    export(swept, uri, "qharness")
    again = export([*swept, *later], uri, "qharness")
    assert [(each.session, each.variants) for each in again] == [("s1", None), ("s2", 3)]
    _, runs = stored(uri)
    assert len(runs) == 2 * 4


def test_a_run_that_broke_off_is_no_whole_one(uri: str, swept: list[RunRecord]) -> None:
    (first,) = export(swept, uri, "qharness")
    client, _ = stored(uri)
    client.set_terminated(first.run_id, "FAILED")
    (second,) = export(swept, uri, "qharness")
    assert second.run_id != first.run_id


def test_hostile_names_are_stored(uri: str, bench: Any) -> None:
    evil = "x'; drop <b> \x00 | ü" + "y" * 9000
    method = MethodRef("rtn", 1, {"as": "evil"}, evil, "on_load")
    other = replace(bench, session=evil[:20], torch=evil)
    (done,) = export([other.quality(method, 4.5, 0.2)], uri, "qharness")
    assert done.variants == 1
    (again,) = export([other.quality(method, 4.5, 0.2)], uri, "qharness")
    assert again.variants is None


def test_hostile_records_are_stored(uri: str, swept: list[RunRecord]) -> None:
    words = tuple(CORPUS.values())
    for start in (0, 13, 26):
        (done,) = export(spoiled(swept, *words[start:], *words[:start]), uri, "qharness")
        assert done.variants == 3
    for name in ("..", "a/../b", "/x", "a//b", "", "."):
        assert escape.mlflow_name(name) == posixpath.normpath(escape.mlflow_name(name)) not in (".", "..")


def test_the_command(uri: str, swept: list[RunRecord], tmp_path: Path) -> None:
    for each in swept:
        Store(tmp_path / "results").save(each)
    arguments = ["export", "mlflow", str(tmp_path / "results"), "--tracking-uri", uri]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == ExitCode.OK, ended.output
    assert ended.stdout.startswith("session s1: run ")
    assert "3 variants" in ended.stdout
    assert "already logged" in CliRunner().invoke(app, arguments).stdout


def test_nothing_to_export_and_no_store(uri: str, bench: Any, swept: list[RunRecord]) -> None:
    with pytest.raises(UsageError, match="no session measured a variant"):
        export([bench.prepare()], uri, "qharness")
    with pytest.raises(UsageError, match="MLflow at nonsense://"):
        export(swept, "nonsense://nowhere", "qharness")


def test_without_mlflow_it_says_how_to_get_it(swept: list[RunRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "mlflow.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"pip install 'qharness\[mlflow\]'"):
        export(swept, "file:///nowhere", "qharness")
