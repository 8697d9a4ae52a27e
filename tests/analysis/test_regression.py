"""The alarm: what is matched, which verdict follows, and that nothing alarms where nothing changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_specs import changed

from harness.analysis.regression.family import together
from harness.analysis.regression.findings import Finding, Regression
from harness.analysis.regression.track import track
from harness.core.label import Label
from harness.core.model import MethodRef
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.core.run import RunLimits
from harness.errors import ExitCode, ResultsError
from harness.figures.statistic import Count, Items, PerProcess
from harness.plugins import gates as gated
from harness.stats.rule import compare_speeds

RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn 4-bit", "on_load")
QUALITY = {"perplexity": 0.005}
DECODE = {"decode": 0.05}


class Makes:
    """Sweeps of one variant and its baseline, with figures of a test's choice."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench

    def side(self, session: str, **changes: Any) -> Any:
        return replace(self.bench, session=session, **changes)

    def quality(self, bench: Any, nats: Sequence[float], method: MethodRef = RTN) -> RunRecord:
        spec = changed(bench.spec("quality", method), perplexity=replace(bench.spec("quality", method).perplexity))
        return bench.record(spec, Outcome("ok", measurements=(bench.nll(nats),)))

    def timed(self, bench: Any, speeds: Sequence[float], labels: tuple[Label, ...] = ()) -> list[RunRecord]:
        """Processes that decode at so many tokens per second."""
        found = []
        for repetition, speed in enumerate(speeds):
            made = bench.performance(RTN, 1.0, repetition)
            steps = tuple(
                replace(m, values=(1 / speed,) * len(m.values)) if m.metric == "decode_step_s" else m
                for m in made.outcome.measurements
            )
            found.append(replace(made, outcome=replace(made.outcome, measurements=steps, labels=labels)))
        return found


@pytest.fixture
def makes(bench: Any) -> Makes:
    return Makes(replace(bench, windows=40))


def only(found: Regression, metric: str) -> Finding:
    (finding,) = [each for each in found.findings if each.metric == metric]
    return finding


def nats(seed: int, damage: float = 0.0, count: int = 40) -> list[float]:
    """Windows of unlike difficulty, and on top what a variant makes of them: a little more or less each."""
    hard = 3 + 0.3 * np.random.default_rng(1).standard_normal(count)
    return (hard + damage + 0.002 * np.random.default_rng(seed).standard_normal(count)).tolist()


def jittered(seed: int, speed: float = 20.0, count: int = 8) -> list[float]:
    return (speed * np.exp(0.01 * np.random.default_rng(seed).standard_normal(count))).tolist()


