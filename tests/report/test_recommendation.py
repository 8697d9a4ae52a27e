"""The answer in words, as Markdown, as JSON and on a terminal."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import pytest
from run_specs import changed
from served_records import RTN, baseline, served_record

from harness.analysis.choice import Recommendation
from harness.analysis.query import Limit
from harness.api.recommend import recommend
from harness.cli.render import recommend as console_recommend
from harness.core.job import VariantJob
from harness.core.label import Label
from harness.core.record import RunRecord
from harness.figures.ask import Reading
from harness.figures.divergence import KL
from harness.figures.formats import NumberStyle
from harness.figures.memory import MEMORY
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.speed import DECODE
from harness.plugins import limit_options
from harness.report import summary
from harness.report.answer import Answer, answer, default_answer, limit_words, reading_words, reasons
from harness.report.escape import markdown as escape
from harness.report.highlights import highlights
from harness.report.page import page
from harness.report.recommendation import json_line, shown
from harness.report.renderers.html import html as report_html
from harness.report.renderers.markdown import markdown as report_markdown
from harness.report.shown_recommendation import markdown
from harness.stats.estimate import Estimate

WISHES: tuple[dict[str, Any], ...] = (
    {},
    {"max_memory": "700MiB", "max_perplexity_increase": "20%", "min_decode": 9.2, "maximize": "decode"},
    {"max_size": "100MB", "max_perplexity_increase": "1%"},
    {"max_accuracy_drop": "1%", "minimize": "energy"},
)


def asked(records: list[RunRecord], **wish: Any) -> Recommendation:
    (found,) = recommend(records, **wish)
    return found


def on_terminal(found: list[Recommendation], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with redirect_stdout(io.StringIO()) as written:
        console_recommend.show(list(map(shown, found)))
    return written.getvalue()


@pytest.mark.parametrize("name", ["recommend.md", "recommend.jsonl", "recommend.txt"])
def test_golden(name: str, records: list[RunRecord], monkeypatch: pytest.MonkeyPatch, golden: Any) -> None:
    found = [asked(records, **wish) for wish in WISHES]
    if name.endswith(".md"):
        text = markdown(map(shown, found))
    elif name.endswith(".txt"):
        text = on_terminal(found, monkeypatch)
    else:
        text = "".join(f"{json_line(each)}\n" for each in found)
    golden(name, text)


def test_one_sentence_answers(records: list[RunRecord]) -> None:
    found = default_answer(asked(records).table)
    assert found is not None
    assert found.variant == "torchao int8-weight-only"
    assert found.sentence.startswith("For ≤ 1 GiB memory and ≤ 1% more perplexity, the smallest: torchao int8-weight")
    assert "1.22× smaller than 16-bit" in found.sentence
    assert found.uncertain == ()


def test_without_any_quality_there_is_no_sentence(bench: Any, none: Any) -> None:
    (found,) = recommend([bench.performance(none)])
    assert default_answer(found.table) is None


def test_where_quality_alone_was_measured_nobody_asks_for_the_smallest(records: list[RunRecord]) -> None:
    """It could only be answered by "not known"; the variant closest to the baseline has a card all the same."""

    def without_sizes(record: RunRecord) -> RunRecord:
        kept = tuple(each for each in record.outcome.measurements if each.metric != "stored_bytes")
        return replace(record, outcome=replace(record.outcome, measurements=kept))

    quality = [without_sizes(record) for record in records if record.spec.kind == "quality"]
    (table,) = page(quality).tables
    assert default_answer(table) is None
    assert [each.title for each in highlights(table)] == ["Closest to the baseline"]
    assert "not known" not in report_markdown(page(quality))


def test_a_sweep_of_loads_alone_is_answered_by_the_largest_load_and_says_that_quality_is_not_known() -> None:
    def slow(level: float, number: int, repetition: int) -> tuple[float, float]:
        return 0.011 * level, 0.022  # at 32 it takes 0.352 s to the first token, and 0.5 s are allowed

    (found,) = recommend([baseline(0, slow), served_record(RTN, 0, slow)])
    answered = default_answer(found.table)
    assert answered is not None
    assert answered.sentence == (
        "The largest load at the SLO: none (the baseline); holds 32.0 [32.0, ∞] concurrent requests at the SLO; "
        "not distinguishable by load from rtn bits=4, which no other figure distinguishes from it"
    )
    assert answered.uncertain[0] == "no quality was measured"


@pytest.mark.parametrize("option", limit_options())
def test_a_limit_in_a_sentence_is_in_the_unit_of_its_number(option: str) -> None:
    """As a column writes it: 0.5 s are ``≤ 500 ms to the first token``."""
    figure = limit_options()[option]
    style = (figure.ask and figure.ask.format) or figure.format
    if isinstance(style, NumberStyle) and style.factor != 1:
        unit = style.unit if style.unit == "%" else f" {style.unit}"
        assert f"{0.5 * style.factor:.6g}{unit} " in limit_words(Limit(figure, 0.5))


def test_what_is_uncertain_is_said(records: list[RunRecord]) -> None:
    """1.9% lies within the interval of bnb-int8, the smallest that keeps it but for torchao's, which are as small."""
    others = [record for record in records if not str(record.spec.names()["method"]).startswith("torchao")]
    found = answer(asked(others, max_perplexity_increase="1.9%"))
    assert found.variant == "bnb-int8"
    limit, draws, certain = found.uncertain
    assert limit == "perplexity +1.87% [+1.59, +2.15] may be above 1.9%"
    assert draws.startswith("it is the pick in ")
    assert ", rtn 8-bit g64 in " in draws
    assert certain == "the first that meets every limit with certainty is rtn 8-bit g64"


