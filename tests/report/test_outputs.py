"""Parquet, model cards, job summaries and images: what other programs read of a report."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pyarrow.parquet as pq
import pytest
from hostile import CORPUS, spoiled
from huggingface_hub import ModelCard
from run_specs import changed

from harness.core.record import Failure, RunRecord
from harness.errors import UsageError
from harness.report import write_report
from harness.report.escape import LONGEST_FILE_NAME, file_name
from harness.report.page import page
from harness.report.plots.images import images, on_paper
from harness.report.summary import LIMIT_BYTES, job_summary

Spoil = Callable[[Sequence[RunRecord], str], list[RunRecord]]
SVG_TAGS = {"svg", "title", "clipPath", "rect", "g", "text"}
WORST = '=cmd|"/c calc"!A1 | `x` [y](javascript:alert(1)) <script>alert(2)</script>\n---\nlicense: mit'


def test_parquet_holds_what_csv_holds(tmp_path: Path, records: list[RunRecord]) -> None:
    table_path, csv_path = write_report(records, tmp_path, ("parquet", "csv"))
    found = pq.read_table(table_path).to_pydict()
    lines = list(csv.DictReader(io.StringIO(csv_path.read_text(encoding="utf-8"))))
    assert list(found) == list(lines[0])
    for number, line in enumerate(lines):
        for name in ("perplexity", "kl_mean_nat_low", "stored_bytes"):
            value = found[name][number]
            assert (value is None and line[name] == "") or float(line[name]) == value
    assert found["is_baseline"] == [True] + [False] * 13


def test_parquet_keeps_text_as_it_was_recorded(tmp_path: Path, records: list[RunRecord], hostile: Spoil) -> None:
    (path,) = write_report(hostile(records, WORST), tmp_path, ("parquet",))
    assert set(pq.read_table(path).column("model").to_pylist()) == {WORST}


def test_a_model_card_is_read_by_the_hub_s_own_library(tmp_path: Path, records: list[RunRecord]) -> None:
    paths = write_report(records, tmp_path, ("model-card",))
    (table,) = page(records).tables
    good = [row for row in table.rows if row.status == "ok" and not row.is_baseline]
    cards = [path for path in paths if path.name == "README.md"]
    assert [path.parent.parent.name for path in cards] == ["model-card"] * len(good)
    row = next(row for row in good if row.label == "gptq 4-bit g64")
    card = ModelCard.load(next(path for path in cards if path.parent.name == "SmolLM2-135M-gptq-4-bit-g64"))
    assert card.data.model_name == "SmolLM2-135M gptq 4-bit g64"
    found = {each.metric_type: each for each in card.data.eval_results}
    assert row.perplexity is not None
    assert row.kl_mean is not None
    assert found["perplexity"].metric_value == row.perplexity.value
    assert found["kl_divergence"].metric_value == row.kl_mean.value
    assert found["perplexity"].dataset_type == "demo"
    assert found["perplexity"].dataset_args["context"] == 512
    assert "| Perplexity | 22.26 " in card.text
    assert "natively quantized reference: Q4\\_1" in card.text.replace("Q4_1", "Q4\\_1")


def with_shots(record: RunRecord, shots: int, right: int) -> RunRecord:
    """The same task with other examples before its questions, of which so many were right."""
    (scored,) = record.outcome.measurements
    values = (1.0,) * right + (0.0,) * (100 - right)
    scored = replace(scored, values=values, protocol={**scored.protocol, "fewshot": shots})
    assert record.spec.task is not None
    spec = changed(record.spec, task=replace(record.spec.task, fewshot=shots))
    return replace(record, spec=spec, outcome=replace(record.outcome, measurements=(scored,)))


def test_a_card_keeps_every_result_as_an_entry_of_its_own(tmp_path: Path, answered: list[RunRecord]) -> None:
    """Two numbers of examples are two results: the hub's own library reads back what was written."""
    records = [*answered, *(with_shots(record, 25, 80) for record in answered)]
    paths = write_report(records, tmp_path, ("model-card",))
    (path,) = [each for each in paths if each.parent.name == "SmolLM2-135M-bnb-int8" and each.name == "README.md"]
    (entries,) = ModelCard.load(path).data.to_dict()["model-index"]
    assert [(each["dataset"]["config"], each["dataset"]["args"]) for each in entries["results"]] == [
        ("0-shot, prompts p", {"num_few_shot": 0}),
        ("25-shot, prompts p", {"num_few_shot": 25}),
    ]
    assert [[metric["value"] for metric in each["metrics"]] for each in entries["results"]] == [[0.57], [0.8]]


