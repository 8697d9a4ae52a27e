"""What happened in written answers: planted faults are found by name, and shown side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from scipy import stats
from written_records import FAULTS, HOSTILE, QUESTIONS, SAMPLES, answered_task, faulty, faulty_sweep, method, well

from harness.analysis.tradeoff import tradeoff
from harness.core.model import MethodRef
from harness.core.record import RunRecord
from harness.core.run import HourlyPrice
from harness.figures.table import AnswersKey, Table, VariantRow
from harness.plugins import figures
from harness.report.answer_pairs import answer_pairs
from harness.report.page import page
from harness.report.plots.panels import panels_of
from harness.report.renderers.html import html

KEY = AnswersKey("gsm8k", 0, False, "4 samples at temperature 0.6")


@pytest.fixture
def sweep(bench: Any, none: MethodRef) -> list[RunRecord]:
    return faulty_sweep(bench, none)


def table(records: list[RunRecord]) -> Table:
    (found,) = tradeoff(records)
    return found


def row_of(found: Table, label: str) -> VariantRow:
    return next(row for row in found.rows if row.label == label)


def test_each_planted_fault_is_found_in_the_variant_that_has_it_and_in_no_other(sweep: list[RunRecord]) -> None:
    found = table(sweep)
    for name, (aspect, _) in FAULTS.items():
        verdicts = {each.name: each.comparison.verdict for each in row_of(found, name).answers if each.comparison}
        worse = {each for each in verdicts if verdicts[each] == "worse" and each.startswith("answer_")}
        shares = worse - {"answer_tokens", "answer_unfinished"}
        assert shares == {aspect}, name


def test_a_figure_is_its_mean_over_answers_with_an_interval_over_questions(sweep: list[RunRecord]) -> None:
    row = row_of(table(sweep), "truncates")
    each = row.answer_figure("answer_truncated", KEY)
    assert each is not None
    assert each.estimate.value == pytest.approx(30 / (QUESTIONS * SAMPLES))
    gaps = np.array([0.25 if question % 2 == 0 else 0.0 for question in range(QUESTIONS)])
    half = stats.t.ppf(0.975, QUESTIONS - 1) * stats.sem(gaps)
    assert each.change is not None
    assert each.change.low <= gaps.mean() - half + 1e-12
    assert each.change.high >= gaps.mean() + half - 1e-12
    assert each.comparison is not None
    assert each.comparison.units == "clusters"


def test_samples_give_spread_majority_and_pass_at_k(sweep: list[RunRecord]) -> None:
    found = table(sweep)
    base = found.baseline
    assert base is not None
    score = np.array([[bool(q % 3 and (q + s) % 4) for s in range(SAMPLES)] for q in range(QUESTIONS)])
    figure = {each.name: each for each in base.answers}
    assert figure["seed_spread"].estimate.value == pytest.approx(score.mean(axis=0).std(ddof=1))
    assert figure["majority"].estimate.value == pytest.approx((score.mean(axis=1) > 0.5).mean())
    assert figure["pass_4"].estimate.value == pytest.approx(score.any(axis=1).mean())
    exact = stats.binomtest(40, QUESTIONS).proportion_ci(0.95, "exact")
    assert (figure["pass_4"].estimate.low, figure["pass_4"].estimate.high) == pytest.approx((exact.low, exact.high))
    lengths = sum(len(well(q, s)[0]) for q in range(QUESTIONS) for s in range(SAMPLES))
    assert figure["tokens_per_right_answer"].estimate.value == pytest.approx(lengths / score.sum())
    assert figure["seconds_per_right_answer"].estimate.value == pytest.approx(0.01 * lengths / score.sum())
    (passed,) = [place for place in figures()["pass_at"].taken_at(found) if place.k == 4]
    assert figures()["pass_at"].headed(found, passed) == "pass@4"


def test_columns_gates_and_options_follow_from_the_declarations(sweep: list[RunRecord]) -> None:
    from harness.api.recommend import recommend

    every = figures()
    assert every["answer_loops"].gate is not None
    assert every["answer_loops"].gate.usual is False, "who names no gate gets no new one"
    found = table(sweep)
    (key,) = every["answer_loops"].taken_at(found)
    assert every["answer_loops"].column_name(key) == "gsm8k_0-shot_4_samples_at_temperature_0.6_answer_loops"
    (answer,) = recommend(sweep, max_loops="1%", minimize="tokens")
    assert {each.row.label for each in answer.rejected} == {"loops"}


def test_a_price_makes_seconds_money(sweep: list[RunRecord]) -> None:
    found = replace(table(sweep), price=HourlyPrice(36.0, "EUR"))
    cost = figures()["cost_per_right_answer"]
    (place,) = cost.places_in(found)
    row = row_of(found, "loops")
    seconds = row.answer_figure("seconds_per_right_answer", KEY)
    assert seconds is not None
    value = cost.value(row, place) if cost.value else None
    assert getattr(value, "value", None) == pytest.approx(seconds.estimate.value * 36 / 3600)


def test_one_greedy_answer_has_no_figures_of_samples(bench: Any, none: MethodRef) -> None:
    (found,) = tradeoff([bench.quality(none), answered_task(bench, none, well, samples=1)])
    names = {each.name for each in found.rows[0].answers}
    assert "answer_tokens" in names
    assert not names & {"seed_spread", "pass_1", "pass_2"}


def test_a_variant_that_stopped_thinking_has_a_figure_for_it(bench: Any, none: MethodRef) -> None:
    base, silent = answered_task(bench, none, well), answered_task(bench, method("silent"), well)
    tokens = base.outcome.measured("answer_tokens")[0]
    thought = replace(
        tokens, metric="answer_thinking_tokens", values=tuple(5.0 + n % 3 for n in range(len(tokens.values)))
    )
    thoughtful = replace(base, outcome=replace(base.outcome, measurements=(*base.outcome.measurements, thought)))
    others = [bench.quality(none), bench.quality(method("silent"), 4.5, 0.3), silent]
    figure = row_of(table([thoughtful, *others]), "silent").answer_figure("answer_thinking_tokens", KEY)
    assert figure is not None
    assert figure.estimate.value == 0
    assert figure.change is not None
    assert figure.change.value == pytest.approx(-6)
    plain = row_of(table([base, *others]), "silent")
    assert plain.answer_figure("answer_thinking_tokens", KEY) is None, "a task in which nobody thinks"


def test_the_most_telling_pairs_are_shown(sweep: list[RunRecord]) -> None:
    pairs = {each.variant: each.pairs for each in answer_pairs(table(sweep))}
    assert set(pairs) == set(FAULTS)
    reasons = {"truncates": "truncated", "loops": "loops", "gives up": "right, then lost"}
    for name, reason in {**reasons, "forgets the format": "format faults"}.items():
        assert pairs[name][0].reason == reason
        assert len(pairs[name]) == 3
        for pair in pairs[name]:
            assert pair.baseline.facts.startswith("right")
            assert pair.variant.facts.startswith("wrong")
    assert "Wait. Wait." in pairs["loops"][0].variant.text
    assert pairs["loops"][0].target == "7"


def test_a_plot_shows_length_and_faults_beside_the_baseline(sweep: list[RunRecord]) -> None:
    (plot,) = [each for each in panels_of(table(sweep)) if each.name == "answers"]
    assert plot.head == ("Variant", "tokens", "truncated, %", "right, then lost, %", "loops, %")
    assert {row[0] for row in plot.rows} == set(FAULTS)
    drawn = json.loads(plot.json)
    names = drawn["layout"]["yaxis"]["ticktext"]
    for panel, name in ((1, "truncates"), (2, "gives up"), (3, "loops")):
        shown = dict(zip(names, drawn["data"][panel]["x"], strict=True))
        assert shown == {each: pytest.approx(12.5 if each == name else 0) for each in FAULTS}
    lines = [shape["x0"] for shape in drawn["layout"]["shapes"]]
    lengths = np.mean([len(well(question, sample)[0]) for question in range(QUESTIONS) for sample in range(SAMPLES)])
    assert lines == pytest.approx([lengths, 0, 0, 0])


def test_words_on_answers_hold_for_all_of_them_and_leave_those_on_scores_alone(sweep: list[RunRecord]) -> None:
    rows = table(sweep).rows
    answers = [each.comparison for row in rows for each in row.answers if each.comparison]
    scores = [score for row in rows for score in row.tasks if score.comparison]
    headlines = [row.perplexity_comparison for row in rows if row.perplexity_comparison]
    headlines += [each.comparison for each in scores if each.headline and each.comparison]
    for family in (answers, headlines):
        assert {each.tests for each in family} == {len(family)}
        smallest = min((each for each in family if each.p is not None), key=lambda each: each.p or 0.0)
        assert smallest.adjusted_p == pytest.approx(min(1, len(family) * (smallest.p or 0.0)))
    assert len(answers) == len(FAULTS) * (6 + 1 + 2), "six aspects, majority, pass@2 and pass@4"


class Elements(HTMLParser):
    """The scripts that a page would run, and its visible text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.scripts = 0
        self.pre: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.scripts += tag == "script"
        self.open.append(tag)
        if tag == "pre":
            self.pre.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.pre[-1] += data


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    return parser


def test_hostile_answers_stay_text(bench: Any, none: MethodRef, sweep: list[RunRecord]) -> None:
    hostile = faulty(lambda question, sample: (f"{HOSTILE[:-1]}8", False))
    plain = elements(html(page([bench.quality(none), answered_task(bench, none, well), *sweep[2:4]])))
    records = [bench.quality(none), answered_task(bench, none, well), bench.quality(method("evil"), 4.5, 0.3)]
    whole = html(page([*records, answered_task(bench, method("evil"), hostile)]))
    found = elements(whole)
    assert found.scripts == plain.scripts, "no text became a script"
    assert any("</pre><script>alert(1)</script>" in each for each in found.pre)
    assert "\u202e" not in whole
    assert "\x00" not in whole
    redacted = html(page([*records, answered_task(bench, method("evil"), hostile)], redact=True))
    assert "alert(1)" not in redacted
    assert "What is 3 + 4" not in redacted
