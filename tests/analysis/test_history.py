"""Figures over time: where a known change is found, that noise has none, and what is not joined to what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_specs import changed

from harness.analysis.history.series import History, Series
from harness.analysis.history.trace import trace
from harness.core.label import Label
from harness.core.model import MethodRef
from harness.core.record import Failure, Outcome, RunRecord
from harness.errors import ResultsError
from harness.stats import changepoints as points

RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn 4-bit", "on_load")


def noise(seed: int, count: int) -> list[float]:
    return np.random.default_rng(seed).standard_normal(count).tolist()


class TestChangePoints:
    @pytest.mark.parametrize("at", [4, 10, 16])
    def test_a_step_is_found_where_it_is(self, at: int) -> None:
        values = [value + (8 if position >= at else 0) for position, value in enumerate(noise(3, 20))]
        assert points.noisy(values) == [at]

    def test_a_change_and_its_repair_are_two(self) -> None:
        values = [value + (9 if 8 <= position < 16 else 0) for position, value in enumerate(noise(4, 24))]
        assert points.noisy(values) == [8, 16]

    def test_one_session_far_out_is_no_change(self) -> None:
        values = noise(5, 20)
        values[9] += 40
        assert points.noisy(values) == []

    def test_noise_has_at_most_one_change_in_a_hundred_series(self) -> None:
        """100 series each of normal, heavy-tailed and skewed noise: at a rate of 1% six would be rare."""
        rng = np.random.default_rng(7)
        for draw in (rng.standard_normal, lambda size: rng.standard_t(3, size), lambda size: rng.exponential(1, size)):
            assert sum(bool(points.noisy(draw(20).tolist())) for _ in range(100)) < 6

    def test_the_usual_penalty_would_find_many(self) -> None:
        """Why it is not used: 2σ² log n of squared distances, σ from the median of differences."""
        from ruptures import Pelt

        rng = np.random.default_rng(8)
        alarms = 0
        for _ in range(100):
            values = rng.standard_normal(12)
            sigma = np.median(np.abs(np.diff(values))) / 0.6745 / np.sqrt(2)
            found = Pelt(model="l2", min_size=2, jump=1).fit_predict(values, 2 * sigma**2 * np.log(12))
            alarms += len(found) > 1
        assert alarms >= 10

    def test_few_figures_and_equal_ones_have_none(self) -> None:
        assert points.noisy([0.0] * 3 + [100.0] * 4) == []
        assert points.noisy([5.0] * 30) == []
        assert points.noisy([]) == []

    def test_of_very_many_the_newest_are_searched(self) -> None:
        count = points.MOST + 20
        late, early = (
            [value + (9 if position >= at else 0) for position, value in enumerate(noise(6, count))]
            for at in (count - 10, 10)
        )
        assert points.noisy(late) == [count - 10]
        assert points.noisy(early) == []

    @settings(max_examples=40)
    @given(
        st.integers(0, 10_000),
        st.integers(8, 30),
        st.floats(1e-3, 1e3),
        st.floats(-1e3, 1e3),
        st.floats(0, 12),
    )
    def test_neither_unit_nor_origin_matters(
        self, seed: int, count: int, scale: float, shift: float, step: float
    ) -> None:
        values = np.array(noise(seed, count))
        values[count // 2 :] += step
        assert points.noisy((values * scale + shift).tolist()) == points.noisy(values.tolist())

    @given(st.lists(st.integers(0, 3), max_size=30))
    def test_without_noise_every_change_is_one(self, counts: list[int]) -> None:
        found = points.noiseless([float(each) for each in counts])
        assert found == [at for at in range(1, len(counts)) if counts[at] != counts[at - 1]]

    def test_rounding_is_no_change(self) -> None:
        assert points.noiseless([0.1 + 0.2, 0.3, 0.4], 1e-12) == [2]

    def test_sigma_is_that_of_one_figure(self) -> None:
        values = np.array(noise(9, 20_000))
        assert points.sigma(values.tolist()) == pytest.approx(1, rel=0.03)
        values[10_000:] += 1e6
        assert points.sigma(values.tolist(), [10_000]) == pytest.approx(1, rel=0.03)


class Nights:
    """One session after another of one variant and its baseline."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench

    def on(self, night: int, **changes: Any) -> Any:
        return replace(self.bench, session=f"s{night:02}", day=night, **changes)

    def timed(self, bench: Any, speed: float, method: MethodRef = RTN, processes: int = 3) -> list[RunRecord]:
        return [bench.performance(method, speed, repetition) for repetition in range(processes)]


@pytest.fixture
def nights(bench: Any) -> Nights:
    return Nights(bench)


def only(found: History, metric: str, method: str = RTN.label) -> Series:
    (series,) = [each for each in found.series if (each.metric, each.method) == (metric, method)]
    return series


def jitter(night: int) -> float:
    return float(np.exp(0.01 * np.random.default_rng(night).standard_normal()))


