"""``--redact``: what identifies a user or a machine is left out of every format, and no figure changes by that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_specs import changed
from typer.testing import CliRunner

import harness
from harness.api.site import write_site
from harness.cli.app import app
from harness.core.label import Fact, Label
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, RunRecord
from harness.core.workload import TextRef
from harness.report import comparison, history
from harness.report.page import page
from harness.report.redact import LEFT_OUT, Redaction
from harness.storage.store import Store

FORMATS = ("html", "md", "csv", "parquet", "model-card", "github")


def private(record: RunRecord) -> RunRecord:
    """The record as a user has it who keeps local models and texts, on a machine that says much about itself."""
    spec, outcome = record.spec, record.outcome
    if spec.job.models:
        model = replace(
            spec.model, id="/data/planted/base", label="planted-base", kind="directory", path="/data/planted/base"
        )
        spec = changed(spec, model=model)
    if spec.perplexity is not None:
        text = TextRef("planted.txt", "../planted.txt", sha256=spec.perplexity.text.sha256)
        spec = changed(spec, perplexity=replace(spec.perplexity, text=text))
        measured = [replace(each, protocol={**each.protocol, "text": text.id}) for each in outcome.measurements]
        outcome = replace(outcome, measurements=tuple(measured))
    before = outcome.before
    if before is not None:
        before = replace(
            before,
            hardware={**before.hardware, "platform": "Linux-6-planted", "board_serial": "planted-1"},
            software={**before.software, "torch": "2 from /planted"},
        )
    failure = outcome.failure and Failure("load", "OSError", "planted message", "planted log")
    facts = (*outcome.facts, Fact("noted", {"name": "where", "value": "planted"}))
    labels = (*outcome.labels, Label("other", {"text": "planted warning"}))
    return replace(
        record, spec=spec, outcome=replace(outcome, failure=failure, before=before, facts=facts, labels=labels)
    )


@pytest.fixture
def mine(bench: Any, records: list[RunRecord], looks: Sequence[Any]) -> list[RunRecord]:
    checkpoint = ModelRef(
        "../planted-q", "planted-q", "9" * 64, "directory", "../planted-q", native_quantization="gptq"
    )
    method = MethodRef("checkpoint", 1, {"id": "../planted-q"}, "checkpoint planted-q", "published", checkpoint)
    by_path = MethodRef("own", 1, {"file": "/planted/x", "bits": 4}, "own file=/planted/x bits=4", "offline")
    more = [bench.quality(each, looks[1].bits, looks[1].damage) for each in (method, by_path)]
    broken = bench.failed(bench.spec("quality", looks[2].method), message="no kernel")
    return [private(record) for record in (*records, *more, broken)]


def test_nothing_that_is_private_is_in_any_format(mine: list[RunRecord], tmp_path: Path) -> None:
    for path in harness.write_report(mine, tmp_path / "open", FORMATS):
        assert "planted" in _content(path), f"{path.name} would prove nothing"
    for path in harness.write_report(mine, tmp_path / "redacted", FORMATS, redact=True):
        assert "planted" not in _content(path), path
        assert "planted" not in path.name


def test_nothing_that_is_private_is_in_a_site(mine: list[RunRecord], tmp_path: Path) -> None:
    """Nor among the conditions of its comparability keys, in the pages of models."""
    store = Store(tmp_path / "planted")
    for record in mine:
        store.save(replace(record, attempt=store.next_attempt(record.spec.recipe, record.spec.run_id)))
    for redact, out in ((False, tmp_path / "open"), (True, tmp_path / "redacted")):
        write_site([store.root], out, redact=redact)
        pages = {path.relative_to(out).as_posix(): _content(path) for path in out.rglob("*.html")}
        assert any(name.startswith("models/") for name in pages)
        assert all(("planted" in content) is not redact for content in pages.values())
        shown = {name for name, content in pages.items() if re.search("Comparability key[:<]", content)}
        assert bool(shown) is not redact


def test_the_page_says_what_it_leaves_out(mine: list[RunRecord], tmp_path: Path) -> None:
    for path in harness.write_report(mine, tmp_path, ("html", "md", "github"), redact=True):
        assert LEFT_OUT in path.read_text(encoding="utf-8")
    (path,) = harness.write_report(mine, tmp_path, ("html",))
    assert "Redacted" not in path.read_text(encoding="utf-8")


def test_every_figure_and_every_row_stays(mine: list[RunRecord]) -> None:
    plain, redacted = (page(mine, redact=redact) for redact in (False, True))
    assert [len(table.rows) for table in redacted.tables] == [len(table.rows) for table in plain.tables]
    for before, after in zip(plain.tables, redacted.tables, strict=True):
        assert after.hardware == before.hardware
        for one, other in zip(before.rows, after.rows, strict=True):
            for name in ("status", "perplexity", "kl_mean", "stored_bytes", "speeds", "front", "is_baseline"):
                assert getattr(other, name) == getattr(one, name)
    labels = [row.label for table in redacted.tables for row in table.rows]
    assert "checkpoint model-2" in labels
    assert any("file=path-1" in label and "bits=4" in label for label in labels), labels


def test_versions_and_the_class_of_the_machine_stay(mine: list[RunRecord]) -> None:
    redacted = page(mine, redact=True)
    assert {name for name, _ in redacted.hardware} <= {"cpu", "cores", "memory", "gpu", "gpu memory", "driver"}
    assert {name for name, _ in page(mine).software} == {name for name, _ in redacted.software}


def test_equal_names_get_equal_numbers_and_public_names_stay(mine: list[RunRecord]) -> None:
    redaction = Redaction()
    first, again = redaction.records(mine), redaction.records(mine)
    assert first == again
    hub = ModelRef("org/m", "m", "org/m@1", "hub", "~/.cache/x", revision="1")
    package = ModelRef("package:known/m.gguf", "m", "1" * 64, "gguf", "$ENV/known/m.gguf")
    measured = next(record for record in mine if record.spec.job.models)
    public = [replace(measured, spec=changed(measured.spec, model=each)) for each in (hub, package)]
    kept = redaction.records(public)
    assert [(each.spec.model.id, each.spec.model.label, each.spec.model.path) for each in kept] == [
        ("org/m", "m", ""),
        ("package:known/m.gguf", "m", ""),
    ]


def test_comparisons_and_histories_leave_out_the_same(mine: list[RunRecord], tmp_path: Path) -> None:
    sides = [tmp_path / "planted" / side for side in ("one", "two")]
    for side in sides:
        store = Store(side)
        for record in [each for each in mine if each.spec.kind == "quality"][:6]:
            store.save(replace(record, attempt=store.next_attempt(record.spec.recipe, record.spec.run_id)))
    compared = [harness.compare(*sides, redact=redact) for redact in (False, True)]
    traced = [harness.history(*sides, redact=redact) for redact in (False, True)]
    assert compared[0].exit_code == compared[1].exit_code
    rendered = [[comparison.render(each, form) for each in compared] for form in comparison.FORMATS]
    for plain, redacted in [*rendered, *([history.render(each, form) for each in traced] for form in history.FORMATS)]:
        assert "planted" in plain
        assert "planted" not in redacted
        assert re.search("model-1|results-1", redacted)


def test_the_command_redacts(mine: list[RunRecord], tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    store.save(next(record for record in mine if record.spec.job.models))
    for option, word in (((), "planted"), (("--redact",), "model-1")):
        made = CliRunner().invoke(app, ["report", str(store.root), "--format", "md", "--out", str(tmp_path), *option])
        assert made.exit_code == 0, made.output
        assert word in Path(made.output.strip()).read_text(encoding="utf-8")


def _content(path: Path) -> str:
    if path.suffix == ".parquet":
        return str(pq.read_table(path).to_pydict())
    return path.read_text(encoding="utf-8")
