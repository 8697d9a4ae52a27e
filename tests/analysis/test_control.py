"""The control: what an engine changes by itself, and what a quantized variant adds to it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.special import softmax

from harness.analysis.query import Limit, Query
from harness.analysis.recommend import pick
from harness.analysis.regression.baseline import beside_baseline
from harness.analysis.regression.cases import cases
from harness.analysis.regression.findings import Finding, Verdict
from harness.analysis.regression.matching import match
from harness.analysis.regression.track import track
from harness.analysis.tradeoff import tradeoff
from harness.core.identity import Scalar
from harness.core.label import Label, codes
from harness.core.model import MethodRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.figures.divergence import AGREEMENT, KL
from harness.figures.figure import WHOLE
from harness.figures.quality import PERPLEXITY_CHANGE
from harness.figures.size import STORED_BYTES
from harness.figures.table import Table, VariantRow
from harness.figures.tasks import ACCURACY_DROP, ACCURACY_GAIN
from harness.report.answer import answer, reasons, sides
from harness.report.column import columns
from harness.report.flat import flat
from harness.report.highlights import highlights
from harness.report.page import page
from harness.report.recommendation import json_line
from harness.report.renderers.html import html
from harness.report.renderers.markdown import markdown
from harness.stats.estimate import Estimate
from harness.stats.rule import excess

Bench = Any  # the class in conftest.py, which cannot be imported
WINDOWS, TOKENS = 8, 64
NOT_SEPARATED = Label("engine_not_separated", {"engine": "other"})


def divergence(values: Sequence[float], per_document: int, document: str = "page") -> Measurement:
    """KL token by token, of documents of equal length."""
    items = tuple(f"{document}{number // per_document}:{number % per_document}" for number in range(len(values)))
    clusters = tuple(item.partition(":")[0] for item in items)
    return Measurement(
        "kl", 1, "nat", "lower", "paired", tuple(map(float, values)), item_ids=items, cluster_ids=clusters
    )


class TestExcess:
    @given(st.lists(st.tuples(*[st.floats(0, 10)] * 2), min_size=16, max_size=40))
    def test_it_is_the_difference_of_the_two_means(self, values: list[tuple[float, float]]) -> None:
        ours, theirs = (divergence(side, 4) for side in zip(*values, strict=True))
        found = excess(ours, theirs, 0.001).effect
        assert found.value == pytest.approx(np.mean(ours.values) - np.mean(theirs.values), abs=1e-12)
        assert found.value == pytest.approx(-excess(theirs, ours, 0.001).effect.value, abs=1e-12)
        assert found.low is None or found.low - 1e-12 <= found.value <= (found.high or 0) + 1e-12
        itself = excess(ours, ours, 0.001).effect
        assert (itself.value, itself.low, itself.high) == (0, 0, 0)

    def test_its_interval_is_that_of_the_documents_differences(self) -> None:
        """Of equal length: the t-interval of the documents' mean differences."""
        rng = np.random.default_rng(3)
        ours, theirs = rng.exponential(0.1, (30, 16)), rng.exponential(0.001, (30, 16))
        found = excess(divergence(ours.ravel(), 16), divergence(theirs.ravel(), 16), 0.001).effect
        expected = scipy_stats.ttest_1samp((ours - theirs).mean(axis=1), 0).confidence_interval(0.95)
        assert (found.low, found.high, found.n) == pytest.approx((*expected, 30))

    def test_it_is_that_much_more_cross_entropy_under_the_baseline(self) -> None:
        """As docs/explanation/measuring.md derives: within 2 √(KL · KL) of the divergence from the control, near it."""
        rng = np.random.default_rng(4)
        logits = rng.normal(size=(200, 50))
        engine, quantized = 0.02 * rng.normal(size=(2, 200, 50))
        p, control, variant = (softmax(each, axis=1) for each in (logits, logits + engine, logits + engine + quantized))
        kl_control, kl_variant = ((p * np.log(p / other)).sum(axis=1) for other in (control, variant))
        found = excess(divergence(kl_variant, 10), divergence(kl_control, 10), 0.001).effect.value
        assert found == pytest.approx((p * np.log(control / variant)).sum(axis=1).mean(), rel=1e-9)
        direct = (control * np.log(control / variant)).sum(axis=1).mean()
        assert abs(found - direct) < 2 * math.sqrt(kl_control.mean() * direct)
        assert found == pytest.approx(direct, rel=0.1)

    @pytest.mark.parametrize("theirs", [divergence([0.1] * 24, 4), divergence([0.1] * 32, 4, "another")])
    def test_other_tokens_have_none(self, theirs: Measurement) -> None:
        with pytest.raises(ValueError, match="score different tokens"):
            excess(divergence([0.1] * 32, 4), theirs, 0.001)