def test_merging_two_cards_by_the_hub_s_own_library_loses_nothing(
    tmp_path: Path, bench: Any, none: Any, looks: Any, answered: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``metadata_update`` of a card of one protocol with the results of another, written and read again."""
    import huggingface_hub.repocard as repocard
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    longer = replace(bench, context=1024)
    sides = {
        "short": [bench.quality(none), bench.quality(looks[0].method, 8, 0.02), *answered[:2]],
        "long": [
            longer.quality(none),
            longer.quality(looks[0].method, 8, 0.05),
            *(with_shots(record, 5, 70) for record in answered[:2]),
        ],
    }
    cards = {
        name: ModelCard.load(write_report(records, tmp_path / name, ("model-card",))[0])
        for name, records in sides.items()
    }
    results = {name: list(card.data.eval_results) for name, card in cards.items()}
    assert [len(each) for each in results.values()] == [5, 5]
    written: list[str] = []
    monkeypatch.setattr(repocard.ModelCard, "load", lambda *_, **__: cards["short"])
    monkeypatch.setattr(repocard.ModelCard, "push_to_hub", lambda card, *_, **__: written.append(str(card)))
    index = eval_results_to_model_index("both", results["long"])
    repocard.metadata_update("somebody/both", {"model-index": index})
    monkeypatch.undo()
    merged = ModelCard(written[0]).data.eval_results
    expected = [*results["short"], *results["long"]]
    told = {(r.dataset_type, r.dataset_config, r.metric_type, r.metric_value) for r in expected}
    assert {(r.dataset_type, r.dataset_config, r.metric_type, r.metric_value) for r in merged} == told
    assert len(merged) == len(told) == 10
    for result in expected:
        (same,) = [other for other in merged if other.is_equal_except_value(result)]
        assert same == result  # its arguments too: no entry took those of another
    again = model_index_to_eval_results(eval_results_to_model_index("both", merged))[1]
    assert again == merged


def test_a_model_from_the_hub_is_the_card_s_base_model(tmp_path: Path, records: list[RunRecord]) -> None:
    def from_hub(record: RunRecord) -> RunRecord:
        if not record.spec.job.models:
            return record
        model = replace(record.spec.model, id="HuggingFaceTB/SmolLM2-135M", kind="hub")
        return replace(record, spec=changed(record.spec, model=model))

    path, *_ = write_report([from_hub(record) for record in records], tmp_path, ("model-card",))
    data = ModelCard.load(path).data
    assert (data.base_model, data.base_model_relation) == ("HuggingFaceTB/SmolLM2-135M", "quantized")


def test_a_ruined_variant_s_card_has_numbers_only(tmp_path: Path, bench: Any, none: Any, looks: Any) -> None:
    records = [bench.quality(none), bench.quality(looks[9].method, 2.5, 900.0)]
    path, *_ = write_report(records, tmp_path, ("model-card",))
    assert "perplexity" not in {each.metric_type for each in ModelCard.load(path).data.eval_results}


def test_a_hostile_record_adds_nothing_to_a_card(tmp_path: Path, records: list[RunRecord], hostile: Spoil) -> None:
    paths = write_report(hostile(records, WORST), tmp_path, ("model-card",))
    assert len(paths) == len(write_report(records, tmp_path / "plain", ("model-card",))) > 5
    for path in paths:
        assert path.parent.parent == tmp_path / "model-card"
        if path.suffix == ".svg":
            assert {each.tag.rpartition("}")[2] for each in Xml.parse(path).iter()} <= SVG_TAGS
            continue
        card = ModelCard.load(path)
        assert card.data.license is None
        assert card.data.model_name.startswith(WORST)
        assert "<script" not in card.text
        assert "](javascript" not in card.text.replace("\\]", "")


def test_two_labels_of_one_file_name_have_two_cards(tmp_path: Path, bench: Any, none: Any, looks: Any) -> None:
    twins = [replace(look.method, label=label) for look, label in zip(looks[:2], ("the same", "the/same"), strict=True)]
    records = [bench.quality(none), *(bench.quality(twin, 4.5, 0.1) for twin in twins)]
    paths = write_report(records, tmp_path, ("model-card",))
    assert {path.parent.name for path in paths} == {"SmolLM2-135M-the-same-2", "SmolLM2-135M-the-same"}


def test_the_name_of_a_file_never_ends_in_a_dash_and_has_no_two_beside_each_other() -> None:
    """A site tells the names of places and recipes apart by two."""
    used: set[str] = set()
    words = "a" * (LONGEST_FILE_NAME - 1) + " and more"
    assert [file_name(words, used) for _ in range(2)] == [words[:-9], f"{words[:-9]}-2"]


def test_a_job_summary_is_appended_and_fits(tmp_path: Path, bench: Any, records: list[RunRecord]) -> None:
    path = tmp_path / "summary"
    path.write_text("of the step before\n", encoding="utf-8")
    written = write_report(records, tmp_path / "out", ("github",), path)
    text = path.read_text(encoding="utf-8")
    assert written == [path]
    assert text.startswith("of the step before\n# Quantization report: SmolLM2-135M")
    assert not (tmp_path / "out").exists()
    path.write_bytes(b"x" * (LIMIT_BYTES - 2000))
    write_report(records, tmp_path / "out", ("github",), path)
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= LIMIT_BYTES
    assert text.endswith("The other formats contain the full report.*\n")


def test_a_job_summary_of_long_logs_fits(bench: Any, none: Any, looks: Any) -> None:
    def failing(number: int) -> RunRecord:
        method = replace(looks[0].method, label=f"method {number}", params={"n": number})
        record: RunRecord = bench.failed(bench.spec("quality", method))
        long = Failure("load", "RuntimeError", "é" * 30_000, "ö" * 60_000)
        return replace(record, outcome=replace(record.outcome, failure=long))

    text = job_summary(page([bench.quality(none), *map(failing, range(60))]))
    assert len(text.encode()) <= LIMIT_BYTES
    assert "Truncated: a job summary" in text


def test_a_job_summary_of_many_variants_shows_the_front(bench: Any, none: Any, looks: Any) -> None:
    def variant(number: int) -> RunRecord:
        method = replace(looks[0].method, label=f"method {number}", params={"n": number})
        record: RunRecord = bench.quality(method, 4 + number / 10, 1 + 0.1 * abs(number - 30))
        return record

    text = job_summary(page([bench.quality(none), *map(variant, range(60))]))
    assert "50 of 61 variants are shown, those on the front first" in text
    assert "**unquantized**" in text
    assert "**method 30** ●" in text


def test_the_summary_is_a_file_where_there_is_no_job(tmp_path: Path, records: list[RunRecord]) -> None:
    (path,) = write_report(records, tmp_path, ("github",))
    assert path == tmp_path / "summary.md"


def test_without_kaleido_nothing_is_written(
    tmp_path: Path, records: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(UsageError, match=r"pip install 'qharness\[images\]'"):
        write_report(records, tmp_path / "out", ("md", "png"))
    assert not (tmp_path / "out").exists()


def test_without_a_browser_it_is_said_which_to_install(
    records: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido: pip install 'qharness[images]'")
    from harness.report.plots import plots_of

    monkeypatch.setenv("BROWSER_PATH", "/nonexistent/browser")
    (table,) = page(records).tables
    with pytest.raises(UsageError, match="apt install chromium"):
        images(plots_of(table)[:1], "svg")


def test_images_are_drawn_from_the_same_figures(records: list[RunRecord]) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido: pip install 'qharness[images]'")
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium (Debian: apt install chromium)")
    from harness.report.plots import plots_of

    (table,) = page(records).tables
    first, *_ = plots_of(table)
    (svg,) = images([first], "svg")
    text = svg.decode()
    assert "gptq 4-bit g64" in text
    assert first.title in text
    assert "<script" not in text


@pytest.mark.slow
@pytest.mark.heavy
def test_a_hostile_image_has_no_element_of_its_own(records: list[RunRecord]) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido: pip install 'qharness[images]'")
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium (Debian: apt install chromium)")
    from harness.report.plots import plots_of

    def elements(drawn: Sequence[RunRecord]) -> Counter[str]:
        (table,) = page(drawn).tables
        (svg,) = images([next(plot for plot in plots_of(table) if plot.name == "stored-bytes")], "svg")
        assert b"evil.example" not in b" ".join(re.findall(rb"(?:href|src|url)[=(][^ >]*", svg))
        return Counter(each.tag for each in Xml.fromstring(svg).iter())

    words = [CORPUS[name] for name in ("script", "HTML image", "plotly", "TeX", "HTML ends")]
    assert elements(spoiled(records, *words)) == elements(spoiled(records, "plain "))


def test_an_image_has_the_colours_of_paper_and_leaves_the_page_s_alone(records: list[RunRecord]) -> None:
    from harness.report.plots import plots_of

    (table,) = page(records).tables
    assert len(plots_of(table)) > 5
    for figure in plots_of(table):
        drawn = on_paper(figure)
        assert drawn["layout"]["paper_bgcolor"] == "#ffffff"
        assert "#ffffff" not in figure.json