class TestVerdicts:
    def test_a_perplexity_that_rose_beyond_its_threshold_fails_the_gate(self, makes: Makes) -> None:
        base = [makes.quality(makes.side("s1"), nats(2))]
        head = [makes.quality(makes.side("s2"), nats(3, damage=np.log(1.02)))]
        found = only(track(base, head, QUALITY), "perplexity")
        assert found.verdict == "regressed"
        assert found.change is not None
        assert found.change.value == pytest.approx(0.02, abs=0.002)
        assert track(base, head, QUALITY).exit_code is ExitCode.GATE_FAILED
        assert only(track(head, base, QUALITY), "perplexity").verdict == "improved"

    def test_a_real_difference_within_the_threshold_is_no_regression(self, makes: Makes) -> None:
        base = [makes.quality(makes.side("s1"), nats(2))]
        head = [makes.quality(makes.side("s2"), [value + 0.002 for value in nats(2)])]
        found = track(base, head, QUALITY)
        assert only(found, "perplexity").verdict == "unchanged"
        assert "it lies within ±0.5%" in only(found, "perplexity").reasons
        assert found.exit_code is ExitCode.OK

    def test_a_difference_above_the_threshold_that_may_be_chance_is_inconclusive(self, makes: Makes) -> None:
        noise = np.random.default_rng(4).standard_normal(40)
        base = [makes.quality(makes.side("s1"), nats(2))]
        head = [makes.quality(makes.side("s2"), (np.array(nats(2)) + 0.2 * noise - 0.2 * noise.mean() + 0.01).tolist())]
        found = track(base, head, QUALITY)
        finding = only(found, "perplexity")
        assert finding.verdict == "inconclusive"
        assert finding.detectable is not None
        assert finding.detectable > 0.05
        assert finding.needed is not None
        assert finding.needed > 1000
        assert found.exit_code is ExitCode.INCONCLUSIVE

    def test_few_processes_say_how_many_it_takes(self, makes: Makes) -> None:
        base, head = makes.timed(makes.side("s1"), jittered(1)[:3]), makes.timed(makes.side("s2"), [10, 10.1, 10.2])
        finding = only(track(base, head, DECODE), "decode")
        assert finding.verdict == "inconclusive"
        assert finding.needed == 4
        assert any("no test is valid at n = 3 processes" in reason for reason in finding.reasons)

    def test_a_slower_variant_fails_and_a_faster_one_improves(self, makes: Makes) -> None:
        base, head = makes.timed(makes.side("s1"), jittered(1)), makes.timed(makes.side("s2"), jittered(2, 16))
        finding = only(track(base, head, DECODE), "decode")
        assert finding.verdict == "regressed"
        assert (finding.base, finding.head) == (pytest.approx(20, rel=0.01), pytest.approx(16, rel=0.01))
        assert finding.change is not None
        assert finding.change.value == pytest.approx(finding.head / finding.base - 1)
        assert only(track(head, base, DECODE), "decode").verdict == "improved"

    def test_more_memory_is_worse(self, makes: Makes) -> None:
        def with_peak(session: str, size: float) -> list[RunRecord]:
            made = makes.timed(makes.side(session), jittered(1))
            return [
                replace(run, outcome=replace(run.outcome, measurements=(_peak(size + i), *run.outcome.measurements)))
                for i, run in enumerate(made)
            ]

        finding = only(
            track(with_peak("s1", 2**32), with_peak("s2", 1.1 * 2**32), {"peak_memory": 0.05}), "peak_memory"
        )
        assert finding.verdict == "regressed"
        assert finding.change is not None
        assert finding.change.value == pytest.approx(0.1, abs=1e-3)

    @pytest.mark.parametrize(("bits", "verdict"), [(4.6, "regressed"), (4.5, "unchanged"), (4.4, "improved")])
    def test_a_count_is_compared_exactly(self, bench: Any, bits: float, verdict: str) -> None:
        base = [bench.quality(RTN, 4.5, 0.2)]
        head = [replace(bench, session="s2").quality(RTN, bits, 0.2)]
        assert only(track(base, head), "bits_per_weight").verdict == verdict
        assert only(track(base, head), "stored_bytes").verdict == verdict

    def test_a_threshold_of_a_count_is_a_part_of_it(self, bench: Any) -> None:
        base, head = [bench.quality(RTN, 4.5, 0.2)], [replace(bench, session="s2").quality(RTN, 4.6, 0.2)]
        assert only(track(base, head, {"bits_per_weight": 0.03}), "bits_per_weight").verdict == "unchanged"
        assert only(track(base, head, {"bits_per_weight": 0.02}), "bits_per_weight").verdict == "regressed"

    def test_a_variant_that_was_lossless_and_is_no_more_is_found(self, bench: Any) -> None:
        wide = replace(bench, windows=40)
        base, head = [wide.quality(RTN, 4.5, 0.0)], [replace(wide, session="s2").quality(RTN, 4.5, 0.05)]
        assert only(track(base, head, {"kl": 0.001}), "kl").verdict == "regressed"
        assert only(track(head, base, {"kl": 0.001}), "kl").verdict == "improved"

    def test_equal_answers_of_equal_functions_are_unchanged_and_of_others_not_yet(self, makes: Makes) -> None:
        def asked(session: str, nll: list[float]) -> list[RunRecord]:
            side = makes.side(session)
            items = tuple(map(str, range(40)))
            agree = Measurement("top1_agreement", 1, "fraction", "higher", "paired", (1.0,) * 40, item_ids=items)
            made = makes.quality(side, nll)
            return [replace(made, outcome=replace(made.outcome, measurements=(*made.outcome.measurements, agree)))]

        gate = {"agreement": 0.01}
        assert only(track(asked("s1", nats(2)), asked("s2", nats(2)), gate), "agreement").verdict == "unchanged"
        assert only(track(asked("s1", nats(2)), asked("s2", nats(3)), gate), "agreement").verdict == "inconclusive"


def _peak(size: float) -> Measurement:
    said = {"phase": "import", "source": "VmHWM"}
    return Measurement("peak_memory_bytes", 1, "byte", "lower", "exact", (size,), said)