@dataclass(frozen=True)
class Sweep:
    """Records of the main engine and of one called other, on which rtn is measured too."""

    main: Bench
    none: MethodRef
    rtn: MethodRef
    engine_nat: float = 0.02

    @property
    def other(self) -> Bench:
        return replace(self.main, engine="other")

    @property
    def of_main(self) -> list[RunRecord]:
        return [self.main.reference(), self.main.quality(self.none), self.main.quality(self.rtn, 4.5, 0.3)]

    @property
    def control(self) -> RunRecord:
        return self.other.quality(self.none, damage=self.engine_nat)  # type: ignore[no-any-return]

    @property
    def quantized(self) -> RunRecord:
        return self.other.quality(self.rtn, 4.5, 0.31)  # type: ignore[no-any-return]

    @property
    def all(self) -> list[RunRecord]:
        return [*self.of_main, self.control, self.quantized]


@pytest.fixture
def sweep(bench: Bench, none: MethodRef, rtn: MethodRef) -> Sweep:
    return Sweep(bench, none, rtn)


def only(records: Sequence[RunRecord]) -> Table:
    (table,) = tradeoff(records)
    return table


def on(table: Table, engine: str) -> dict[str, VariantRow]:
    """The rows on an engine, by method."""
    return {row.method: row for row in table.rows if row.engine == engine}


def values(record: RunRecord, metric: str) -> np.ndarray:
    found = record.find(metric)
    assert found is not None
    return np.array(found.values)


def with_measured(record: RunRecord, metric: str, **changes: Any) -> RunRecord:
    """The record with that measurement changed."""
    measured = tuple(
        replace(each, **changes) if each.metric == metric else each for each in record.outcome.measurements
    )
    return replace(record, outcome=replace(record.outcome, measurements=measured))


def answers(bench: Bench, method: MethodRef, right: int) -> RunRecord:
    protocol: dict[str, Scalar] = {
        "task": "arc_easy",
        "score": "acc",
        "filter": "none",
        "fewshot": 0,
        "aggregation": "mean",
    }
    items = tuple(f"arc_easy:{number}" for number in range(100))
    values = (1.0,) * right + (0.0,) * (100 - right)
    found = Measurement("task_score", 1, "score", "higher", "paired", values, protocol, item_ids=items)
    record: RunRecord = bench.record(bench.spec("task", method), Outcome("ok", measurements=(found,)))
    return record


