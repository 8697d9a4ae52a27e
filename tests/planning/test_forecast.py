"""Forecasts: what they must grow with, what measured runs change, and how runs add up."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from run_specs import changed

from harness.api.forecasting import ForecastBasis
from harness.api.plan import PlanState
from harness.cli.render.forecast import bytes_words, too_long_lines
from harness.cli.render.plan import show_plan
from harness.core.engine import STREAMED_PASSES
from harness.core.job import MeasureQuality
from harness.core.model import ModelRef
from harness.core.record import Forecast, Outcome, Phase, RunRecord
from harness.core.run import HourlyPrice
from harness.core.site import Machine, Node, Speeds
from harness.execution.resume import left
from harness.execution.schedule import Schedule, width
from harness.figures.formats import significant
from harness.host import speeds as timing
from harness.host.speeds import machine_speeds
from harness.models.shapes import size_of
from harness.models.sources import SourceModel
from harness.planning.forecast.forecast import RunForecast, SweepForecast, forecast
from harness.planning.forecast.learned import Component
from harness.planning.forecast.pace import remaining
from harness.planning.forecast.side_by_side import Constraints
from harness.planning.forecast.work import FOOTPRINT, Start, Starts, Work, work
from harness.planning.plan import PlannedRun
from harness.plugins import method

SPEEDS = Speeds(0.2, 10e9, {"float32": 50e9, "bfloat16": 100e9}, 1e9)
MACHINE = Machine("cpu", "a test machine")
Make = Callable[..., tuple[PlannedRun, ...]]


def arithmetic(runs: Sequence[PlannedRun], speeds: Speeds = SPEEDS) -> list[Work]:
    """Of runs in their order, forked from a server that has imported nothing yet."""
    starts = Starts(spawned=False)
    return [work(run, speeds, starts.add(run.spec, shared=False)) for run in runs]


def record(run: PlannedRun, starting_s: float, computing_s: float, **changes: object) -> RunRecord:
    """That the run took so long."""
    outcome = Outcome("ok", phases=(Phase("import", 0.0), Phase("forward", computing_s)))
    made = RunRecord(run.spec, outcome, "s", 1, "2026-01-01T00:00:00+00:00", starting_s + computing_s)
    return replace(made, **changes)  # type: ignore[arg-type]


def measured(runs: Sequence[PlannedRun], times: float) -> list[RunRecord]:
    """That each run took so many times as long as the arithmetic says."""
    made = zip(runs, arithmetic(runs), strict=True)
    return [record(run, times * each.starting_s, times * each.computing_s) for run, each in made]


def test_every_run_that_is_left_has_a_range_around_what_is_expected(make: Make) -> None:
    runs = make()
    made = forecast(runs, runs, SPEEDS, [])
    assert list(made.runs) == [run.spec.run_id for run in runs]
    for each in made.runs.values():
        assert 0 < each.time.low_s < each.time.expected_s < each.time.high_s
        assert each.time.basis == "arithmetic"
    total = made.total_s
    assert 0 < total.low < total.expected < total.high


def test_more_work_takes_longer_and_a_quicker_machine_less_long(make: Make) -> None:
    def seconds(speeds: Speeds = SPEEDS, kind: str = "quality", **measure: object) -> float:
        wanted = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}, **measure}
        run = next(run for run in make(measure=wanted) if run.spec.kind == kind)
        return arithmetic([run], speeds)[0].total_s

    assert seconds(perplexity={"text": "demo", "context": 64, "windows": 20}) > seconds()
    assert seconds(perplexity={"text": "demo", "context": 64}) > seconds(), "the whole text"
    timed = {"prompt_tokens": 16, "new_tokens": 4}
    short = seconds(kind="performance", throughput=timed)
    assert seconds(kind="performance", throughput={**timed, "new_tokens": 40}) > short
    assert seconds(kind="performance", throughput={**timed, "batch_sizes": [1, 4]}) > short
    for quicker in (replace(SPEEDS, start_s=0.1), replace(SPEEDS, bandwidth_byte_per_s=20e9)):
        assert seconds(quicker) < seconds()
    assert seconds(replace(SPEEDS, operations_per_s={"float32": 500e9})) <= seconds()


def test_a_larger_model_takes_longer_and_leaves_more(make: Make) -> None:
    runs = [run for run in make() if run.spec.kind == "quantize"]
    assert all(run.size is not None and run.checkpoint_bytes > 0 for run in runs)
    for run in runs:
        assert run.size is not None
        large = replace(
            run, size=replace(run.size, parameters=10**9, active=10**9, decoder=10**9), checkpoint_bytes=10**9
        )
        more, less = arithmetic([large, run])
        assert more.computing_s > less.computing_s
        assert more.disk_bytes - less.disk_bytes == 10**9 - run.checkpoint_bytes


def test_a_token_of_a_mixture_reads_the_experts_that_it_goes_to(make: Make) -> None:
    timed = {"prompt_tokens": 16, "new_tokens": 4}
    (run, *_) = (run for run in make(measure={"throughput": timed}) if run.spec.kind == "performance")
    assert run.size is not None
    dense = replace(run, weight_bytes=40 * 10**9, size=replace(run.size, parameters=10**10, active=10**10))
    mixture = replace(dense, size=replace(dense.size, active=10**9))
    speeds = replace(SPEEDS, operations_per_s={"float32": 1e18})
    every, some = (each.computing_s for each in arithmetic([dense, mixture], speeds))
    effort = run.spec.job.effort
    assert effort.timed is not None
    times = effort.passes * (effort.timed.warmup + effort.timed.iterations) + FOOTPRINT
    assert every - some == pytest.approx(times * 4 * 0.9 * 40e9 / SPEEDS.bandwidth_byte_per_s, rel=1e-6)


def test_a_streamed_run_reads_its_weights_for_every_pass(make: Make) -> None:
    wanted = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}}
    for kind, name, times in (
        ("quality", "none", STREAMED_PASSES),
        ("quality", "bnb-nf4", STREAMED_PASSES),  # of what was quantized once
        ("quality", "torchao-int4", STREAMED_PASSES + 1),  # which cannot be saved
        ("quantize", "rtn", 1),
    ):
        whole, cut = (
            next(
                run
                for run in make(measure=wanted, residency=residency, methods=["none", "rtn", "bnb-nf4", "torchao-int4"])
                if (run.spec.kind, run.spec.method.name) == (kind, name)
            )
            for residency in ("resident", "streamed")
        )
        assert (whole.spec.run_id, cut.spec.job.conditions.residency) == (cut.spec.run_id, "streamed")
        assert whole.size is not None
        size = replace(whole.size, parameters=10**12)  # so large that only reading counts
        less, more = (each.computing_s for each in arithmetic([replace(run, size=size) for run in (whole, cut)]))
        assert more == pytest.approx(times * less, rel=0.01)


def quality(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    return [run for run in runs if run.spec.kind == "quality"]


def test_a_streamed_run_reads_no_faster_than_the_disk(make: Make) -> None:
    whole, cut = (quality(make(residency=residency))[0] for residency in ("resident", "streamed"))
    assert whole.size is not None
    size = replace(whole.size, parameters=10**12)
    slow = replace(SPEEDS, disk_byte_per_s=100e6)
    passes_s = STREAMED_PASSES * 4 * 10**12 / 100e6
    (streamed,) = arithmetic([replace(cut, size=size)], slow)
    assert streamed.computing_s == pytest.approx(passes_s, rel=0.01)
    resident = [arithmetic([replace(whole, size=size)], speeds)[0] for speeds in (SPEEDS, slow)]
    assert resident[0] == resident[1]


PACKED_4_BIT = {"quant_method": "gptq", "bits": 4, "group_size": 32}
UNPACKED_ON_A_CPU = {"quant_method": "fp8", "weight_block_size": [64, 64]}
UNPACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
        }
    },
}


@pytest.mark.parametrize("stored", [PACKED_4_BIT, UNPACKED_ON_A_CPU, UNPACKED], ids=lambda each: each["quant_method"])
def test_a_streamed_published_checkpoint_reads_what_its_files_hold(
    make: Make, tiny: Path, tmp_path: Path, stored: Mapping[str, Any]
) -> None:
    folder = tmp_path / "published"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = stored
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run = quality(make(residency="streamed", methods=["none", {"checkpoint": {"id": str(folder)}}]))[-1]
    assert (run.spec.method.name, run.spec.job.conditions.residency) == ("checkpoint", "streamed")
    assert run.size is not None
    size = replace(run.size, parameters=10**12)  # of the model that it was made from
    (found,) = arithmetic([replace(run, size=size)], replace(SPEEDS, disk_byte_per_s=1.0))
    stored_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert (run.weight_bytes == stored_bytes) == (stored is PACKED_4_BIT)
    assert found.computing_s == pytest.approx(STREAMED_PASSES * stored_bytes, rel=0.01)


@pytest.mark.parametrize("residency", ["resident", "streamed"])
def test_a_run_of_the_other_residency_teaches_no_more_than_how_fast_the_machine_is(make: Make, residency: str) -> None:
    """Its model is read in every pass, or once: the same run and case, and another time."""
    other = {"resident": "streamed", "streamed": "resident"}[residency]
    runs, others = (quality(make(residency=each)) for each in (residency, other))
    assert [run.spec.run_id for run in runs] == [run.spec.run_id for run in others]
    cold, exact, slow = (
        forecast(runs, runs, SPEEDS, known) for known in ([], measured(others, 1.0), measured(others, 20.0))
    )
    assert exact.bases == {"arithmetic": len(runs)}
    for run_id, run in exact.runs.items():
        assert run.components[1].mean_s == pytest.approx(cold.runs[run_id].components[1].mean_s, rel=0.3)
    own = forecast(runs, runs, SPEEDS, measured(runs, 20.0))
    assert own.bases == {"same": len(runs)}
    assert slow.total_s.expected < 0.5 * own.total_s.expected


def test_the_reference_of_a_mixture_keeps_its_routers_scores(make: Make) -> None:
    wanted = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}}
    run = next(run for run in make(measure=wanted) if run.spec.kind == "reference")
    assert run.size is not None
    assert run.size.router_scores == 0
    mixture = replace(run, size=replace(run.size, router_scores=48 * 128))
    more, less = arithmetic([mixture, run])
    assert more.disk_bytes - less.disk_bytes == 2 * 64 * 48 * 128 * 4


def test_the_first_method_that_is_calibrated_on_a_mixture_counts_its_experts_tokens(make: Make) -> None:
    """The counts of a model and a calibration set are kept: they cost one load and one pass, whatever the methods."""
    wanted: dict[str, object] = {"methods": ["none", "gptq", "awq"], "calibration": {"samples": 4, "length": 64}}
    dense = [run for run in make(**wanted) if run.spec.kind == "quantize"]
    assert len(dense) == 2
    sizes = [run.size for run in dense if run.size is not None]
    mixtures = [replace(run, size=replace(size, router_scores=8)) for run, size in zip(dense, sizes, strict=True)]
    added = [
        more.computing_s - less.computing_s for more, less in zip(arithmetic(mixtures), arithmetic(dense), strict=True)
    ]
    assert added[0] > 0
    assert added[1] == 0


def test_the_scores_of_a_mixture_are_counted_in_its_layers_of_experts() -> None:
    """Two of three layers have four experts, one stored expert by expert and one fused."""
    matrices = {
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        **{f"model.layers.1.mlp.experts.{number}.up_proj.weight": (8, 4) for number in range(4)},
        "model.layers.2.mlp.experts.down_proj": (4, 4, 8),
    }
    config = {"num_local_experts": 4, "num_experts_per_tok": 1, "hidden_size": 4, "vocab_size": 16}
    model = ModelRef("m", "m", "0", "synthetic", "", "float32", config=config)
    size = size_of(SourceModel(model, matrices, 9 * 32, 0, None))
    assert size is not None
    assert size.router_scores == 2 * 4
    assert size.parameters - size.active == 8 * 32 * 3 // 4


def test_runs_of_the_same_cases_decide(make: Make) -> None:
    runs = make()
    made = forecast(runs, runs, SPEEDS, measured(runs, 3.0))
    bare = sum(each.total_s for each in arithmetic(runs))
    assert made.bases == {"same": len(runs)}
    assert made.total_s.expected == pytest.approx(3 * bare, rel=0.05)
    cold = forecast(runs, runs, SPEEDS, []).total_s
    assert made.total_s.high / made.total_s.low < cold.high / cold.low


def test_runs_of_a_kind_speak_for_others_of_it(make: Make) -> None:
    runs = make()
    quality = [run for run in runs if run.spec.kind == "quality"]
    before = forecast(quality, runs, SPEEDS, []).runs
    after = forecast(quality, runs, SPEEDS, measured(quality[:1], 4.0)).runs
    for run in quality[1:]:
        was, now = before[run.spec.run_id].time, after[run.spec.run_id].time
        assert (was.basis, now.basis) == ("arithmetic", "alike")
        assert was.expected_s < now.expected_s < 4 * was.expected_s


def test_nothing_is_learned_from_another_machine_a_failure_or_a_reused_artifact(make: Make) -> None:
    runs = make()
    (one,) = measured(runs[2:3], 5.0)
    elsewhere = replace(one, spec=replace(one.spec, environment=replace(one.spec.environment, hardware="another")))
    useless = [
        elsewhere,
        replace(one, outcome=replace(one.outcome, status="failed")),
        replace(one, wall_s=0.1),  # less than its phases: those are of the sweep that made the artifact
    ]
    assert forecast(runs, runs, SPEEDS, useless) == forecast(runs, runs, SPEEDS, [])


def test_what_a_warm_server_has_imported_later_runs_find_there(make: Make) -> None:
    runs = [run for run in make() if run.spec.kind == "quality"]
    first, second, *_ = arithmetic(runs)
    assert first.starting_s > 2 * second.starting_s
    anew = Starts(spawned=True)
    spawned = [work(run, SPEEDS, anew.add(run.spec, shared=False)) for run in runs[:2]]
    assert min(each.starting_s for each in spawned) > first.starting_s
    assert spawned[0].starting_s == pytest.approx(spawned[1].starting_s, rel=0.1)
    assert [each.computing_s for each in spawned] == [first.computing_s, second.computing_s]
    shared = work(runs[1], SPEEDS, Starts(spawned=False).add(runs[1].spec, shared=True))
    assert shared.computing_s < second.computing_s, "the model is loaded"


def test_a_sweep_whose_runs_imported_by_themselves_says_that_the_next_ones_do(make: Make) -> None:
    runs = make()
    quality = [run for run in runs if run.spec.kind == "quality"]
    anew = Start(spawned=True, imports=True)
    seen = work(quality[0], SPEEDS, anew)
    old = record(quality[0], seen.starting_s, seen.computing_s)
    phases = (Phase("import", 0.9 * seen.starting_s), Phase("forward", seen.computing_s))
    old = replace(old, outcome=replace(old.outcome, phases=phases))
    found = forecast(quality[1:], runs, SPEEDS, [old]).runs[quality[1].spec.run_id]
    assert found.components[0].mean_s == pytest.approx(seen.starting_s, rel=0.3)


def test_another_model_says_how_long_starting_takes_and_nothing_of_computing(make: Make) -> None:
    runs = make()
    quality = [run for run in runs if run.spec.kind == "quality"]
    (seen,) = measured(quality[:1], 6.0)
    job = seen.spec.job
    assert isinstance(job, MeasureQuality)
    variant = replace(job.variant, model=replace(job.model, content="f" * 16))
    other = replace(seen, spec=replace(seen.spec, job=replace(job, variant=variant)))
    cold, after = (forecast(quality, runs, SPEEDS, known).runs[quality[1].spec.run_id] for known in ([], [other]))
    assert after.components[0].mean_s > 1.5 * cold.components[0].mean_s
    assert after.components[1] == cold.components[1]


def test_a_method_that_is_not_installed_any_more_is_passed_over(make: Make) -> None:
    runs = make()
    (seen,) = measured(runs[2:3], 6.0)
    job = seen.spec.job
    assert isinstance(job, MeasureQuality)
    for changes in ({"name": "gone"}, {"params": {"dtype": "unheard of"}}):
        method_ref = replace(job.variant.method, stage="on_load", **changes)
        variant = replace(job.variant, method=method_ref)
        old = replace(seen, spec=replace(seen.spec, job=replace(job, variant=variant)))
        assert forecast(runs, runs, SPEEDS, [old]) == forecast(runs, runs, SPEEDS, [])


ALONE = Constraints(alone=True)


def of(
    seconds: float,
    constraints: Constraints = ALONE,
    own: float = 0.0,
    group: float = 0.0,
    shared: float = 0.0,
) -> RunForecast:
    time = Forecast(seconds, seconds, seconds, "same")
    return RunForecast(time, (Component(seconds, shared, group, own),), ("quality", ""), constraints, disk_bytes=7)


def test_a_sweep_takes_as_long_as_its_runs_side_by_side() -> None:
    """Two machines with four GPUs: a run of 10 s for each GPU, then one that has its machine for itself."""
    quality = {f"quality {number}": of(10.0, Constraints()) for number in range(8)}
    made = SweepForecast({**quality, "speed": of(30.0, Constraints(alone=True, turn=1))}, (4, 4))
    assert made.total_s.expected == pytest.approx(40)
    assert made.disk_bytes == 7 * 9


def limited(expected_s: float, low_s: float, is_streamed: bool = False) -> RunForecast:
    """Of a run that may take an hour."""
    time = Forecast(expected_s, low_s, 2 * expected_s, "arithmetic")
    return replace(of(expected_s), time=time, title=f"run of {expected_s:g} s", is_streamed=is_streamed, limit_s=3600.0)


def test_runs_that_may_reach_their_time_limit_are_told_with_what_to_do() -> None:
    near, over, far = limited(3599, 1000), limited(3601, 3599), limited(14_400, 7200)
    assert list(too_long_lines(SweepForecast({"a": near, "b": replace(far, limit_s=None)}))) == []
    (likely,) = too_long_lines(SweepForecast({"a": near, "b": over}))
    assert "probably longer than limits.time (1 h 00 min): run of 3601 s 1.0 h (1.0–2.0); " in likely
    assert "raise it, or measure less in a run" in likely
    assert "streamed" not in likely
    surely, likely = too_long_lines(SweepForecast({"a": far, "b": over, "c": replace(far, is_streamed=True)}))
    assert "even by the low end of the range longer than limits.time (1 h 00 min): run of 14400 s 4.0 h" in surely
    assert surely.count("run of 14400 s") == 2
    assert "a streamed run reads its weights again for each pass" in surely
    assert "run of 3601 s" in likely
    (many,) = too_long_lines(SweepForecast({str(number): far for number in range(5)}))
    assert many.count("run of 14400 s") == 3
    assert "and 2 others" in many


def test_a_streamed_baseline_that_outlasts_its_limit_is_known_before_it_runs(make: Make) -> None:
    wanted = {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}}
    slow = replace(SPEEDS, disk_byte_per_s=100.0)
    for limits, outlasting in (({}, False), ({"time": "1m"}, True), ({"time": "300h"}, False)):
        runs = make(measure=wanted, residency="streamed", methods=["none"], limits=limits)
        found = forecast(runs, runs, slow, []).runs
        of_kind = {run.spec.kind: found[run.spec.run_id] for run in runs}
        assert of_kind["reference"].outlasts_its_limit is outlasting
        assert of_kind["reference"].surely_outlasts_its_limit is outlasting
        assert of_kind["reference"].is_streamed


def test_a_single_run_is_not_divided_and_its_range_is_its_own() -> None:
    run = {"a": of(400.0, Constraints(), own=50.0)}
    assert astuple(SweepForecast(run, (8,)).total_s) == pytest.approx(astuple(SweepForecast(run).total_s))


def test_the_last_run_that_executes_takes_what_is_left_of_it_on_however_many_gpus() -> None:
    made = SweepForecast({str(number): of(800.0, Constraints()) for number in range(8)}, (8,))
    left_s = remaining(made, {str(number): 800.0 for number in range(7)}, {"7": 400.0}).expected
    assert left_s == pytest.approx(400, rel=0.01)


def test_own_uncertainty_averages_out_and_shared_does_not() -> None:
    def width(**spread: float) -> float:
        total = SweepForecast({str(n): of(10.0, **spread) for n in range(100)}).total_s
        return math.log(total.high / total.low)

    assert width(own=5.0) == pytest.approx(width(shared=5.0) / 10, rel=0.1)
    assert width(group=5.0) == pytest.approx(width(shared=5.0)), "here all are of one group"


def test_the_price_of_the_machine() -> None:
    made = SweepForecast({"a": of(7200.0, own=600.0)}, price=HourlyPrice(2.5, "USD"))
    time, cost = made.total_s, made.cost
    assert cost is not None
    assert (cost.expected, cost.low, cost.high) == pytest.approx([2.5 / 3600 * each for each in astuple(time)])
    assert replace(made, price=None).cost is None


def test_all_machines_are_paid_until_the_last_run_ends(make: Make) -> None:
    """Four machines for two hours, whether runs have them for themselves or not."""
    runs = {str(number): of(3600.0, Constraints()) for number in range(8)}
    made = SweepForecast(runs, (1, 1, 1, 1), HourlyPrice(10.0, "USD"))
    assert made.cost is not None
    assert (made.total_s.expected, made.cost.expected) == pytest.approx((7200, 80))
    planned = make()
    quality = [run for run in planned if run.spec.kind == "quality"]
    several = forecast(quality, planned, SPEEDS, [], (1, 1, 1, 1), HourlyPrice(10.0, "USD"))
    assert several.cost is not None
    assert several.cost.expected == pytest.approx(4 * 10 * several.total_s.expected / 3600)


def test_runs_are_laid_out_by_what_they_need_and_what_they_are_compared_with(make: Make) -> None:
    planned = make()
    found = forecast(planned, planned, SPEEDS, []).runs
    for run in planned:
        constraints, job = found[run.spec.run_id].constraints, run.spec.job
        assert constraints.needs >= set(run.spec.needs.values())
        assert constraints.alone == job.alone
        assert (constraints.together is not None) == job.repeated
    assert len({each.constraints.together for each in found.values()}) == 2, "one model's speeds, and no speeds"


def test_runs_of_a_stack_are_forecast_one_after_the_other_on_a_cpu(make: Make) -> None:
    """Its libraries choose their cores themselves; runs of the main one are content with their threads."""
    main = quality(make(threads=4))
    stack = [replace(run, spec=changed(run.spec, stack="llamacpp")) for run in main]
    node = Node(cores=16, memory_bytes=2**40)
    lanes = (width([run.spec for run in main], [node]),)
    for runs, at_once in ((main, 3), (stack, 1)):
        assert len(list(iter(Schedule([run.spec for run in runs], [node]).begin, None))) == at_once
        total, in_turn = (forecast(runs, runs, SPEEDS, [], each).total_s.expected for each in (lanes, (1,)))
        assert total == pytest.approx(in_turn) if at_once == 1 else total < 0.7 * in_turn


def test_what_is_done_kept_or_unsupported_is_not_left_and_a_baseline_beside_speeds_is(make: Make) -> None:
    runs = make()
    every = {run.spec.run_id for run in runs}
    assert left(runs, every, lambda spec: None) == ()
    assert left(runs, set(), lambda spec: None) == runs
    kept = left(runs, set(), lambda spec: Outcome("ok") if spec.job.cached else None)
    assert {run.spec.kind for run in kept} == {"quality", "performance"}
    assert left([replace(run, reason="no") for run in runs], set(), lambda spec: None) == ()
    speed = next(run.spec for run in runs if run.spec.kind == "performance" and not run.spec.is_baseline)
    again = left(runs, every - {speed.run_id}, lambda spec: None)
    assert speed in [run.spec for run in again]
    assert any(run.spec.is_baseline for run in again)
    assert all(run.spec.is_baseline or run.spec == speed for run in again)


def test_the_plan_says_what_is_left(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make()
    todo = runs[1:]
    made = forecast(todo, runs, SPEEDS, measured(runs[:3], 1.0), price=HourlyPrice(3600.0, "EUR"))
    state = PlanState(runs, frozenset({runs[0].spec.run_id}), made, SPEEDS)
    show_plan(state, as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{math.floor(made.total_s.expected / 60)}" in said.split("expected: ")[1].split(" min")[0]
    assert "EUR (" in said
    assert f"of {len(todo)} runs" in said
    assert "2 on earlier runs of the same case" in said
    assert "copies 10 GB/s and does 50·10⁹" in said
    monkeypatch.setenv("COLUMNS", "200")
    show_plan(state, as_json=False, costs=True)
    header, *rows = capsys.readouterr().out.splitlines()
    assert "disk ≈" in header
    assert "EUR ≈" in header
    disk, cost = header.index("disk ≈") + len("disk ≈"), header.index("EUR ≈") + len("EUR ≈")
    for row, run in zip(rows[1:], made.runs.values(), strict=False):
        assert row[:disk].endswith(f" {bytes_words(run.disk_bytes)}")
        assert row[:cost].endswith(f" {significant(run.time.expected_s, 2)}"), "3600 an hour is one a second"
    show_plan(state, as_json=True)
    entries = [json.loads(line)["forecast"] for line in capsys.readouterr().out.splitlines()]
    assert entries[0] is None
    assert [entry["expected_s"] for entry in entries[1:]] == [each.time.expected_s for each in made.runs.values()]
    assert entries[1]["cost"] == pytest.approx(entries[1]["expected_s"]), "3600 an hour is one a second"
    show_plan(PlanState(runs, frozenset(run.spec.run_id for run in runs)), as_json=False)
    assert "expected" not in capsys.readouterr().out


def test_the_rest_of_a_sweep_follows_the_pace_of_its_runs(make: Make) -> None:
    runs = make()
    made = forecast(runs, runs, SPEEDS, [])
    first = remaining(made, {}, {})
    assert astuple(first) == pytest.approx(astuple(made.total_s))
    half = list(made.runs)[::2]
    rest = replace(made, runs={run_id: run for run_id, run in made.runs.items() if run_id not in half}).total_s
    found = remaining(made, {run_id: 2 * made.runs[run_id].time.expected_s for run_id in half}, {})
    assert 1.7 * rest.expected < found.expected < 2.2 * rest.expected
    assert found.high / found.low < rest.high / rest.low
    everything = {run_id: run.time.expected_s for run_id, run in made.runs.items()}
    assert remaining(made, everything, {}).expected == 0


def test_a_run_that_executes_takes_what_is_left_of_it_and_never_nothing(make: Make) -> None:
    runs = make()
    made = forecast(runs[-1:], runs, SPEEDS, [])
    (run_id,) = made.runs
    whole = made.total_s.expected
    assert 0.6 * whole < remaining(made, {}, {run_id: 0.3 * whole}).expected < 0.9 * whole
    assert 0 < remaining(made, {}, {run_id: 100 * whole}).expected < 0.2 * whole


def test_the_machine_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine_speeds(MACHINE, tmp_path)
    assert found.start_s > 0
    assert min(found.rate("float32"), found.bandwidth_byte_per_s, found.disk_byte_per_s) > 1e6
    (kept,) = (tmp_path / timing.FOLDER).iterdir()
    monkeypatch.setattr(timing, "_time", lambda device, folder: None)
    assert machine_speeds(MACHINE, tmp_path) == found
    assert machine_speeds(Machine("cpu", "another machine"), tmp_path) == timing.TYPICAL, "that one is not known"
    kept.write_text("{}", encoding="utf-8")
    assert machine_speeds(MACHINE, tmp_path) == timing.TYPICAL, "what is no answer is not taken for one"


def test_methods_that_learn_say_how_often_they_read_the_calibration() -> None:
    def passes(name: str, samples: int = 128, **params: object) -> float:
        chosen = method(name)
        return chosen.passes(chosen.params.model_validate({"group_size": 32, **params}), samples)

    assert passes("autoround", iterations=200) - 4 == 4 * (passes("autoround", iterations=50) - 4)
    assert passes("qat", steps=100, batch_size=8) == 2 * passes("qat", steps=100, batch_size=4)
    assert passes("qat", samples=64) == 2 * passes("qat")
    assert passes("llmc-awq") > passes("llmc-gptq")


def test_runs_on_a_cpu_are_forecast_beside_one_another_as_far_as_its_memory_holds_them(make: Make) -> None:
    """Without a limit each may need two copies of its model, and what the libraries take: 1.1 GB."""
    planned = make(threads=1, methods=["none", {"rtn": {"bits": [2, 3, 4, 8], "group_size": 32}}])

    def expected_s(memory_bytes: int) -> float:
        nodes = [Node(cores=16, memory_bytes=memory_bytes)]
        return ForecastBasis(SPEEDS, []).forecast(planned, planned, nodes).total_s.expected

    assert expected_s(2**40) < expected_s(3 * 2**30) < expected_s(2**30)