class TestIncomparable:
    def test_another_protocol_is_named_with_both_values(self, makes: Makes) -> None:
        base = [makes.quality(makes.side("s1"), nats(2))]
        other = makes.quality(makes.side("s2"), nats(2))
        changed = replace(other.outcome.measurements[0], protocol={**makes.bench.protocol(), "text_sha256": "d" * 64})
        head = [replace(other, outcome=replace(other.outcome, measurements=(changed,)))]
        found = track(base, head, QUALITY)
        assert only(found, "perplexity").verdict == "incomparable"
        assert only(found, "perplexity").reasons == (f"text sha256: {'b' * 12} → {'d' * 12}",)
        assert found.exit_code is ExitCode.INCONCLUSIVE

    def test_another_version_of_a_metric_and_other_items_are_bars(self, makes: Makes) -> None:
        base, other = (makes.quality(makes.side(session), nats(2)) for session in ("s1", "s2"))
        nll = other.outcome.measurements[0]
        newer = replace(other, outcome=replace(other.outcome, measurements=(replace(nll, version=2),)))
        assert only(track([base], [newer], QUALITY), "perplexity").reasons == ("metric version: 1 → 2",)
        shifted = replace(nll, item_ids=tuple(str(int(item) + 1) for item in nll.item_ids))
        moved = replace(other, outcome=replace(other.outcome, measurements=(shifted,)))
        (why,) = only(track([base], [moved], QUALITY), "perplexity").reasons
        assert why.startswith("item ids: 1 of 40 only here, such as '0' →")

    def test_another_number_of_threads_is_told_though_it_makes_another_case(self, makes: Makes) -> None:
        base, head = makes.timed(makes.side("s1"), jittered(1)), makes.timed(makes.side("s2"), jittered(2))
        head = [replace(run, spec=changed(run.spec, threads=4)) for run in head]
        found = only(track(base, head, DECODE), "decode")
        assert (found.verdict, found.reasons) == ("incomparable", ("threads: 2 → 4",))

    def test_speed_on_another_machine_is_incomparable_and_a_size_is_not(self, bench: Any) -> None:
        there = replace(bench, session="s2", hardware="another CPU")
        base = [bench.quality(RTN, 4.5, 0.2), *(bench.performance(RTN, 1, r) for r in range(5))]
        head = [there.quality(RTN, 4.5, 0.2), *(there.performance(RTN, 2, r) for r in range(5))]
        found = track(base, head)
        assert only(found, "decode").verdict == "incomparable"
        assert only(found, "decode").reasons == (f"hardware: {bench.hardware} → another CPU",)
        assert only(found, "stored_bytes").verdict == "unchanged"

    def test_quality_on_another_machine_may_be_unchanged_but_a_difference_is_nobodys(self, makes: Makes) -> None:
        there = makes.side("s2", hardware="another CPU")
        base = [makes.quality(makes.side("s1"), nats(2))]
        like = track(base, [makes.quality(there, [value + 1e-7 for value in nats(2)])], QUALITY)
        assert only(like, "perplexity").verdict == "unchanged"
        unlike = track(base, [makes.quality(there, nats(3, 0.02))], QUALITY)
        assert only(unlike, "perplexity").verdict == "incomparable"
        assert "hardware differs" in only(unlike, "perplexity").reasons[0]

    def test_what_else_was_measured_is_no_bar(self, makes: Makes) -> None:
        base, head = (makes.quality(makes.side(session), nats(2)) for session in ("s1", "s2"))
        head = replace(head, spec=changed(head.spec, divergence=False, memory=False))
        assert only(track([base], [head], QUALITY), "perplexity").verdict == "unchanged"

    def test_a_checkpoint_that_changed_under_its_name_is_tracked(self, makes: Makes) -> None:
        base, head = (makes.quality(makes.side(s), nats(n, d)) for s, n, d in (("s1", 2, 0.0), ("s2", 3, 0.02)))
        head = replace(head, spec=changed(head.spec, model=replace(head.spec.model, content="e" * 64)))
        found = track([base], [head], QUALITY)
        assert only(found, "perplexity").verdict == "regressed"
        assert [(change.what, change.head) for change in found.environment] == [("model content", "e" * 12)]