class TestRows:
    def test_a_quantized_variant_shows_its_engines_kl_and_the_excess_over_it(self, sweep: Sweep) -> None:
        table = only(sweep.all)
        row = on(table, "other")["rtn"]
        ours, theirs = values(sweep.quantized, "kl"), values(sweep.control, "kl")
        assert row.kl_mean is not None
        assert row.kl_control is not None
        assert row.kl_excess is not None
        assert row.kl_mean.value == pytest.approx(ours.mean())
        assert row.kl_control.value == pytest.approx(theirs.mean())
        assert row.kl_excess.value == pytest.approx((ours - theirs).mean())
        assert row.kl_excess.low < row.kl_excess.value < row.kl_excess.high  # type: ignore[operator]
        by_window = theirs.reshape(WINDOWS, TOKENS).mean(axis=1)
        own = scipy_stats.ttest_1samp(by_window, 0).confidence_interval(0.95)
        assert (row.kl_control.low, row.kl_control.high) == pytest.approx(tuple(own))

    def test_the_controls_own_excess_is_nothing(self, sweep: Sweep) -> None:
        control = on(only(sweep.all), "other")["none"]
        assert control.is_control
        assert not control.is_baseline
        excess_of_it = control.kl_excess
        assert excess_of_it is not None
        assert (excess_of_it.value, excess_of_it.low, excess_of_it.high) == (0, 0, 0)
        assert control.perplexity_over_control is None
        assert control.kl_control == control.kl_mean

    def test_rows_of_the_reference_s_engine_have_none(self, sweep: Sweep) -> None:
        for row in on(only(sweep.all), "transformers").values():
            assert (row.kl_excess, row.kl_control, row.perplexity_over_control) == (None, None, None)
            assert not row.is_control
            assert row.labels == ()
        names = {column.name for column in columns(only(sweep.of_main))}
        assert not any("control" in name for name in names)
        shown = {column.name for column in columns(only(sweep.all)) if column.shown}
        assert {"kl_over_control_nat", "perplexity_over_control_fraction"} <= shown

    def test_perplexity_is_compared_with_the_control_too(self, sweep: Sweep) -> None:
        row = on(only(sweep.all), "other")["rtn"]
        gap = (values(sweep.quantized, "nll") - values(sweep.control, "nll")).mean()
        assert row.perplexity_over_control is not None
        assert row.perplexity_over_control.value == pytest.approx(math.expm1(gap))
        base = (values(sweep.quantized, "nll") - values(sweep.of_main[1], "nll")).mean()
        assert row.perplexity_change is not None
        assert row.perplexity_change.value == pytest.approx(math.expm1(base))

    def test_the_largest_floor_decides_what_is_noise(self, sweep: Sweep) -> None:
        """The dtype's floor is 2e-6 nat: a variant as far from the baseline as its engine is at noise level."""
        near = sweep.other.quality(sweep.rtn, 4.5, sweep.engine_nat)
        near = with_measured(near, "kl", values=tuple(values(sweep.control, "kl") * 1.001))
        row = on(only([*sweep.of_main, sweep.control, near]), "other")["rtn"]
        assert row.kl_comparison is not None
        assert row.kl_comparison.verdict == "equivalent"
        assert row.kl_comparison.effect == row.kl_excess
        exact = replace(sweep, engine_nat=1e-9)
        rows = on(only(exact.all), "other")
        floor = values(exact.of_main[0], "kl_noise_floor")
        assert len(floor) == WINDOWS * TOKENS
        dtype = next(each for each in exact.of_main[0].outcome.measurements if each.protocol.get("changed") == "dtype")
        gap = values(exact.quantized, "kl") - np.array(dtype.values)
        assert rows["rtn"].kl_comparison is not None
        assert rows["rtn"].kl_comparison.effect.value == pytest.approx(gap.mean(), rel=1e-12)

    def test_scores_of_tasks_are_compared_with_both(self, sweep: Sweep) -> None:
        """Of 100 questions the baseline has 60 right, the engine alone loses two, the method three more."""
        asked = [answers(sweep.main, sweep.none, 60), answers(sweep.main, sweep.rtn, 57)]
        asked += [answers(sweep.other, sweep.none, 58), answers(sweep.other, sweep.rtn, 55)]
        table = only([*sweep.all, *asked])
        changes = {
            (row.engine, row.method): (
                score.change and score.change.value,
                score.over_control and score.over_control.value,
            )
            for row in table.rows
            for score in row.tasks
        }
        assert changes == {
            ("transformers", "none"): (None, None),
            ("transformers", "rtn"): (pytest.approx(-0.03), None),
            ("other", "none"): (pytest.approx(-0.02), None),
            ("other", "rtn"): (pytest.approx(-0.05), pytest.approx(-0.03)),
        }
        use = pick(table, Query(())).use
        assert ACCURACY_DROP.read(on(table, "other")["rtn"], use).includes == "the engine's own 2.00% included"
        assert ACCURACY_GAIN.read(on(table, "other")["rtn"], use).includes == "the engine's own −2.00% included"
        assert ACCURACY_DROP.read(on(table, "other")["none"], use).includes == "all of it the engine's own"
        assert {ACCURACY_DROP.read(each, use).includes for each in on(table, "transformers").values()} == {""}
        (name,) = (each.name for each in columns(table) if each.figure.name == "accuracy_over_control")
        assert name == "arc_easy_0-shot_acc_over_control"
        assert not any("control" in each.name for each in columns(only([*sweep.of_main, *asked[:2]])))

    def test_speed_is_a_multiple_of_the_baselines_and_of_the_controls(self, sweep: Sweep) -> None:
        timed = [sweep.main.performance(sweep.none), sweep.other.performance(sweep.none, 3.0)]
        table = only([*sweep.all, *timed, sweep.other.performance(sweep.rtn, 6.0)])
        (speed,) = on(table, "other")["rtn"].speeds
        assert speed.decode_ratio is not None
        assert speed.decode_over_control is not None
        assert speed.decode_ratio.value == pytest.approx(6, rel=0.02)
        assert speed.decode_over_control.value == pytest.approx(2, rel=0.02)
        assert speed.prefill_over_control is not None
        (own,) = on(table, "other")["none"].speeds
        assert (own.decode_over_control, on(table, "transformers")["none"].speeds[0].decode_over_control) == (
            None,
            None,
        )


