"""What makes timings suspect, on made-up states: each finding alone, and what lies just below its threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from nvml_stub import GIB, SLICED_H200, SLICES, NvmlStub, Process
from run_specs import run_spec

from harness.core.label import Label
from harness.core.record import Measurement, Moment
from harness.execution import import_guard, worker
from harness.execution.checks.drift import drift
from harness.execution.context import Context
from harness.execution.jobs import machine as gauging
from harness.storage.cache import Cache

QUIET_GPU = {
    "gpu_sm_clock_mhz": 1980.0,
    "gpu_slowdown_reasons": float(0x04),  # held down by its power limit, which is how GPUs run
    "gpu_power_violation_s": 5.0,
    "gpu_thermal_violation_s": 1.0,
    "gpu_processes": 1.0,
}
QUIET_CPU = {"cpu_total_s": 100.0, "cpu_busy_s": 50.0, "cpu_own_s": 40.0, "cpu_steal_s": 1.0, "cpu_throttle_count": 3.0}


def moments(before: Mapping[str, float], after: Mapping[str, float]) -> list[Moment]:
    return [Moment("timing begins", before), Moment("timing ends", after)]


def decoding(medians: Sequence[float], metric: str = "decode_step_s") -> Measurement:
    """Three steps an iteration, one of them ten times as long."""
    values = [step for median in medians for step in (median, median, 10 * median)]
    clusters = tuple(str(place // 3) for place in range(len(values)))
    protocol = {"batch_size": 4, "prompt_tokens": 64, "new_tokens": 3, "decode_mode": "eager"}
    return Measurement(metric, 2, "s", "lower", "samples", tuple(values), protocol, cluster_ids=clusters)


def told(moments: Sequence[Moment], measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """The sentences of what was found, without what they have in common."""
    return tuple(label.sentence.removeprefix("suspect: ") for label in drift(moments, measurements))


def test_a_quiet_run_is_not_suspect() -> None:
    after = {"cpu_total_s": 110.0, "cpu_busy_s": 59.0, "cpu_own_s": 48.5, "cpu_steal_s": 1.1, "cpu_throttle_count": 3.0}
    before_gpu, after_gpu = QUIET_GPU, {**QUIET_GPU, "gpu_sm_clock_mhz": 1800.0, "gpu_power_violation_s": 9.0}
    assert told(moments({**QUIET_CPU, **before_gpu}, {**after, **after_gpu}), [decoding([1.0] * 6)]) == ()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"gpu_sm_clock_mhz": 1000.0}, "the GPU's clock fell by more than 10%"),
        ({"gpu_slowdown_reasons": float(0x40)}, "the GPU held its clocks down: heat or a fault of its power"),
        ({"gpu_processes": 2.0}, "another process held the GPU"),
    ],
)
def test_each_of_several_gpus_is_judged(changed: Mapping[str, float], sentence: str) -> None:
    second = {f"{name}_of_gpu_1": value for name, value in QUIET_GPU.items()}
    after = {f"{name}_of_gpu_1": value for name, value in changed.items()}
    quiet = {**QUIET_GPU, **second}
    assert told(moments(quiet, quiet), []) == ()
    assert told(moments(quiet, {**quiet, **after}), []) == (sentence,)


def test_a_run_may_have_several_processes_on_a_gpu() -> None:
    several = {**QUIET_GPU, "gpu_processes": 2.0, "gpu_other_processes": 0.0}
    assert told(moments(several, several), []) == ()


def test_what_was_not_told_is_not_judged() -> None:
    assert told([], []) == ()
    assert told(moments({}, {}), []) == ()
    assert told(moments({}, {**QUIET_CPU, **QUIET_GPU}), []) == ()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gpu_sm_clock_mhz": 1700.0}, "the GPU's clock fell by more than 10%"),
        ({"gpu_slowdown_reasons": 0x24}, "the GPU held its clocks down: heat or a fault of its power"),
        ({"gpu_slowdown_reasons": 0x08}, "the GPU held its clocks down: heat or a fault of its power"),
        ({"gpu_slowdown_reasons": 0x80}, "the GPU held its clocks down: heat or a fault of its power"),
        ({"gpu_thermal_violation_s": 1.01}, "heat held the GPU's clocks down"),
        ({"gpu_processes": 2.0}, "another process held the GPU"),
        ({"gpu_processes": 3.0, "gpu_other_processes": 1.0}, "another process held the GPU"),
    ],
)
def test_a_gpu_that_drifts_is_told(change: Mapping[str, float], sentence: str) -> None:
    assert told(moments(QUIET_GPU, {**QUIET_GPU, **change}), []) == (sentence,)


def test_clocks_are_compared_within_a_point_of_the_grid() -> None:
    """Another batch size draws other power: its clocks are its own."""
    slow = {**QUIET_GPU, "gpu_sm_clock_mhz": 1200.0}
    assert told([*moments(QUIET_GPU, QUIET_GPU), *moments(slow, slow)], []) == ()


@pytest.mark.parametrize(
    ("spent", "sentences"),
    [
        # 10 s of cores: busy, own, steal
        ((9.0, 7.9, 0.0), ("other processes took more than 10% of the CPU",)),
        ((9.0, 8.1, 0.0), ()),
        ((9.0, 8.0, 0.3), ("the hypervisor gave more than 2% of the CPU away",)),
        ((9.0, 8.0, 0.15), ()),
    ],
)
def test_what_others_took_is_busy_less_own_and_stolen(spent: tuple[float, ...], sentences: tuple[str, ...]) -> None:
    busy, own, steal = spent
    after = {"cpu_total_s": 110.0, "cpu_busy_s": 50 + busy, "cpu_own_s": 40 + own, "cpu_steal_s": 1 + steal}
    assert told(moments(QUIET_CPU, after), []) == sentences


def test_shares_of_next_to_no_time_are_not_judged() -> None:
    """Half a second of a core is fifty ticks of the kernel's clock."""
    after = {"cpu_total_s": 100.5, "cpu_busy_s": 50.5, "cpu_own_s": 40.1, "cpu_steal_s": 1.1}
    assert told(moments(QUIET_CPU, after), []) == ()