class TestRuns:
    def test_what_worked_and_fails_is_a_regression_and_the_reverse_an_improvement(self, bench: Any) -> None:
        well = bench.quality(RTN, 4.5, 0.2)
        broken = bench.failed(well.spec, "failed", "no kernel for this")
        found = only(track([well], [broken], QUALITY), "runs")
        assert found.verdict == "regressed"
        assert "no kernel for this" in found.reasons[0]
        assert only(track([broken], [well]), "runs").verdict == "improved"
        both = track([broken], [replace(broken, session="s2")])
        assert only(both, "runs").verdict == "unchanged"
        assert "no kernel for this" in only(both, "runs").reasons[0]

    def test_what_failed_on_another_machine_is_nobodys_fault(self, bench: Any) -> None:
        there = replace(bench, hardware="a smaller one")
        broken = there.failed(there.spec("quality", RTN), "out_of_memory", "killed")
        assert only(track([bench.quality(RTN, 4.5, 0.2)], [broken]), "runs").verdict == "incomparable"

    def test_what_ran_into_a_tighter_limit_is_not_worse(self, bench: Any) -> None:
        well = bench.quality(RTN, 4.5, 0.2)
        hung = bench.failed(replace(well.spec, limits=RunLimits(time_s=10)), "timeout", "ended after 10 s")
        found = only(track([well], [hung]), "runs")
        assert (found.verdict, found.reasons[1:]) == ("incomparable", ("time limit in s: none → 10",))
        same = bench.failed(well.spec, "timeout", "ended")
        assert only(track([well], [same]), "runs").verdict == "regressed"

    def test_what_is_gone_is_no_pass_and_what_is_new_is_told(self, bench: Any, none: MethodRef) -> None:
        shared, extra = bench.quality(none), bench.quality(RTN, 4.5, 0.2)
        again = replace(bench, session="s2").quality(none)
        missing = track([shared, extra], [again])
        assert only(missing, "runs").verdict == "incomparable"
        assert missing.exit_code is ExitCode.INCONCLUSIVE
        added = track([shared], [again, extra])
        assert added.exit_code is ExitCode.OK
        assert added.new == ("SmolLM2-135M × rtn 4-bit × transformers: quality gptq",)

    def test_repetitions_that_crash_are_no_pass(self, makes: Makes) -> None:
        base, head = makes.timed(makes.side("s1"), jittered(1)), makes.timed(makes.side("s2"), jittered(2))
        crashed = RunRecord(
            head[0].spec, Outcome("crashed", Failure("decode", "Signal", "signal 11")), "s2", 1, "z", 1.0
        )
        assert only(track(base, [crashed, *head[1:]], DECODE), "runs").verdict == "inconclusive"

    def test_a_later_attempt_that_ended_well_counts(self, bench: Any) -> None:
        broken = bench.failed(bench.spec("quality", RTN))
        later = replace(bench.quality(RTN, 4.5, 0.2), attempt=2)
        assert track([later], [broken, replace(later, session="s2")]).exit_code is ExitCode.OK

    def test_suspect_timings_raise_no_alarm(self, makes: Makes) -> None:
        base = makes.timed(makes.side("s1"), jittered(1))
        head = makes.timed(makes.side("s2"), jittered(2, 10), SUSPECT)
        found = track(base, head, DECODE)
        assert only(found, "decode").verdict == "inconclusive"
        assert only(found, "decode").reasons == (
            "8 of 8 processes of HEAD are left out (suspect: heat held the GPU's clocks down)",
        )
        assert found.environment == ()
        trusted = makes.timed(makes.side("s2"), jittered(2, 10))
        assert only(track(base, [*head[:2], *trusted[2:]], DECODE), "decode").verdict == "regressed"

    def test_a_label_that_came_has_its_code_in_the_environment(self, makes: Makes) -> None:
        base = makes.timed(makes.side("s1"), jittered(1))
        leaked = Label("leaked", {"shared": 0.03125, "run_tokens": 16})
        (change,) = track(base, makes.timed(makes.side("s2"), jittered(1), (leaked,)), DECODE).environment
        assert (change.what, change.base, change.head, change.code) == ("label", "none", leaked.sentence, "leaked")

    def test_a_label_of_an_older_record_is_the_same_one(self, makes: Makes) -> None:
        """Schema 1 kept the sentence, in which the figure is rounded."""
        labels = [Label("leaked", {"shared": shared, "run_tokens": 16}) for shared in (0.03123, 0.0312345)]
        base, head = (
            makes.timed(makes.side(session), jittered(1), (label,))
            for session, label in zip(("s1", "s2"), labels, strict=True)
        )
        assert track(base, head, DECODE).environment == ()


SUSPECT = (Label("suspect", {"reason": "gpu_heat", "of": "run"}),)


def without(records: Sequence[RunRecord], *metrics: str, prompt: int | None = None) -> list[RunRecord]:
    """The same with some of their measurements gone: of some metrics, or of one point of the grid."""
    return [
        replace(
            run,
            outcome=replace(
                run.outcome,
                measurements=tuple(
                    m
                    for m in run.outcome.measurements
                    if not (m.metric in metrics and prompt in (None, m.protocol.get("prompt_tokens")))
                ),
            ),
        )
        for run in records
    ]


