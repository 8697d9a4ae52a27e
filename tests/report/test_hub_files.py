"""What goes into a model's repository beside its card: a badge, and ``.eval_results`` as the hub's library reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from run_specs import changed

from harness.core.job import VariantJob
from harness.core.record import RunRecord
from harness.core.workload import TaskWorkload, TextRef
from harness.figures.derived.plausibility import Implausibility
from harness.report import write_report
from harness.report.page import page
from harness.report.renderers.badge import badge
from harness.tasks import catalog

SVG = "{http://www.w3.org/2000/svg}"
OWN = {"name": "arc_easy", "definition": "arc_easy.yaml"}


def reading(records: Sequence[RunRecord], **task: Any) -> list[RunRecord]:
    """The same answers to a task that is defined otherwise."""
    return [replace(each, spec=changed(each.spec, task=TaskWorkload(**{**OWN, **task}))) for each in records]


@pytest.fixture
def lm_eval_of_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Definitions as lm-eval writes them: a task that includes the file that names its data set."""
    folder = tmp_path / "definitions"
    folder.mkdir()
    (folder / "_arc.yaml").write_text("dataset_path: allenai/ai2_arc\ntag: [ai2_arc]\n")
    (folder / "arc_easy.yaml").write_text("include: _arc.yaml\ntask: arc_easy\n")
    found = catalog.read(folder)
    monkeypatch.setattr("harness.report.renderers.eval_results.catalog", lambda: found)


def entries(folder: Path) -> list[Any]:
    return [
        entry
        for path in sorted((folder / "model-card").glob("*/.eval_results/*.yaml"))
        for entry in parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    ]


@pytest.mark.usefixtures("lm_eval_of_one_task")
def test_a_score_on_a_task_of_lm_eval_is_an_entry_of_its_data_set(tmp_path: Path, answered: list[RunRecord]) -> None:
    write_report(reading(answered), tmp_path, ("model-card",))
    found = entries(tmp_path)
    assert sorted((each.value for each in found), reverse=True) == pytest.approx([0.57, 0.54, 0.51], rel=1e-12)
    assert {(each.dataset_id, each.task_id, each.date) for each in found} == {
        ("allenai/ai2_arc", "arc_easy", answered[0].started_at[:10])
    }
    assert all(each.notes.startswith("0-shot, acc 0.5") for each in found)


@pytest.mark.usefixtures("lm_eval_of_one_task")
def test_questions_that_are_not_on_the_hub_have_no_entry(tmp_path: Path, answered: list[RunRecord]) -> None:
    local = TextRef("mine", path="/elsewhere/questions.jsonl", sha256="0" * 64)
    for name, task in (("data", {"data": local}), ("own", {"own": "1" * 64}), ("unknown", {})):
        written = reading(answered, **task)
        if name == "unknown":
            measured = [
                replace(each, protocol={**each.protocol, "task": "my_task"})
                for run in written
                for each in run.outcome.measurements
            ]
            written = [
                replace(run, outcome=replace(run.outcome, measurements=(own,)))
                for run, own in zip(written, measured, strict=True)
            ]
        paths = write_report(written, tmp_path / name, ("model-card",))
        assert {path.suffix for path in paths} == {".md", ".svg"}


def test_questions_from_a_hub_data_set_name_it_and_its_revision(tmp_path: Path, answered: list[RunRecord]) -> None:
    data = TextRef("questions", hub="somebody/questions", split="test", revision="abc123")
    write_report(reading(answered, data=data), tmp_path, ("model-card",))
    assert {(each.dataset_id, each.dataset_revision) for each in entries(tmp_path)} == {
        ("somebody/questions", "abc123")
    }


