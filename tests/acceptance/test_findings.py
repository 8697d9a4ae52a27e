"""What the checks of speed, energy, quality and faults conclude from the records of their runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from nvml_stub import H200
from run_specs import changed, run_spec

from harness.acceptance.bench import Bench, CheckResult
from harness.acceptance.checks import faults, quality, speed
from harness.core.label import Fact, Label
from harness.core.model import MethodRef
from harness.core.record import Failure, Fingerprint, Measurement, Moment, Outcome, Phase, RunRecord
from harness.core.site import Machine
from harness.core.workload import ThroughputWorkload

CPU = Machine("cpu", "a processor")
GPU = Machine("cuda", f"{H200.name}; a processor", (9, 0), (H200.uuid,), H200.total_bytes)
POINT = {"batch_size": 1, "prompt_tokens": 128, "new_tokens": 128, "decode_mode": "eager"}
TORCH = Fingerprint({}, {"torch": "2.13.0"}, {})
SUSPECT = Label("suspect", {"reason": "gpu_shared", "of": "run"})
BANDWIDTH = 4e12


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, True, GPU, None, lambda title: None, time.monotonic() + 3600)


def answering(monkeypatch: pytest.MonkeyPatch, *sweeps: Sequence[RunRecord]) -> None:
    """Each recipe in turn has these records."""
    left = iter(sweeps)

    def measure(self: Bench, recipe: object, adapt: object = None) -> Sequence[RunRecord]:
        records = next(left)
        self.records += records
        return records

    monkeypatch.setattr(Bench, "measure", measure)


def record(kind: str, measured: Sequence[Measurement] = (), method: str = "none", **others: object) -> RunRecord:
    own = MethodRef(method, 1, {}, method, "none" if method == "none" else "on_load")
    spec = run_spec(kind, method=own, device="cuda", hardware="the GPU")
    if kind == "performance":
        spec = replace(spec, job=replace(spec.job, throughput=ThroughputWorkload((1,), (128,), 128, 1, 1)))
    outcome = Outcome("ok", measurements=tuple(measured), before=TORCH)
    return RunRecord(spec, replace(outcome, **others), "s1", 1, "2026-01-01T00:00:00+00:00", 1.0)  # type: ignore[arg-type]


def machine() -> RunRecord:
    def best(metric: str, value: float, **protocol: object) -> Measurement:
        return Measurement(metric, 2, "1/s", "higher", "samples", (value,), protocol)  # type: ignore[arg-type]

    read = best("bandwidth_byte_per_s", BANDWIDTH, access="sum", working_set_bytes=2**30)
    return record("machine", [read, best("matmul_op_per_s", 700e12, dtype="bfloat16", size=8192, way="mm")])


def timed(share: float, joules: float | None = None, **others: object) -> RunRecord:
    """A run whose steps read 4 GB, which takes 1 ms at least, and take 1 ms / ``share``."""
    step_s = 4e9 / BANDWIDTH / share
    steps = Measurement("decode_step_s", 1, "s", "lower", "samples", (step_s,) * 8, POINT, cluster_ids=("0",) * 8)
    read = Measurement("decode_read_bytes", 1, "byte", "neither", "exact", (4e9,), POINT)
    work = Measurement("decode_operations", 1, "operation", "neither", "exact", (4e9,), {**POINT, "dtype": "bfloat16"})
    energy = {**POINT, "source": "NVML", "idle": "included"}
    counted = Measurement("decode_j_per_tok", 1, "J/token", "lower", "samples", (joules or 0.0,), energy)
    measured = [steps, read, work, *([counted] if joules else [])]
    return record("performance", measured, phases=(Phase("energy", 5.0),), **others)


def by_name(findings: Iterator[CheckResult]) -> dict[str, str]:
    return {each.about: each.verdict for each in findings}


@pytest.mark.parametrize(
    ("share", "labels", "reaches", "above"),
    [
        (0.8, (), "PASS", "PASS"),
        (0.5, (), "FAIL", "PASS"),
        (1.2, (), "FAIL", "FAIL"),
        (0.5, (SUSPECT,), "SKIP", "SKIP"),
    ],
)
def test_decoding_is_held_against_its_bound(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, share: float, labels: tuple[Label, ...], reaches: str, above: str
) -> None:
    answering(monkeypatch, [machine(), timed(share, labels=labels)])
    assert by_name(speed.decode(bench))["decode of its bound"] == reaches
    assert by_name(speed.bounds(bench)) == {"nothing above its bound": above}


def test_a_machine_that_was_disturbed_bounds_nothing(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    disturbed = machine()
    disturbed = replace(disturbed, outcome=replace(disturbed.outcome, labels=(SUSPECT,)))
    answering(monkeypatch, [disturbed, timed(1.2)])
    assert by_name(speed.decode(bench))["decode of its bound"] == "SKIP"
    assert by_name(speed.bounds(bench)) == {"nothing above its bound": "SKIP"}


@pytest.mark.parametrize(
    ("joules", "labels", "verdict"),
    [
        (0.50, (), "PASS"),  # 400 W over 800 tokens a second
        (0.56, (), "PASS"),
        (0.40, (), "FAIL"),
        (0.60, (), "FAIL"),
        (0.60, (SUSPECT,), "SKIP"),
        (None, (), "SKIP"),
    ],
)
def test_energy_is_power_over_speed(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, joules: float | None, labels: tuple[Label, ...], verdict: str
) -> None:
    """The phase lasts from 100 s to 105 s; only the samples at its end count, when the GPU generates."""
    run = timed(0.8, joules, labels=labels)
    answering(monkeypatch, [machine(), run])
    bench._moments[run.spec.run_id, "energy"] = 100.0
    idle, loaded, after = [(at / 10, 90.0) for at in range(1000, 1035)], [(104.5, 390.0), (104.6, 410.0)], [(107, 90.0)]

    @contextmanager
    def power(on_gpu: bool) -> Iterator[speed._Samples]:
        yield speed._Samples([*idle, *loaded, *after])

    monkeypatch.setattr(speed, "_power", power)
    assert by_name(speed.decode(bench))["energy beside power"] == verdict


def test_decoding_that_failed_says_why(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    broken = record("performance", status="failed", failure=Failure("generate", "RuntimeError", "no kernel\nand more"))
    answering(monkeypatch, [broken])
    found = list(speed.decode(bench))
    assert {each.verdict for each in found} == {"FAIL"}
    assert {each.reason for each in found} == {"in generate: no kernel"}


def test_what_the_end_of_all_time_cut_short_did_not_fail(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    late = record("performance", status="timeout", failure=Failure("load", "TimeLimit", "ended at its time limit"))
    answering(monkeypatch, [late], [late], [late], [late])
    assert set(by_name(speed.decode(bench)).values()) == {"FAIL"}
    assert set(by_name(faults.memory(bench)).values()) == {"FAIL"}
    bench.over_s = time.monotonic()
    finding, _ = speed.decode(bench)
    assert finding.verdict == "SKIP"
    assert "--minutes" in finding.reason


def test_a_run_that_its_check_had_no_time_for_did_not_fail(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    """One that is cut short may hang; one that never began shows nothing."""
    for phase, verdict in (("start", "SKIP"), ("load", "FAIL")):
        late = record("performance", status="timeout", failure=Failure(phase, "TimeLimit", "no time was left"))
        answering(monkeypatch, [late])
        finding, _ = speed.decode(bench)
        assert finding.verdict == verdict
        assert "--minutes" in finding.reason


def diverging(method: str, *nats: float, stage: str = "on_load", relative: float | None = None) -> RunRecord:
    kl = Measurement("kl", 1, "nat", "lower", "paired", nats)
    difference = {"relative": relative or 0.0, "kl": 0.0, "loss_kept": 1.0, "loss_now": 1.0}
    made = record("quality", [kl], method, facts=(Fact("reload_difference", difference),))
    own = replace(made.spec.job.variant.method, stage=stage)
    return replace(made, spec=changed(made.spec, method=own))


@pytest.mark.parametrize(
    ("itself", "nf4", "relative", "verdicts"),
    [
        (0.0, 0.04, 0.0, ("PASS", "PASS", "PASS", "PASS")),
        (1e-9, 0.04, 0.0, ("FAIL", "PASS", "PASS", "PASS")),
        (0.0, 0.0, 0.0, ("PASS", "FAIL", "PASS", "PASS")),  # nothing was quantized
        (0.0, 0.04, 1e-6, ("PASS", "PASS", "PASS", "FAIL")),
    ],
)
def test_exact_zeros_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, itself: float, nf4: float, relative: float, verdicts: tuple[str, ...]
) -> None:
    rtn = diverging("rtn", 0.1, 0.2, stage="offline", relative=relative)
    answering(monkeypatch, [diverging("none", 0.0, itself, stage="none"), diverging("bnb-nf4", nf4, nf4), rtn])
    names = ("divergence from itself", "divergence of bnb-nf4", "divergence of rtn", "reload of rtn")
    assert by_name(quality.quality(bench)) == dict(zip(names, verdicts, strict=True))


def test_a_method_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    crashed = record("quality", method="bnb-nf4", status="crashed", failure=Failure("load", "SIGSEGV", "signal 11"))
    answering(monkeypatch, [diverging("none", 0.0, stage="none"), crashed])
    verdicts = {"divergence from itself": "PASS", "divergence of bnb-nf4": "FAIL"}
    assert by_name(quality.quality(bench)) == verdicts


def refused(phase: str, message: str) -> dict[str, object]:
    return {"status": "unsupported", "failure": Failure(phase, "Unsupported", message)}


def test_what_this_machine_lacks_is_skipped_and_what_breaks_on_it_fails(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    """A run may lack its library, or break while it is imported, or lack another run that did one of the two."""
    lacks = record("quantize", method="gptq", **refused("plan", "gptqmodel is not installed"))
    breaks = record("quantize", method="rtn", **refused("import", "no symbol"))
    after = [
        replace(each, spec=replace(each.spec, needs={"quantize": needed.spec.run_id}))
        for needed, each in (
            (lacks, record("quality", method="gptq", **refused("plan", "no quantize: gptqmodel is not installed"))),
            (breaks, record("quality", method="rtn", **refused("plan", "no quantize: no symbol"))),
        )
    ]
    alone = [
        record("quality", method="awq", **refused("plan", "awq is not installed")),
        record("quality", method="hqq", **refused("import", "no symbol")),
    ]
    answering(monkeypatch, [lacks, breaks, *after, *alone])
    found = by_name(quality.quality(bench))
    assert {name.split()[-1]: verdict for name, verdict in found.items()} == {
        "gptq": "SKIP",
        "rtn": "FAIL",
        "awq": "SKIP",
        "hqq": "FAIL",
    }


OUT_OF_MEMORY = {"status": "out_of_memory", "failure": Failure("generate", "OutOfMemoryError", "CUDA out of memory.")}


@pytest.mark.parametrize(
    ("large", "after", "verdicts"),
    [
        (OUT_OF_MEMORY, {}, ("PASS", "PASS")),
        ({}, {}, ("FAIL", "PASS")),
        ({"status": "crashed", "failure": Failure("generate", "SIGKILL", "killed")}, {}, ("FAIL", "PASS")),
        (OUT_OF_MEMORY, OUT_OF_MEMORY, ("PASS", "FAIL")),
    ],
)
def test_a_batch_that_is_too_large_must_end_as_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, large: dict, after: dict, verdicts: tuple[str, str]
) -> None:
    answering(monkeypatch, [record("performance", **large)], [record("performance", **after)])
    found = by_name(faults.memory(bench))
    assert found == dict(zip(("batch too large", "run after out of memory"), verdicts, strict=True))


def processes(count: int) -> dict[str, object]:
    return {"moments": tuple(Moment(name, {"gpu_processes": float(count)}) for name in ("before", "after"))}


@pytest.mark.parametrize(
    ("run", "verdict"),
    [
        (record("performance", labels=(SUSPECT,), **processes(2)), "PASS"),
        (record("performance", **processes(1)), "FAIL"),
        (record("performance", labels=(replace(SUSPECT, arguments={"reason": "gpu_heat", "of": "run"}),)), "SKIP"),
        (record("performance", **processes(0)), "SKIP"),  # a container in which the driver lists none
        (record("performance", status="failed", failure=Failure("load", "Error", "it broke")), "FAIL"),
    ],
)
def test_a_second_process_must_be_noticed(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, run: RunRecord, verdict: str
) -> None:
    monkeypatch.setattr(faults, "_HOLD", faults._SPIN.replace("while True", "while False"))
    answering(monkeypatch, [run])
    assert by_name(faults.sharing(bench)) == {"another process": verdict}


def test_a_second_process_that_cannot_start_shows_nothing(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr(faults, "_HOLD", "raise SystemExit(1)")
    assert by_name(faults.sharing(bench)) == {"another process": "SKIP"}