class TestWhatOneSideCannotTell:
    """A gate that could not be evaluated is never a pass, whichever side it is that has no figure."""

    @pytest.mark.parametrize("gates", [None, DECODE, {"prefill": 0.05}])
    @pytest.mark.parametrize("suspect", [(True, False), (False, True), (True, True)])
    def test_suspect_timings_of_either_side_leave_every_point_open(
        self, bench: Any, suspect: tuple[bool, bool], gates: dict[str, float] | None
    ) -> None:
        """HEAD is twice as slow, and BASE's timings may not be used: nobody knows, and that is no pass."""
        sides = []
        for session, slower, own in zip(("s1", "s2"), (1.0, 0.5), suspect, strict=True):
            side = replace(bench, session=session)
            runs = [side.performance(RTN, slower, r, prompts=(128, 512)) for r in range(6)]
            labels = SUSPECT if own else ()
            sides.append([replace(run, outcome=replace(run.outcome, labels=labels)) for run in runs])
        found = track(*sides, gates)
        open_ones = [each for each in found.findings if each.metric in ("prefill", "decode", "decode_energy")]
        assert [(each.metric, each.verdict) for each in open_ones] == [
            (metric, "inconclusive") for metric in ("prefill", "decode", "decode_energy") for _ in range(2)
        ]
        assert {each.where.split(",")[1] for each in open_ones} == {" prompt 128", " prompt 512"}
        names = [name for name, own in zip(("BASE", "HEAD"), suspect, strict=True) if own]
        told = tuple(
            f"6 of 6 processes of {name} are left out (suspect: heat held the GPU's clocks down)" for name in names
        )
        assert {each.reasons for each in open_ones} == {told}
        assert found.unmeasured == ()
        assert found.exit_code is ExitCode.INCONCLUSIVE
        assert only(found, "peak_memory").verdict == "unchanged"  # no label of a timing speaks of memory

    @pytest.mark.parametrize("swap", [False, True])
    def test_a_point_that_one_side_alone_timed_is_open(self, bench: Any, swap: bool) -> None:
        both = [bench.performance(RTN, 1.0, r, prompts=(128, 512)) for r in range(6)]
        again = [replace(bench, session="s2").performance(RTN, 1.0, r, prompts=(128, 512)) for r in range(6)]
        one = without(again, "prefill_s", "decode_step_s", "decode_j_per_tok", prompt=512)
        base, head = (one, both) if swap else (both, one)
        found = track(base, head, {"decode": 0.05, "decode_energy": 0.1})
        for metric in ("decode", "decode_energy"):
            here = {each.where.split(",")[1].strip(): each for each in found.findings if each.metric == metric}
            assert here["prompt 128"].verdict == "unchanged"
            assert here["prompt 512"].verdict == "incomparable"
            assert here["prompt 512"].reasons == (f"{'BASE' if swap else 'HEAD'} does not measure it",)
            assert (here["prompt 512"].base is None, here["prompt 512"].head is None) == (swap, not swap)
        assert found.exit_code is ExitCode.INCONCLUSIVE

    def test_what_a_side_does_not_measure_is_told_from_what_may_not_be_used(self, bench: Any) -> None:
        base = [bench.performance(RTN, 1.0, r, prompts=(128, 512)) for r in range(6)]
        base[0] = replace(base[0], outcome=replace(base[0].outcome, labels=SUSPECT))
        head = [replace(bench, session="s2").performance(RTN, 1.0, r, prompts=(128, 512)) for r in range(6)]
        found = track(base, without(head, "decode_step_s", prompt=512), DECODE)
        here = [each for each in found.findings if each.metric == "decode" and "512" in each.where]
        assert [(each.verdict, each.reasons) for each in here] == [("incomparable", ("HEAD does not measure it",))]

    @pytest.mark.parametrize("swap", [False, True])
    @pytest.mark.parametrize(
        ("gate", "metrics"),
        [
            ("perplexity", ("nll",)),
            ("kl", ("kl",)),
            ("agreement", ("top1_agreement",)),
            ("stored_bytes", ("stored_bytes",)),
            ("bits_per_weight", ("parameters",)),
            ("coverage", ("coverage",)),
        ],
    )
    def test_a_figure_of_quality_or_size_that_one_side_lacks_is_open(
        self, bench: Any, gate: str, metrics: tuple[str, ...], swap: bool
    ) -> None:
        whole = bench.quality(RTN, 4.5, 0.2)
        (part,) = without([replace(whole, session="s2", started_at="2026-12-01")], *metrics)
        base, head = ([part], [whole]) if swap else ([whole], [part])
        found = track(base, head, {gate: 0.01})
        assert only(found, gate).verdict == "incomparable"
        assert only(found, gate).reasons == (f"{'BASE' if swap else 'HEAD'} does not measure it",)
        assert found.unmeasured == ()
        assert found.exit_code is ExitCode.INCONCLUSIVE

    @pytest.mark.parametrize("swap", [False, True])
    def test_memory_that_one_side_did_not_watch_is_open(self, bench: Any, swap: bool) -> None:
        both = [bench.performance(RTN, 1.0, r, prompts=(128, 512)) for r in range(6)]
        again = [replace(bench, session="s2").performance(RTN, 1.0, r, prompts=(128, 512)) for r in range(6)]
        gates = {"peak_memory": 0.05}
        none_of_it = without(again, "peak_memory_bytes")
        found = track(*((none_of_it, both) if swap else (both, none_of_it)), gates)
        assert only(found, "peak_memory").reasons == (f"{'BASE' if swap else 'HEAD'} does not measure it",)
        assert found.exit_code is ExitCode.INCONCLUSIVE
        fewer = without(again, "peak_memory_bytes", prompt=512)
        found = track(*((fewer, both) if swap else (both, fewer)), gates)
        shared, alone = [each for each in found.findings if each.metric == "peak_memory"]
        assert (shared.verdict, alone.verdict) == ("unchanged", "incomparable")
        assert alone.where == f"VmHWM, at points of {'HEAD' if swap else 'BASE'} alone"
        assert found.exit_code is ExitCode.INCONCLUSIVE

    def test_a_run_of_head_alone_is_open_where_base_knows_the_variant_and_new_where_not(
        self, bench: Any, none: MethodRef
    ) -> None:
        again = replace(bench, session="s2")
        base = [bench.quality(none), *(bench.performance(RTN, 1.0, r) for r in range(6))]
        head = [again.quality(none), *(again.performance(RTN, 1.0, r) for r in range(6)), again.quality(RTN, 4.5, 0.2)]
        found = track(base, head, {"perplexity": 0.005})
        mine = [each for each in found.findings if each.metric == "perplexity" and each.method == RTN.label]
        assert [(each.verdict, each.reasons) for each in mine] == [("incomparable", ("BASE does not measure it",))]
        assert found.exit_code is ExitCode.INCONCLUSIVE
        assert track(base, head, DECODE).exit_code is ExitCode.OK  # that run decides nothing about a speed
        other = replace(RTN, params={"bits": 3}, label="rtn 3-bit")
        found = track(base, [*head[:-1], again.quality(other, 3, 0.3)], {"perplexity": 0.005})
        assert found.new == ("SmolLM2-135M × rtn 3-bit × transformers: quality gptq",)
        assert found.exit_code is ExitCode.OK