def test_other_questions_of_one_task_are_results_of_their_own(tmp_path: Path, answered: list[RunRecord]) -> None:
    """Twice 0-shot, but other prompts: the hub's library keeps both, each with its value."""

    def prompted(run: RunRecord, prompts: str) -> RunRecord:
        (scored,) = run.outcome.measurements
        scored = replace(scored, protocol={**scored.protocol, "prompts_sha256": prompts})
        return replace(run, outcome=replace(run.outcome, measurements=(scored,)))

    found = []
    for prompts in ("a" * 64, "b" * 64):
        runs = [prompted(each, prompts) for each in answered[:2]]
        path, *_ = write_report(runs, tmp_path / prompts[0], ("model-card",))
        found += ModelCard.load(path).data.eval_results
    assert len({each.unique_identifier for each in found}) == 2
    assert model_index_to_eval_results(eval_results_to_model_index("both", found)) == ("both", found)


@pytest.mark.parametrize("elsewhere", [{"engine": "llamacpp"}, {"kv_cache": "int8"}])
def test_unquantized_weights_have_no_card_whatever_runs_them(
    tmp_path: Path, records: list[RunRecord], elsewhere: dict[str, Any]
) -> None:
    """The control of another engine is the unquantized model, and so is the baseline with another cache."""
    again = [
        replace(each, spec=changed(each.spec, **elsewhere)) for each in records if isinstance(each.spec.job, VariantJob)
    ]
    alone, both = (
        {each.parent.name for each in write_report(found, tmp_path / name, ("model-card",))}
        for name, found in (("alone", records), ("both", [*records, *again]))
    )
    assert not any("none" in name for name in both)
    assert len(both) > len(alone)


def words(path: Path) -> list[str]:
    return ["".join(each.itertext()) for each in Xml.parse(path).iter(f"{SVG}text")]


def test_a_badge_has_the_figure_its_interval_and_its_verdict(tmp_path: Path, records: list[RunRecord]) -> None:
    paths = write_report(records, tmp_path, ("model-card",))
    (table,) = page(records).tables
    row = next(each for each in table.rows if each.label == "gptq 4-bit g64")
    assert row.perplexity_change is not None
    assert row.perplexity_comparison is not None
    path = next(each for each in paths if each.parent.name == "SmolLM2-135M-gptq-4-bit-g64" and each.suffix == ".svg")
    name, finding = words(path)
    value, low, high = (
        float(each.strip("[],%+").replace("−", "-")) / 100 for each in finding.replace(",", "").split()[:3]
    )
    assert name == "Δ perplexity"
    assert (value, low, high) == pytest.approx(
        (row.perplexity_change.value, row.perplexity_change.low, row.perplexity_change.high), rel=0.01
    )
    assert finding.endswith(row.perplexity_comparison.verdict)
    card = ModelCard.load(path.with_name("README.md"))
    assert f"]({path.name})" in card.text


def test_a_badge_of_tasks_alone_has_the_loss_of_accuracy(tmp_path: Path, answered: list[RunRecord]) -> None:
    paths = write_report(answered, tmp_path, ("model-card",))
    name, finding = words(
        next(each for each in paths if each.parent.name == "SmolLM2-135M-bnb-int8" and each.suffix == ".svg")
    )
    assert name == "Δ arc_easy 0-shot acc"
    assert finding.split()[0] == "−3.00"


def test_an_implausible_baseline_gives_no_badge_a_verdict(records: list[RunRecord]) -> None:
    (table,) = page(records).tables
    row = next(each for each in table.rows if each.perplexity_change and not each.is_baseline)
    doubted = replace(table, implausible=(Implausibility("guessing", 5e4, 49152.0),))
    shown = badge(doubted, row)
    assert shown is not None
    assert (shown.name, shown.finding) == ("quality", "not known: implausible baseline")


def test_a_variant_without_quality_has_no_badge(bench: Any, none: Any, looks: Any) -> None:
    (table,) = page([bench.performance(none, 1.0, 0), bench.performance(looks[0].method, 2.0, 0)]).tables
    assert [badge(table, row) for row in table.rows] == [None, None]