class TestWithoutControl:
    @pytest.mark.parametrize("with_quality", [True, False])
    def test_a_task_that_the_control_did_not_answer_is_labelled(self, sweep: Sweep, with_quality: bool) -> None:
        mine = [answers(sweep.main, sweep.none, 60), answers(sweep.other, sweep.rtn, 55)]
        mine += sweep.all if with_quality else []
        failed = sweep.other.failed(sweep.other.spec("task", sweep.none), "out_of_memory", "no memory", "task")
        for control, labels in ((failed, (NOT_SEPARATED,)), (answers(sweep.other, sweep.none, 58), ())):
            rows = on(only([*mine, control]), "other")
            assert rows["rtn"].labels == labels
            assert "engine_not_separated" not in codes(rows["none"].labels)

    def test_where_the_baseline_runs_on_the_same_engine_a_task_needs_no_other_control(self, sweep: Sweep) -> None:
        mine = [answers(sweep.other, sweep.none, 60), answers(sweep.other, sweep.rtn, 55)]
        row = on(only([*mine, sweep.control, sweep.quantized]), "other")["rtn"]
        assert row.tasks[0].change is not None
        assert row.labels == ()

    def test_kl_that_is_not_separated_from_the_engines_is_labelled(self, sweep: Sweep) -> None:
        failed = sweep.other.failed(sweep.other.spec("quality", sweep.none), "unsupported", "cannot", "plan")
        rows = on(only([*sweep.of_main, failed, sweep.quantized]), "other")
        assert rows["rtn"].labels == (NOT_SEPARATED,)
        assert rows["rtn"].kl_excess is None
        assert "engine_not_separated" not in codes(rows["none"].labels)
        assert "engine_not_separated" not in codes(on(only(sweep.all), "other")["rtn"].labels)

    @pytest.mark.parametrize("engine", ["other", "transformers attention=eager"])
    def test_settings_of_an_engine_have_controls_of_their_own(self, sweep: Sweep, engine: str) -> None:
        name, _, parameter = engine.partition(" ")
        key, _, value = parameter.partition("=")
        params = {"engine_params": {key: value}} if parameter else {}
        elsewhere = replace(sweep.main, engine=name)
        quantized = elsewhere.quality(sweep.rtn, 4.5, 0.31)
        job = quantized.spec.job
        job = replace(job, variant=replace(job.variant, **params))
        quantized = replace(quantized, spec=replace(quantized.spec, job=job))
        table = only([*sweep.of_main, replace(sweep.main, engine="third").quality(sweep.none), quantized])
        assert on(table, engine)["rtn"].labels == (Label("engine_not_separated", {"engine": engine}),)

    def test_a_control_of_other_libraries_is_none(self, sweep: Sweep) -> None:
        """The packages that its run declares beside the harness's own are those of the engine."""

        def of(record: RunRecord, version: str) -> RunRecord:
            before = record.outcome.before
            assert before is not None
            software = {**before.software, "other-engine": version}
            return replace(record, outcome=replace(record.outcome, before=replace(before, software=software)))

        for version, labels in (("1.0", ()), ("2.0", (NOT_SEPARATED,))):
            records = [*sweep.of_main, of(sweep.control, "1.0"), of(sweep.quantized, version)]
            assert on(only(records), "other")["rtn"].labels == labels

    def test_other_tokens_leave_a_blank_a_note_and_the_label(self, sweep: Sweep) -> None:
        control = sweep.control
        for metric in ("kl", "baseline_confidence"):
            found = control.find(metric)
            fewer = {name: getattr(found, name)[TOKENS:] for name in ("values", "item_ids", "cluster_ids")}
            control = with_measured(control, metric, **fewer)
        table = only([*sweep.of_main, control, sweep.quantized])
        row = on(table, "other")["rtn"]
        assert row.kl_excess is None
        assert row.labels == (NOT_SEPARATED,)
        assert any("score different tokens" in note and "rtn" in note for note in table.notes)

    def test_the_only_engine_of_a_recipe_may_be_another_than_the_reference_s(self, sweep: Sweep) -> None:
        """Its baseline is the control: KL is measured from transformers' all the same, and is not zero."""
        table = only([sweep.control, sweep.quantized])
        base, row = table.rows
        assert (base.is_baseline, base.is_control, base.is_reference) == (True, True, False)
        assert row.kl_excess is not None
        assert row.perplexity_over_control is None, "the baseline is the control, and the change is against it"
        ((engine, kl),) = [(floor.engine, floor.kl) for floor in table.engine_floors]
        assert (engine, kl) == ("other", base.kl_mean)
        read = KL.read(base, pick(table, Query(())).use)
        assert read.estimate == base.kl_mean
        agreement = AGREEMENT.read(base, pick(table, Query(())).use)
        assert agreement.estimate == base.top1_agreement
        assert agreement.includes == "of the engine alone"
        assert base.top1_agreement is not None
        assert base.top1_agreement.value < 1
        assert (
            "KL and agreement are relative to the unquantized model on transformers, changes and ratios to the "
            "baseline on other;"
        ) in markdown(page([sweep.control, sweep.quantized])).replace("\\", "")