class TestTrace:
    def test_a_library_that_cost_quality_is_named_at_the_change(self, nights: Nights) -> None:
        records = []
        for night in range(1, 7):
            bench = nights.on(night, torch="2.13.0" if night < 4 else "2.14.0")
            records.append(bench.quality(RTN, 4.5, 0.2 if night < 4 else 0.25))
        series = only(trace(records), "perplexity")
        (change,) = series.changes
        assert (series.noise, change.session, change.better, change.matters) == ("repeats", "s04", False, True)
        assert change.size == pytest.approx(np.exp(0.05) - 1, rel=0.1)
        assert [(each.what, each.base, each.head) for each in change.environment] == [("torch", "2.13.0", "2.14.0")]

    def test_a_likelihood_that_moved_by_rounding_is_told_and_matters_not(self, nights: Nights) -> None:
        records = [nights.on(night).quality(RTN, 4.5, 0.2 + (night > 3) * 1e-5) for night in range(1, 7)]
        (change,) = only(trace(records), "perplexity").changes
        assert not change.matters

    def test_the_recipes_gate_says_what_matters(self, nights: Nights) -> None:
        records = [nights.on(night).quality(RTN, 4.5, 0.2 + (night > 3) * 0.05) for night in range(1, 7)]
        tolerant = [replace(each, spec=changed(each.spec, gates={"perplexity": 0.2})) for each in records]
        assert not only(trace(tolerant), "perplexity").changes[0].matters

    def test_a_byte_more_is_a_change(self, nights: Nights) -> None:
        records = [nights.on(night).quality(RTN, 4.5 if night < 3 else 4.6, 0.2) for night in range(1, 4)]
        series = only(trace(records), "stored_bytes")
        assert [change.position for change in series.changes] == [2]
        assert series.changes[0].better is False
        assert series.sigma is None

    def test_a_speed_that_fell_is_found_and_its_baseline_asked(self, nights: Nights, none: MethodRef) -> None:
        alone, both = [], []
        for night in range(1, 21):
            bench = nights.on(night)
            slower = 0.8 if night > 10 else 1.0
            ours = nights.timed(bench, 0.5 * slower * jitter(night))
            alone += [*ours, *nights.timed(bench, jitter(night + 50), none)]
            both += [*ours, *nights.timed(bench, slower * jitter(night + 50), none)]
        series = only(trace(alone), "decode")
        (change,) = series.changes
        assert (change.session, change.better, change.notes) == ("s11", False, ())
        assert change.size == pytest.approx(-0.2, abs=0.02)
        assert series.sigma == pytest.approx(0.01, rel=0.6)
        assert [point.n for point in series.points] == [3] * 20
        (change,) = only(trace(both), "decode").changes
        assert len(change.notes) == 1
        assert change.notes[0].startswith("the unquantized baseline changed there too, by -")

    def test_a_divergence_that_rose_says_whether_its_engine_did(self, nights: Nights, none: MethodRef) -> None:
        alone, both = [], []
        for night in range(1, 21):
            bench = replace(nights.on(night), engine="other")
            ours = bench.quality(RTN, 4.5, (0.6 if night > 10 else 0.3) * jitter(night))
            alone += [ours, bench.quality(none, damage=0.01 * jitter(night + 50))]
            both += [ours, bench.quality(none, damage=(0.31 if night > 10 else 0.01) * jitter(night + 50))]
        notes = [
            change.notes
            for records in (alone, both)
            for series in trace(records).series
            if (series.metric, series.is_baseline) == ("kl", False)
            for change in series.changes
        ]
        quiet, loud = notes
        assert quiet == ()
        (note,) = loud
        what, levels = note.split(" from ")
        assert what == "the engine itself changed: the unquantized model on other changed"
        assert list(map(float, levels.split(" to "))) == pytest.approx([0.01, 0.31], rel=0.05)

    @pytest.mark.parametrize(("after", "said"), [(0.0099, ""), (0.002, "changed, the other way:")])
    def test_an_engine_that_changed_little_or_the_other_way_is_no_cause(
        self, nights: Nights, none: MethodRef, after: float, said: str
    ) -> None:
        """The variant's KL rises; its engine's moves from 0.01 nat down, by less or more than the gate's 0.001."""
        records = []
        for night in range(1, 21):
            bench = replace(nights.on(night), engine="other")
            records.append(bench.quality(RTN, 4.5, (0.6 if night > 10 else 0.3) * jitter(night)))
            level = after if night > 10 else 0.01
            records.append(bench.quality(none, damage=level * (1 + 0.001 * (jitter(night + 50) - 1))))
        found = [each for each in trace(records).series if each.metric == "kl"]
        (control,) = [each for each in found if each.is_baseline]
        assert len(control.changes) == 1, "the engine's own change was found"
        (change,) = next(each.changes for each in found if not each.is_baseline)
        assert [said in note for note in change.notes] == ([True] if said else [])

    def test_few_sessions_say_so(self, nights: Nights) -> None:
        records = [run for night in (1, 2, 3) for run in nights.timed(nights.on(night), jitter(night))]
        series = only(trace(records), "decode")
        assert series.changes == ()
        assert series.note == "too few sessions to look for a change: 3, it takes 8"

    def test_two_machines_are_two_series_but_of_bytes_one(self, nights: Nights) -> None:
        other = "aarch64, 64 cores"
        records = [nights.on(night).quality(RTN, 4.5, 0.2) for night in (1, 2, 3)]
        records += [nights.on(night, hardware=other).quality(RTN, 4.5, 0.3) for night in (4, 5, 6)]
        found = trace(records)
        apart = [each for each in found.series if each.metric == "perplexity"]
        assert [len(each.points) for each in apart] == [3, 3]
        assert [each.changes for each in apart] == [(), ()]
        assert sorted(each.apart for each in apart) == [
            ("hardware: aarch64, 64 cores",),
            ("hardware: x86_64 AMD EPYC 9B14, 2 cores",),
        ]
        assert len(only(found, "stored_bytes").points) == 6

    @pytest.mark.parametrize(
        "new",
        [{"version": 2}, {"protocol": {"stride": 128, "bos": "always"}}],
        ids=["version", "protocol"],
    )
    def test_another_way_to_measure_is_another_series(self, nights: Nights, new: dict[str, Any]) -> None:
        before, after = (nights.on(night).quality(RTN, 4.5, 0.2) for night in (1, 2))
        after = replace(
            after,
            outcome=replace(
                after.outcome,
                measurements=tuple(replace(m, **new) if m.metric == "nll" else m for m in after.outcome.measurements),
            ),
        )
        apart = [each for each in trace([before, after]).series if each.metric == "perplexity"]
        assert len(apart) == 2
        assert all(each.apart for each in apart)

    def test_an_entry_of_the_protocol_named_engine_tells_series_apart(self, nights: Nights) -> None:
        records = []
        for night, engine in ((1, "one"), (2, "another")):
            record = nights.on(night).quality(RTN, 4.5, 0.2)
            measured = (replace(m, protocol={**m.protocol, "engine": engine}) for m in record.outcome.measurements)
            records.append(replace(record, outcome=replace(record.outcome, measurements=tuple(measured))))
        apart = [each.apart for each in trace(records).series if each.metric == "perplexity"]
        assert sorted(apart) == [("engine: another",), ("engine: one",)]

    def test_a_model_whose_content_changed_under_its_name_stays_one_series(self, nights: Nights) -> None:
        records = []
        for night in (1, 2, 3, 4):
            model = replace(nights.bench.model, content=("a" if night < 3 else "e") * 64)
            records.append(nights.on(night, model=model).quality(RTN, 4.5, 0.2 if night < 3 else 0.3))
        series = only(trace(records), "perplexity")
        assert len(series.points) == 4
        assert "model content" in {each.what for each in series.changes[0].environment}

    def test_what_lies_twice_counts_once_and_order_is_that_of_time(self, nights: Nights) -> None:
        records = [nights.on(night).quality(RTN, 4.5, 0.2) for night in (3, 1, 2)]
        series = only(trace([*records, *records]), "perplexity")
        assert [point.session for point in series.points] == ["s01", "s02", "s03"]

    def test_what_was_withdrawn_in_one_folder_counts_in_no_copy(self, nights: Nights) -> None:
        mine, theirs = (nights.on(night).quality(RTN, 4.5, 0.2) for night in (1, 2))
        failure = Failure("inputs", "InvalidRunError", "the checkpoint changed")
        gone = replace(theirs, attempt=2, outcome=replace(theirs.outcome, status="invalid", failure=failure))
        for records in ([mine, theirs, gone], [mine, gone, theirs]):
            assert [point.session for point in only(trace(records), "perplexity").points] == ["s01"]

    def test_suspect_timings_are_left_out(self, nights: Nights) -> None:
        records = nights.timed(nights.on(1), 1.0) + nights.timed(nights.on(2), 1.0)
        hot = [
            replace(
                each, outcome=replace(each.outcome, labels=(Label("suspect", {"reason": "gpu_heat", "of": "run"}),))
            )
            for each in records[:3]
        ]
        found = trace([*hot, *records[3:]])
        assert [point.session for point in only(found, "decode").points] == ["s02"]
        assert [point.session for point in only(found, "peak_memory").points] == ["s01", "s02"]

    def test_what_failed_is_told(self, nights: Nights) -> None:
        well = nights.on(1).quality(RTN, 4.5, 0.2)
        bench = nights.on(2)
        found = trace([well, bench.failed(bench.spec("quality", RTN), message="no kernel")])
        (failed,) = found.failed
        assert (failed.session, failed.status) == ("s02", "failed")
        assert "no kernel" in failed.reason

    def test_one_metric_alone(self, nights: Nights) -> None:
        found = trace([nights.on(1).quality(RTN, 4.5, 0.2)], metrics=["perplexity"])
        assert {each.metric for each in found.series} == {"perplexity"}

    def test_nothing_to_show(self, nights: Nights) -> None:
        with pytest.raises(ResultsError, match="none of these records holds a figure of decode"):
            trace([nights.on(1).quality(RTN, 4.5, 0.2)], metrics=["decode"])
        with pytest.raises(ResultsError, match="nothing to show"):
            trace([])
        broken = replace(nights.on(1).quality(RTN, 4.5, 0.2), outcome=Outcome("failed"))
        with pytest.raises(ResultsError, match="nothing to show"):
            trace([broken])