class TestTheFigureOfSeveralProcesses:
    """Figures are those of reports, medians; the test goes by all processes."""

    def test_three_speeds_and_four_steps_as_they_were_filed(self, makes: Makes) -> None:
        """1×, 1.05× and 2× of 20 tok/s: 21 and not 25.7 . Steps of 10, 10.1, 10.2 and 40 ms: 98.5 and not 70.2."""
        base = makes.timed(makes.side("s1"), [20.0, 21.0, 40.0])
        finding = only(track(base, makes.timed(makes.side("s2"), [20.0, 21.0, 40.0]), DECODE), "decode")
        assert (finding.base, finding.head) == (pytest.approx(21), pytest.approx(21))
        base = makes.timed(makes.side("s1"), [1 / 0.010, 1 / 0.0101, 1 / 0.0102, 1 / 0.040])
        finding = only(track(base, makes.timed(makes.side("s2"), [100.0] * 4), DECODE), "decode")
        assert finding.base == pytest.approx((1 / 0.0101 + 1 / 0.0102) / 2)
        assert finding.base == pytest.approx(98.5, abs=0.05)

    @settings(max_examples=30)
    @given(
        ours=st.lists(st.floats(1, 100), min_size=1, max_size=7),
        theirs=st.lists(st.floats(1, 100), min_size=1, max_size=7),
        less=st.booleans(),
    )
    def test_the_change_is_that_of_the_figures_and_lies_in_its_interval(
        self, ours: list[float], theirs: list[float], less: bool
    ) -> None:
        found = compare_speeds(ours, theirs, 0.05, better="lower" if less else "higher")
        assert np.exp(found.effect.value) == pytest.approx(np.median(ours) / np.median(theirs))
        low, high = found.effect.low, found.effect.high
        few = min(len(ours), len(theirs)) < 3
        assert (low is None and high is None) == few
        if low is not None and high is not None:
            assert low <= found.effect.value <= high
        if found.equivalence_interval is not None:
            assert found.equivalence_interval[0] <= found.effect.value <= found.equivalence_interval[1]
        if found.verdict == "equivalent":
            assert abs(found.effect.value) <= 0.05
        other = compare_speeds(theirs, ours, 0.05, better="lower" if less else "higher")
        assert {found.verdict, other.verdict} in ({"better", "worse"}, {found.verdict})

    def test_a_figure_and_a_test_that_disagree_decide_nothing(self) -> None:
        """Of ten processes six became 8% faster and four three times slower: the median rose, the mean fell."""
        before = [20 + 0.01 * i for i in range(10)]
        after = [21.6 + 0.01 * i for i in range(6)] + [6 + 0.01 * i for i in range(4)]
        found = compare_speeds(after, before, 0.05)
        assert found.effect.value == pytest.approx(np.log(np.median(after) / np.median(before)))
        assert found.effect.value > 0.05
        assert np.log(after).mean() < np.log(before).mean()
        assert found.verdict == "inconclusive"

    def test_two_processes_have_no_interval_and_three_have(self) -> None:
        two, three = compare_speeds([20, 200], [20, 21], 0.05), compare_speeds([20, 200, 30], [20, 21, 22], 0.05)
        assert (two.effect.low, two.effect.high, two.notes) == (None, None, ("2 processes: no interval",))
        assert three.effect.low is not None

    @pytest.mark.parametrize("head_j_per_tok", [0.0, 2.0])
    def test_an_energy_of_zero_is_no_measurement(self, bench: Any, head_j_per_tok: float) -> None:
        """A counter that stands still on both sides shows no equality."""

        def side(session: str, j_per_tok: float) -> list[RunRecord]:
            runs = [replace(bench, session=session).performance(RTN, 1.0, r) for r in range(5)]
            return [
                replace(
                    run,
                    outcome=replace(
                        run.outcome,
                        measurements=tuple(
                            replace(m, values=(j_per_tok,)) if m.metric == "decode_j_per_tok" else m
                            for m in run.outcome.measurements
                        ),
                    ),
                )
                for run in runs
            ]

        found = only(track(side("s1", 0.0), side("s2", head_j_per_tok), {"decode_energy": 0.1}), "decode_energy")
        assert (found.verdict, found.change) == ("incomparable", None)
        assert found.reasons == ("a figure is not positive: no ratio can be made of it",)

    def test_a_peak_is_the_highest_of_all_processes_and_energy_a_median(self, makes: Makes) -> None:
        def side(session: str, peaks: Sequence[float]) -> list[RunRecord]:
            made = makes.timed(makes.side(session), jittered(1)[: len(peaks)])
            runs = without(made, "peak_memory_bytes")
            return [
                replace(run, outcome=replace(run.outcome, measurements=(_peak(peak), *run.outcome.measurements)))
                for run, peak in zip(runs, peaks, strict=True)
            ]

        base, head = side("s1", [100.0, 101.0, 102.0, 103.0]), side("s2", [100.0, 101.0, 102.0, 140.0])
        found = only(track(base, head, {"peak_memory": 0.05}), "peak_memory")
        assert (found.base, found.head) == (103, 140)
        assert found.change is not None
        assert found.change.value == pytest.approx(140 / 103 - 1)
        assert found.change.low is not None
        assert found.change.high is not None
        assert found.change.low <= found.change.value <= found.change.high