class TestOutputs:
    def test_floors_stand_together_and_tables_say_what_they_are_relative_to(self, sweep: Sweep) -> None:
        table = only(sweep.all)
        kl = on(table, "other")["none"].kl_mean
        assert kl is not None
        assert kl.low is not None
        assert kl.high is not None
        whole = page(sweep.all)
        for text in (markdown(whole).replace("\\", ""), html(whole)):
            assert "KL noise floor, the baseline against itself: at another batch size" in text
            assert f"on other {kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}] nat per token." in text
            assert "relative to the baseline on transformers, so they include what another engine changes" in text
            assert f"the engine's own: {kl.value:.4f}".replace("'", "&#39;" if "<html" in text else "'") in text
        assert "**unquantized · other** (control)" in markdown(whole)
        assert ">control</span>" in html(whole)
        alone = page(sweep.of_main)
        assert not any("control" in text for text in (markdown(alone), " ".join(flat(alone.tables))))

    def test_a_control_is_no_highlight(self, sweep: Sweep) -> None:
        """The unquantized model on another engine is nearest to the baseline, and not what anybody looks for."""
        found = highlights(only(sweep.all))
        assert found
        assert {each.variant for each in found} <= {"rtn 4-bit", "rtn 4-bit · other"}

    def test_limits_and_ranks_use_the_whole_divergence_and_say_so(self, sweep: Sweep) -> None:
        """0.29 nat are the quantization's, of 0.31: a limit of 0.3 is not met, because users get 0.31."""
        table = only(sweep.all)
        row = on(table, "other")["rtn"]
        assert row.kl_excess is not None
        assert row.kl_mean is not None
        limit = (row.kl_excess.value + row.kl_mean.value) / 2
        assert row.kl_excess.value < limit
        found = pick(table, Query((Limit(KL, limit),), STORED_BYTES))
        (rejected,) = [each for each in found.rejected if each.row is row]
        (why,) = reasons(rejected)
        assert f"the engine's own {row.kl_control.value:.4f} included" in why  # type: ignore[union-attr]
        (line,) = [each for each in json.loads(json_line(found))["fallen"] if each["variant"] == row.label]
        assert "the engine's own" in line["limits"]["max-kl"]["includes"]
        change = PERPLEXITY_CHANGE.read(row, found.use)
        control = on(table, "other")["none"].perplexity_change
        assert control is not None
        assert change.includes == f"the engine's own +{control.value * 100:.2f}% included"
        assert PERPLEXITY_CHANGE.read(on(table, "other")["none"], found.use).includes == "all of it the engine's own"
        main = on(table, "transformers")["rtn"]
        assert PERPLEXITY_CHANGE.read(main, found.use).includes == ""
        assert [each for each in reasons(_candidate(found, main)) if "engine" in each] == []
        (part,) = [each for each in sides(row, found.use) if each.startswith("perplexity")]
        assert part.endswith(change.includes)
        (part,) = [each for each in sides(replace(row, perplexity_change=None), found.use) if each.startswith("KL")]
        assert part.endswith(KL.read(row, found.use).includes)
        assert not any("engine" in each for each in sides(main, found.use))
        alone = on(table, "other")["none"].top1_agreement
        assert alone is not None
        assert AGREEMENT.read(row, found.use).includes == f"{alone.value * 100:.1f}% for the engine alone"
        assert AGREEMENT.read(main, found.use).includes == ""

    def test_a_speed_names_the_baseline_s_engine_where_it_is_another(self, sweep: Sweep) -> None:
        timed = [sweep.main.performance(sweep.none), sweep.other.performance(sweep.rtn, 6.0)]
        table = only([*sweep.all, *timed])
        found = pick(table, Query((Limit(KL, 1),), STORED_BYTES))
        assert found.pick is not None
        sentence = answer(found).sentence
        assert ("as fast as the baseline on transformers" in sentence) == (found.pick.row.engine == "other")
        other = pick(
            replace(table, rows=tuple(each for each in table.rows if each.method != "rtn" or each.speeds)), found.query
        )
        assert "as fast as the baseline on transformers" in answer(other).sentence


