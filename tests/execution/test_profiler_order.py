"""The profiler runs after everything that is timed: CUPTI stays attached and slows down later launches."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

from harness.core.capability import Logits
from harness.execution.checks import kernels as checks
from harness.execution.jobs import performance, task

TIMED = ("throughput", "footprint", "energy", "serve")
PROFILES = ("grid_products", "record_cuda_kernels")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a performance run does, in order, each step replaced by its name."""
    done: list[str] = []

    def named(name: str) -> Any:
        def step(*_: object, **__: object) -> tuple[()]:
            done.append(name)
            return ()

        return step

    for name in ("verify_variant", "drift", "traffic", "footprint", "record_repacking", *PROFILES):
        monkeypatch.setattr(performance, name, named(name))
    monkeypatch.setattr(performance, "engine", lambda name: name)
    monkeypatch.setattr(performance, "checked", lambda runtime, model, needed: model)
    monkeypatch.setattr(
        performance, "metric", lambda name: SimpleNamespace(make=named(name), parsed=lambda params: params)
    )
    return done


def run(verify: bool, throughput: object | None = object()) -> None:
    conditions = SimpleNamespace(memory=True)
    job: Any = SimpleNamespace(
        variant=SimpleNamespace(engine="transformers", seed=0),
        verify=verify,
        throughput=throughput,
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


@pytest.mark.parametrize("verify", [True, False])
def test_a_performance_run_profiles_its_grid_after_all_that_is_timed(steps: list[str], verify: bool) -> None:
    run(verify)
    assert {*TIMED, *(["verify_variant"] if verify else [])} <= set(steps[:-2])
    assert steps[-2:] == ["grid_products", "traffic"]


def test_a_performance_run_without_a_grid_profiles_the_probe_last_if_it_verifies(steps: list[str]) -> None:
    run(verify=True, throughput=None)
    assert steps[-1] == "record_cuda_kernels"
    steps.clear()
    run(verify=False, throughput=None)
    assert not {*PROFILES, "verify_variant"} & set(steps)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("verify", "expected"),
    [
        (True, ["verify_variant", "check_tokens", "questions", "record_repacking", "record_cuda_kernels"]),
        (False, ["check_tokens", "questions", "record_repacking"]),
    ],
)
def test_a_task_run_profiles_the_probe_after_the_questions_if_it_verifies(
    monkeypatch: pytest.MonkeyPatch, verify: bool, expected: list[str]
) -> None:
    done: list[str] = []

    def named(name: str) -> Any:
        return lambda *_: done.append(name)

    for name in {*expected, "verify_variant", "record_cuda_kernels"} - {"questions"}:
        monkeypatch.setattr(task, name, named(name))
    monkeypatch.setattr(task, "metric", lambda name: SimpleNamespace(make=named("questions")))
    job: Any = SimpleNamespace(verify=verify, task=SimpleNamespace(chat_template=False))
    context: Any = SimpleNamespace(
        spec=SimpleNamespace(needs={}),
        load=lambda needed: create_autospec(Logits, instance=True),
        phase=lambda name: nullcontext(),
        add=lambda measured: None,
        method=lambda: SimpleNamespace(batch_dependent=False),
        cache=None,
    )
    task.run(job, context, Path())
    assert done == expected


@pytest.mark.heavy
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

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(checks, "_probe_logits", lambda context, model: None)
    monkeypatch.setattr(checks, "_kernel_names", lambda work, sync: ("marlin", "sgemm"))
    spec = SimpleNamespace(device=device, method=SimpleNamespace(stage=stage))
    context: Any = SimpleNamespace(spec=spec, fact=keep)
    model: Any = SimpleNamespace(sync=lambda: None)
    checks.record_cuda_kernels(context, model)
    assert facts == ({"cuda_kernels": ("marlin", "sgemm")} if profiled else {})