def test_equals_are_named_with_what_decided(records: list[RunRecord]) -> None:
    """Three of 8.05 and 8.06 bits; torchao's int8 has a quarter of their KL and twice the speed of one of them."""
    found = asked(records, max_perplexity_increase="5%")
    told = answer(found)
    assert told.variant == "torchao int8-weight-only"
    assert (
        "within 1% of the size of torchao float8-weight-only, and better by KL: 0.00501 nat [0.00464, 0.00537] against "
        "0.0186 nat [0.0155, 0.0216]"
    ) in told.sentence
    assert "within 1% of the size of bnb-int8, and better by decoding speed: 26.2 tok/s" in told.sentence, "over twice"
    line = json.loads(json_line(found))
    assert line["ties"] == [
        {"variant": "torchao float8-weight-only", "decided_by": "kl"},
        {"variant": "bnb-int8", "decided_by": "decode"},
    ]
    assert escape(told.finding) in markdown([shown(found)])


def test_labels_are_told_beside_the_pick(bench: Any, none: Any, records: list[RunRecord]) -> None:
    def labelled(record: RunRecord) -> RunRecord:
        label = Label("left_alone", {"modules": (record.spec.method.label,)})
        return replace(record, outcome=replace(record.outcome, labels=(*record.outcome.labels, label)))

    found = answer(asked([labelled(record) if record.spec.kind == "quality" else record for record in records]))
    assert found.variant == "torchao int8-weight-only"
    assert Label("left_alone", {"modules": ("torchao int8-weight-only",)}) in found.noted


def test_why_a_variant_fell_has_its_value_beside_the_limit(records: list[RunRecord]) -> None:
    fell = {each.row.label: reasons(each) for each in asked(records, max_size="0.1GB").rejected}
    assert fell["torchao int8-weight-only"] == ("stored weights 220 MB, above 100 MB",)
    assert fell["awq 4-bit g64"] == ("out of memory: quantize: killed: more than 8 GiB of memory",)


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (8 * 2**30, "≤ 8 GiB memory"),
        (8 * 10**9, "≤ 8 GB memory"),
        (700 * 2**20, "≤ 700 MiB memory"),
        (1.5 * 2**30, "≤ 1.5 GiB memory"),
        (100, "≤ 0.09766 KiB memory"),
    ],
)
def test_a_limit_is_written_as_it_was_given(bound: float, words: str) -> None:
    assert limit_words(Limit(MEMORY, bound)) == words


def test_figures_carry_their_interval_and_unit() -> None:
    assert reading_words(DECODE, Reading(Estimate(38.26, 36, 40, 3, ""))) == "38.3 tok/s [36.0, 40.0]"
    assert reading_words(PERPLEXITY_CHANGE, Reading(Estimate(0.006, 0.004, 0.008, 3, ""))) == "+0.600% [+0.400, +0.800]"
    assert reading_words(MEMORY, Reading(Estimate(2**30, 2**30, float("inf"), 1, ""), "its weights alone")) == (
        "at least 1.00 GiB (its weights alone)"
    )
    assert reading_words(KL, Reading(None, "not measured")) == "not measured"


def test_a_hostile_name_marks_nothing_up(records: list[RunRecord]) -> None:
    word = "[b]x[/b] <script>| **y**"

    def spoil(record: RunRecord) -> RunRecord:
        if not isinstance(record.spec.job, VariantJob):
            return record
        method = replace(record.spec.method, label=word + record.spec.method.label)
        return replace(record, spec=changed(record.spec, method=method))

    spoilt = [spoil(record) for record in records]
    text = markdown([shown(asked(spoilt))])
    assert "<script>" not in text
    assert "**y**" not in text


def test_a_report_answers_from_all_variants_even_where_it_shows_few(
    records: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = escape(asked_by_default(records).finding)
    whole = page(records)
    assert f"{sentence}." in report_markdown(whole)
    monkeypatch.setattr(summary, "MOST_VARIANTS", 2)
    shortened = summary.job_summary(whole)
    assert "torchao float8" not in shortened.partition("| Variant")[2].partition("\n\n")[0]
    assert f"{sentence}." in shortened
    assert asked_by_default(records).finding.partition(";")[0] in report_html(whole)


def asked_by_default(records: list[RunRecord]) -> Answer:
    found = default_answer(asked(records).table)
    assert found is not None
    return found