def test_a_cpu_slowed_down_by_heat_is_told() -> None:
    assert told(moments(QUIET_CPU, {**QUIET_CPU, "cpu_throttle_count": 4.0}), []) == ("heat slowed the CPU down",)


@pytest.mark.parametrize(
    ("medians", "suspect"),
    [
        ([1.0, 1.02, 1.15, 1.17], True),
        ([1.2, 1.2, 1.0, 1.0, 1.0], True),  # it became faster: the warm-up was too short
        ([1.0, 1.02, 1.05, 1.06], False),  # less than a tenth
        ([1.0, 1.3, 1.2, 1.4], False),  # one of the early ones is as slow as the late ones
        ([1.0, 1.5, 1.5], False),  # too few
        ([1.0, 5.0, 1.0, 1.0, 1.0, 1.0], False),  # one iteration far out
    ],
)
def test_times_that_drift_are_told(medians: Sequence[float], suspect: bool) -> None:
    sentence = "decode times drift by more than 10% within a process at batch 4, prompt 64"
    assert told([], [decoding(medians)]) == ((sentence,) if suspect else ())
    assert told([], [decoding(medians, "peak_memory_bytes")]) == ()


def test_one_thing_is_said_once() -> None:
    hot = {**QUIET_GPU, "gpu_slowdown_reasons": 0x20}
    assert len(told([*moments(hot, hot), *moments(hot, hot)], [])) == 1


def test_what_a_gpu_does_not_report_is_a_fact(nvml: NvmlStub, tmp_path: Path) -> None:
    """A slice has no clocks, so that drift cannot judge them; of a run on the CPU nothing is said."""
    nvml.holds(replace(SLICED_H200, slices=[SLICES[0].running(Process(None, GIB))]))
    for device in ("cpu", "cuda"):
        context = Context(run_spec("performance", memory=False, device=device), Cache(tmp_path), lambda _: None)
        context.moment("begin")
        context.moment("end")
        assert context.moments[1].state["gpu_processes"] == 1
        if device == "cpu":
            assert context.facts == []
            continue
        (fact,) = context.facts
        assert fact.name == "GPU state not reported"
        assert "gpu_sm_clock_mhz: Not Supported" in fact.value
        assert "gpu_used_bytes" not in fact.value


@pytest.mark.heavy
@pytest.mark.parametrize("busy", [False, True])
def test_a_machine_measured_while_others_worked_serves_no_other_sweep(
    busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    burst = Measurement("matmul_op_per_s", 1, "operation/s", "higher", "samples", (1.0,), {"dtype": "float32"})
    monkeypatch.setattr(gauging, "measure", lambda *_: iter([burst]))
    label = Label("suspect", {"reason": "cpu_shared", "of": "machine", "limit": 0.1})
    monkeypatch.setattr(gauging, "drift", lambda *_, **__: [label] if busy else [])
    monkeypatch.setattr(import_guard, "skip_unused_imports", lambda _: None)  # it would hold for all tests that follow
    spec = run_spec("machine", memory=False)
    cache = Cache(tmp_path)
    outcome, _ = worker._run(Context(spec, cache, lambda _: None), (), "token", lambda: None)
    assert outcome.status == "ok"
    assert (cache.outcome(spec) is None) is busy
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.heavy
def test_products_at_the_power_limit_leave_the_machine_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lower the clock by a third, which is how the GPU runs them; the clock is compared under one load."""
    clock_mhz = [300.0]

    def measure(*_: object) -> Iterator[Measurement]:
        clock_mhz[0] = 1300.0
        yield Measurement("matmul_op_per_s", 2, "operation/s", "higher", "samples", (1.0,), {"dtype": "bfloat16"})

    def moment(context: Context, name: str) -> None:
        context.moments.append(Moment(name, {**QUIET_GPU, "gpu_sm_clock_mhz": clock_mhz[0]}))

    monkeypatch.setattr(gauging, "warm_up", lambda device: clock_mhz.__setitem__(0, 1980.0))
    monkeypatch.setattr(gauging, "measure", measure)
    monkeypatch.setattr(Context, "moment", moment)
    spec = run_spec("machine", memory=False)
    context = Context(spec, Cache(tmp_path), lambda _: None)
    gauging.run(spec.job, context, tmp_path)  # type: ignore[arg-type]
    assert [each.state["gpu_sm_clock_mhz"] for each in context.moments] == [1980.0, 1980.0]
    assert not context.labels