def _candidate(found: Any, row: VariantRow) -> Any:
    (each,) = [each for each in (*found.admissible, *found.rejected) if each.row is row]
    return each


class TestCompare:
    def both(self, sweep: Sweep, engine_nat: float, extra: float) -> Finding:
        """HEAD's engine diverges by that much, and its variant by ``extra`` more than BASE's."""
        other = replace(sweep, main=replace(sweep.main, session="s2", day=2), engine_nat=engine_nat)
        later = other.quantized
        later = with_measured(later, "kl", values=tuple(values(sweep.quantized, "kl") + extra))
        found = track(
            [*sweep.of_main, sweep.control, sweep.quantized], [*other.of_main, other.control, later], {"kl": 0.001}
        )
        (finding,) = [
            each for each in found.findings if (each.metric, each.engine) == ("kl", "other") and "rtn" in each.method
        ]
        return finding

    def test_a_gate_that_fails_because_the_engine_changed_says_so(self, sweep: Sweep) -> None:
        found = self.both(sweep, 0.08, 0.06)
        assert found.verdict == "regressed"
        (moved,) = [each for each in found.reasons if "engine" in each]
        assert moved.startswith("the engine itself changed: the unquantized model on other changed by +0.0")
        assert moved.endswith("nat (regressed)")

    def test_a_gate_that_fails_by_the_method_alone_says_that_the_engine_did_not_change(self, sweep: Sweep) -> None:
        found = self.both(sweep, 0.02, 0.06)
        assert found.verdict == "regressed"
        assert "the unquantized model on other did not change" in found.reasons

    def test_an_engine_that_changed_the_other_way_is_named_as_such(self, sweep: Sweep) -> None:
        found = self.both(replace(sweep, engine_nat=0.08), 0.02, 0.06)
        assert found.verdict == "regressed"
        (moved,) = [each for each in found.reasons if "engine" in each]
        assert moved.startswith(
            "the engine itself changed, the other way: the unquantized model on other changed by -0.0"
        )
        assert moved.endswith("nat (improved)")

    def test_of_several_findings_of_the_control_one_with_a_change_counts(self, sweep: Sweep) -> None:
        runs = cases([sweep.control, sweep.quantized])
        matches = match(runs, runs).both
        ids = {each.head.spec.is_baseline: each.head.spec.case_id for each in matches}

        def finding(verdict: Verdict, change: float | None, control: bool = True) -> Finding:
            moved = None if change is None else Estimate(change, None, None, 1, "")
            return Finding(ids[control], "m", "any", "other", "kl", "", verdict, True, unit="nat", change=moved)

        controls = [finding("regressed", 0.05), finding("incomparable", None)]
        own = finding("regressed", 0.06, control=False)
        for order in (controls, controls[::-1]):
            (why,) = beside_baseline([*order, own], matches)[-1].reasons
            assert why == "the engine itself changed: the unquantized model on other changed by +0.05 nat (regressed)"

    def test_on_the_engine_of_the_reference_nothing_is_said(self, sweep: Sweep) -> None:
        later = replace(sweep, main=replace(sweep.main, session="s2", day=2))
        worse = later.main.quality(sweep.rtn, 4.5, 0.5)
        found = track(sweep.of_main, [*later.of_main[:2], worse], {"kl": 0.001})
        (finding,) = [each for each in found.findings if each.metric == "kl" and "rtn" in each.method]
        assert finding.verdict == "regressed"
        assert not any("unquantized" in each for each in finding.reasons)


def test_the_declared_value_is_the_rows(sweep: Sweep) -> None:
    """What columns show is what the row holds."""
    table = only(sweep.all)
    row = on(table, "other")["rtn"]
    by_name = {column.figure.name: column for column in columns(table)}
    assert by_name["kl_excess"].figure.of(row, WHOLE) == row.kl_excess
    assert by_name["kl_control"].figure.of(row, WHOLE) == row.kl_control
    assert not by_name["kl_control"].shown
