"""The profiler runs after everything that is timed: CUPTI stays attached and slows down later launches."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.execution.checks import variant as checks
from harness.execution.jobs import performance

TIMED = ("throughput", "footprint", "energy", "serve")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a performance run does, in order, each step replaced by its name."""
    done: list[str] = []

    def named(name: str) -> Any:
        def step(*_: object, **__: object) -> tuple[()]:
            done.append(name)
            return ()

        return step

    for name in ("verify_variant", "drift", "traffic", "footprint", "record_repacking", "record_cuda_kernels"):
        monkeypatch.setattr(performance, name, named(name))
    monkeypatch.setattr(performance, "engine", lambda name: name)
    monkeypatch.setattr(performance, "checked", lambda runtime, model, needed: model)
    monkeypatch.setattr(
        performance, "metric", lambda name: SimpleNamespace(make=named(name), parsed=lambda params: params)
    )
    return done


def run(verify: bool) -> None:
    conditions = SimpleNamespace(memory=True)
    job: Any = SimpleNamespace(
        variant=SimpleNamespace(engine="transformers", seed=0),
        verify=verify,
        throughput=object(),
        energy=True,
        conditions=conditions,
        workloads=(SimpleNamespace(name="serve", params={}),),
    )
    context: Any = SimpleNamespace(
        load=lambda needed: object(),
        phase=lambda name: nullcontext(),
        add=lambda measured: None,
        moment=lambda name: None,
        keep=lambda fact: None,
        labels=(),
        moments=(),
        measurements=(),
    )
    performance.run(job, context, Path())


def test_a_performance_run_profiles_last(steps: list[str]) -> None:
    run(verify=True)
    assert steps[-1] == "record_cuda_kernels"
    assert steps.count("record_cuda_kernels") == 1
    assert {*TIMED, "verify_variant"} <= set(steps)


def test_a_run_that_does_not_verify_does_not_profile(steps: list[str]) -> None:
    run(verify=False)
    assert set(TIMED) <= set(steps)
    assert not {"verify_variant", "record_cuda_kernels"} & set(steps)


@pytest.mark.parametrize(
    ("device", "stage", "profiled"),
    [("cuda", "on_load", True), ("cuda:0", "offline", True), ("cuda", "none", False), ("cpu", "on_load", False)],
)
def test_only_quantized_variants_on_a_gpu_are_profiled(
    device: str, stage: str, profiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: dict[str, tuple[str, ...]] = {}

    def keep(code: str, /, names: tuple[str, ...]) -> None:
        facts[code] = names

    monkeypatch.setattr(checks, "_kernel_names", lambda work: ["marlin", "sgemm"])
    spec = SimpleNamespace(device=device, method=SimpleNamespace(stage=stage))
    context: Any = SimpleNamespace(spec=spec, fact=keep)
    model: Any = object()
    checks.record_cuda_kernels(context, model)
    assert facts == ({"cuda_kernels": ("marlin", "sgemm")} if profiled else {})