class TestGates:
    def test_only_gates_decide(self, makes: Makes) -> None:
        base, head = (makes.quality(makes.side(s), nats(n, d)) for s, n, d in (("s1", 2, 0.0), ("s2", 3, 0.02)))
        sizes = {"stored_bytes": 0.0}
        found = track([base], [head], {"decode": 0.05, **sizes})
        assert only(found, "perplexity").verdict == "regressed"
        assert not only(found, "perplexity").gated
        assert found.unmeasured == ("decode", "stored_bytes")
        assert found.exit_code is ExitCode.INCONCLUSIVE
        assert track([base], [head], sizes, strict=True).exit_code is ExitCode.GATE_FAILED

    def test_those_of_the_recipe_hold_until_others_are_given(self, makes: Makes) -> None:
        base, head = (makes.quality(makes.side(s), nats(n, d)) for s, n, d in (("s1", 2, 0.0), ("s2", 3, 0.02)))
        assert track([base], [head]).origin == "defaults"
        head = replace(head, spec=changed(head.spec, gates={"perplexity": 0.1}))
        found = track([base], [head])
        assert (found.gates, found.origin) == ({"perplexity": 0.1}, "recipe smollm2-cpu")
        assert found.exit_code is ExitCode.OK
        assert track([base], [head], override=QUALITY).exit_code is ExitCode.GATE_FAILED

    def test_gates_change_no_run_id(self, bench: Any) -> None:
        spec = bench.spec("quality", RTN)
        assert changed(spec, gates={"kl": 0.1}).run_id == spec.run_id

    def test_nothing_in_common_says_what_each_side_has(self, bench: Any, none: MethodRef) -> None:
        with pytest.raises(
            ResultsError, match=r"nothing in common to compare: BASE has .*unquantized.* HEAD has .*rtn"
        ):
            track([bench.quality(none)], [bench.quality(RTN)])

    def test_a_changed_library_is_told_and_is_no_bar(self, bench: Any) -> None:
        newer = replace(bench, session="s2", torch="2.14.0")
        found = track([bench.quality(RTN, 4.5, 0.2)], [newer.quality(RTN, 4.5, 0.2)])
        assert found.exit_code is ExitCode.OK
        assert [(each.what, each.base, each.head) for each in found.environment] == [("torch", "2.13.0", "2.14.0")]

    def test_a_library_that_changed_on_one_engine_alone_is_a_change_of_its_variants_alone(self, bench: Any) -> None:
        def side(session: str, library: str) -> list[RunRecord]:
            here, there = (
                replace(bench, session=session, torch=version).quality(RTN) for version in ("2.13.0", library)
            )
            return [here, replace(there, spec=changed(there.spec, engine="llamacpp"))]

        (change,) = track(side("s1", "2.13.0"), side("s2", "2.14.0")).environment
        assert change.variants == ("SmolLM2-135M × rtn 4-bit × llamacpp",)

    def test_every_gate_is_of_a_metric_that_is_compared(self) -> None:
        assert {type(figure.statistic) for figure in gated().values()} == {Items, PerProcess, Count}


class TestAlarms:
    def test_two_draws_of_one_truth_seldom_alarm(self, makes: Makes) -> None:
        """α = 5% for all gates together; 60 draws with 9 alarms or more would be one in a thousand."""
        alarms = 0
        for seed in range(60):
            sides = []
            for session, own in (("s1", 2 * seed), ("s2", 2 * seed + 1)):
                side = makes.side(session)
                sides.append([makes.quality(side, nats(own + 100)), *makes.timed(side, jittered(own + 1000))])
            alarms += track(*sides, {"perplexity": 1e-4, "decode": 1e-4}).exit_code is ExitCode.GATE_FAILED
        assert alarms < 9

    def test_too_few_processes_cost_the_other_gates_nothing(self, makes: Makes) -> None:
        rng = np.random.default_rng(3)
        few = [compare_speeds(rng.uniform(9, 10, 4).tolist(), rng.uniform(9, 10, 4).tolist(), 0.05) for _ in range(20)]
        many = compare_speeds(rng.uniform(9, 10, 10).tolist(), rng.uniform(11, 12, 10).tolist(), 0.05)
        judged = together([*few, many])
        assert judged[-1].adjusted_p == many.p
        assert all(found.p is None and found.verdict == "inconclusive" for found in judged[:-1])
        assert together([few[0]])[0].p == few[0].p

    def test_how_many_processes_it_takes_among_how_many_tests(self) -> None:
        """The numbers of docs/how-to/regressions.md."""

        def testable(processes: int, tests: int) -> bool:
            fast, slow = [20 + i / 100 for i in range(processes)], [10 + i / 100 for i in range(processes)]
            return together([compare_speeds(slow, fast, 0.05)] * tests)[0].different

        assert [testable(*each) for each in ((6, 23), (5, 6), (4, 1))] == [True] * 3
        assert [testable(*each) for each in ((6, 24), (5, 7), (4, 2), (3, 1))] == [False] * 4

    def test_few_processes_beside_many_of_the_other_side_are_tested(self) -> None:
        """Three of thirteen can be taken in 286 ways."""
        few, many = [20.0, 20.1, 20.2], [10 + i / 100 for i in range(10)]
        assert together([compare_speeds(few, many, 0.05)] * 7)[0].different
        left_out = together([compare_speeds(few, many, 0.05)] * 8)[0]
        assert left_out.finding == (
            "no test is valid at n = 3 processes: it takes at least 4 beside 10 of the other side among 8 tests"
        )

    def test_what_it_takes_among_many_tests_is_more_than_there_is(self) -> None:
        """Of five processes a side no test finds anything among seven, and of six one does."""
        five, six = ([[at + i / 100 for i in range(count)] for at in (10, 20)] for count in (5, 6))
        left_out = together([compare_speeds(*five, 0.05)] * 7)
        assert {each.finding for each in left_out} == {
            "no test is valid at n = 5 processes: it takes at least 6 among 7 tests"
        }
        assert together([compare_speeds(*six, 0.05), *[compare_speeds(*five, 0.05)] * 6])[0].different

    @settings(max_examples=25)
    @given(seed=st.integers(0, 2**31), damage=st.floats(-0.05, 0.05), speed=st.floats(10, 30), few=st.integers(1, 9))
    def test_swapping_the_sides_swaps_the_verdicts_and_a_side_never_alarms_against_itself(
        self, seed: int, damage: float, speed: float, few: int
    ) -> None:
        bench = replace(_fresh(), windows=40)
        makes = Makes(bench)
        base, head = makes.side("s1"), makes.side("s2")
        one = [makes.quality(base, nats(seed)), *makes.timed(base, jittered(seed, 20, few))]
        other = [makes.quality(head, nats(seed + 1, damage)), *makes.timed(head, jittered(seed + 1, speed, few))]
        swapped = {"improved": "regressed", "regressed": "improved"}
        there, back = track(one, other), track(other, one)
        assert [f.verdict for f in back.findings] == [swapped.get(f.verdict, f.verdict) for f in there.findings]
        again = [replace(run, session="s9", started_at="2027-01-01") for run in one]
        for found in (track(one, one), track(one, again)):
            assert not {finding.verdict for finding in found.findings} & {"regressed", "improved"}
        assert track(one, one).exit_code is ExitCode.OK


def _fresh() -> Any:
    import sys

    known = (getattr(module, "Bench", None) for module in sys.modules.values() if hasattr(module, "LOOKS"))
    return next(found for found in known if isinstance(found, type))()  # torch.ops has every attribute


def test_variants_that_share_a_method_are_told_apart(bench: Any, none: MethodRef) -> None:
    """Two that differ in what they skip, and a cache of fewer bits: three names, and a size of each."""
    first, second = (bench.quality(RTN, bits, 0.1) for bits in (4.5, 8.5))
    second = replace(second, spec=changed(second.spec, skip=("*.down_proj",)))
    third = replace(bench, kv_cache="int8").quality(RTN, 4.5, 0.2)
    records = [bench.quality(none), first, second, third]
    found = track(records, records)
    assert {each.method for each in found.findings} == {
        "unquantized",
        "rtn 4-bit",
        "rtn 4-bit · skip *.down_proj",
        "rtn 4-bit · int8 cache",
    }
    sizes = {each.method: each.head for each in found.findings if each.metric == "stored_bytes"}
    assert len(sizes) == 4
    assert sizes["rtn 4-bit"] != sizes["rtn 4-bit · skip *.down_proj"]


def test_an_identical_variant_says_nothing_of_one_that_skips_more(makes: Makes) -> None:
    """Equal likelihoods of one variant prove nothing of another of the same name."""
    nats = (3 + np.random.default_rng(1).standard_normal(40) / 10).tolist()
    base, head = makes.side("a"), makes.side("b", day=2)

    def skipping(record: RunRecord) -> RunRecord:
        return replace(record, spec=changed(record.spec, skip=("*.down_proj",)))

    found = track(
        [makes.quality(base, nats), skipping(makes.quality(base, nats))],
        [makes.quality(head, nats), skipping(makes.quality(head, [nat + 0.5 for nat in nats]))],
        gates=QUALITY,
    )
    verdicts = {each.method: each.verdict for each in found.findings if each.metric == "perplexity"}
    assert verdicts == {"rtn 4-bit": "unchanged", "rtn 4-bit · skip *.down_proj": "regressed"}
