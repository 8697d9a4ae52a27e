"""Plans for machines with several GPUs, and for models that no GPU holds. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.analysis.selection import setting
from harness.api.plan import plan
from harness.core.job import Conditions, VariantJob
from harness.core.run import RunSpec
from harness.core.site import Machine
from harness.errors import UsageError
from harness.models.loading import device_map, refuse_offloaded
from harness.planning.peaks import LIBRARIES_BYTES
from harness.planning.plan import PlannedRun
from harness.planning.support import too_large
from harness.plugins import engine
from harness.recipe import load_recipe

TWO = Machine("cuda", "two imagined H100", (9, 0), ("GPU-1", "GPU-2"), 80 * 2**30)
MEASURED = {
    "measure": {
        "perplexity": {"text": "demo", "context": 64, "windows": 2},
        "divergence": {},
        "throughput": {"batch_sizes": [1], "prompt_tokens": [8], "new_tokens": 4},
    }
}


def planned(sweeps: Any, tiny: Path, machine: Machine = TWO, **others: Any) -> tuple[PlannedRun, ...]:
    recipe = {"models": [str(tiny)], "methods": [{"rtn": {"group_size": 32}}], "device": "cuda", **MEASURED, **others}
    return plan(load_recipe(sweeps.recipe(recipe)), machine)


def of(runs: Sequence[PlannedRun], kind: str) -> list[RunSpec]:
    return [run.spec for run in runs if run.spec.kind == kind]


def test_devices_give_the_runs_that_load_a_model_as_many_gpus(sweeps, tiny: Path) -> None:
    one, two = planned(sweeps, tiny), planned(sweeps, tiny, devices=2)
    assert {run.spec.job.conditions.gpus for run in one} == {1}
    gpus = {run.spec.kind: run.spec.job.conditions.gpus for run in two}
    assert gpus == {"machine": 1, "quantize": 1, "reference": 2, "quality": 2, "performance": 2}
    assert not any(run.unsupported for run in two)


def test_what_ran_on_more_gpus_is_another_question_and_another_table(sweeps, tiny: Path) -> None:
    """An artifact is the same, because quantizing gets one GPU either way."""
    one, two = planned(sweeps, tiny), planned(sweeps, tiny, devices=2)
    for kind, is_same in {"quantize": True, "reference": False, "quality": False, "performance": False}.items():
        pairs = zip(of(one, kind), of(two, kind), strict=True)
        assert {a.case_id == b.case_id for a, b in pairs} == {is_same}, kind
    tables = {setting(spec) for spec in of(two, "quantize") + of(two, "quality")}
    assert len(tables) == 1
    assert tables != {setting(spec) for spec in of(one, "quality")}
    assert next(iter(tables)).hardware_text == "two imagined H100 · cuda · 2 devices"


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (Machine("cpu", "a CPU"), "devices: 2 needs as many GPUs, and this sweep runs on a CPU; leave it out"),
        (replace(TWO, uuids=("GPU-1",)), "needs as many GPUs of one kind, and 1 may be used here"),
        (replace(TWO, uuids=("MIG-1", "MIG-2")), "a process can use one MIG slice"),
    ],
)
def test_a_machine_without_so_many_gpus_is_refused(sweeps, tiny: Path, machine: Machine, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        planned(sweeps, tiny, machine, devices=2)


def test_a_spread_model_is_not_compiled(sweeps, tiny: Path) -> None:
    runs = planned(sweeps, tiny, devices=2, decode_mode=["eager", "compiled"])
    reasons = {run.spec.decode_mode: run.unsupported for run in runs if run.spec.kind == "performance"}
    assert reasons["eager"] is None
    assert reasons["compiled"] == (
        "decode_mode compiled is one graph on one GPU, and devices: 2 spreads the model; use eager"
    )


def test_a_part_of_vllm_has_a_gpu(sweeps, tiny: Path) -> None:
    parts = [{"vllm": {"tensor_parallel": [1, 2]}}]
    runs = planned(sweeps, tiny, engines=parts, methods=["none"])
    gpus = {
        run.spec.variant.engine_params.get("tensor_parallel", 1): run.spec.job.conditions.gpus
        for run in runs
        if isinstance(run.spec.job, VariantJob) and run.spec.engine == "vllm"
    }
    assert gpus == {1: 1, 2: 2}
    on_cpu = planned(sweeps, tiny, Machine("cpu", "a CPU"), engines=parts, methods=["none"], device="cpu")
    assert {run.spec.job.conditions.gpus for run in on_cpu} == {1}


def test_a_model_whose_weights_fit_no_gpu_is_unsupported(sweeps, tiny: Path) -> None:
    fits = next(run.weight_bytes for run in planned(sweeps, tiny) if run.spec.kind == "reference")
    assert fits is not None
    small = replace(TWO, memory_bytes=fits - 1)
    runs = planned(sweeps, tiny, small, residency="resident")
    reference = next(run.unsupported for run in runs if run.spec.kind == "reference")
    by_label = {run.spec.method.label: run.unsupported for run in runs if run.spec.kind == "performance"}
    assert str(by_label["none"]).startswith("its weights take 0.0 GiB, of 0.0 GiB that the GPU's memory leaves them; ")
    assert str(by_label["none"]).endswith("use fewer bits, or more 'devices'"), "a streamed model has no speed"
    assert by_label["rtn group_size=32"] is None
    offer = "use fewer bits, or more 'devices'; with residency: streamed it need not be in memory as a whole"
    assert str(reference).endswith(offer)
    over_both = planned(sweeps, tiny, small, devices=2, residency="resident")
    assert not any(run.unsupported for run in over_both if run.spec.kind != "quantize")
    (quantize,) = (run for run in over_both if run.spec.kind == "quantize")
    assert "with residency: streamed" in str(quantize.unsupported), "it quantizes on one of them"


def test_a_baseline_whose_weights_fit_no_gpu_is_streamed(sweeps, tiny: Path) -> None:
    fits = next(run.weight_bytes for run in planned(sweeps, tiny) if run.spec.kind == "reference")
    assert fits is not None
    runs = planned(sweeps, tiny, replace(TWO, memory_bytes=fits - 1))
    kinds = {
        run.spec.kind: (run.spec.job.conditions.residency, run.unsupported is None)
        for run in runs
        if run.spec.kind == "reference" or (run.spec.kind == "performance" and run.spec.method.name == "none")
    }
    assert kinds == {"reference": ("streamed", True), "performance": ("resident", False)}


def test_weights_that_nearly_fill_a_gpu_are_streamed_and_timed_with_a_note(sweeps, tiny: Path) -> None:
    """Libraries, logits and the reference's head need the rest; without divergence there is no such head."""
    whole = next(run for run in planned(sweeps, tiny) if run.spec.kind == "reference")
    beside = LIBRARIES_BYTES + 4 * 512 * 64
    nearly, enough = (replace(TWO, memory_bytes=whole.weight_bytes + each) for each in (beside, 2 * beside))
    found = {
        run.spec.kind: (run.spec.job.conditions.residency, run.unsupported, run.note)
        for run in planned(sweeps, tiny, nearly)
        if run.spec.kind == "reference" or (run.spec.kind == "performance" and run.spec.method.name == "none")
    }
    assert found["reference"][:2] == ("streamed", None)
    assert found["performance"][:2] == ("resident", None)
    assert "the GPU's memory leaves them" in str(found["reference"][2])
    kinds = {run.spec.job.conditions.residency for run in planned(sweeps, tiny, enough)}
    assert kinds == {"resident"}


def test_what_may_fit_is_left_to_the_run() -> None:
    """Only the weights are certain; llama.cpp may keep layers in the host's memory; a CPU may swap."""
    gpu, cpu = replace(TWO, memory_bytes=10 * 2**30), Machine("cpu", "a CPU", memory_bytes=2**30)
    vllm, llamacpp = engine("vllm"), engine("llamacpp")
    one, two = Conditions("cuda"), Conditions("cuda", gpus=2)
    assert too_large(11 * 2**30, one, vllm, gpu) == (
        "its weights take 11.0 GiB and the GPU has 10.0 GiB: use fewer bits, or more GPUs by vllm's own parameters"
    )
    assert too_large(21 * 2**30, two, vllm, gpu) == (
        "its weights take 21.0 GiB and 2 GPUs have 20.0 GiB: use fewer bits, or more GPUs by vllm's own parameters"
    )
    assert too_large(11 * 2**30, two, vllm, gpu) is None
    assert too_large(10 * 2**30, one, vllm, gpu) is None
    assert too_large(11 * 2**30, one, llamacpp, gpu) is None
    assert too_large(None, one, vllm, gpu) is None
    assert too_large(11 * 2**30, one, vllm, replace(gpu, memory_bytes=0)) is None
    assert too_large(11 * 2**30, Conditions(), vllm, cpu) is None


class Placed:
    """A model whose parameters are on these devices."""

    def __init__(self, **parameters: str) -> None:
        self._parameters = parameters

    def named_parameters(self) -> Iterator[tuple[str, object]]:
        for name, kind in self._parameters.items():
            yield name, SimpleNamespace(device=SimpleNamespace(type=kind))


def test_a_model_that_spills_into_the_host_s_memory_is_out_of_memory() -> None:
    assert (device_map("cuda"), device_map("cuda", 2), device_map("cpu", 1)) == ("cuda:0", "balanced", "cpu")
    refuse_offloaded(Placed(embed="cuda", norm="cuda"), 2)
    refuse_offloaded(Placed(embed="cpu"), 1)
    for where in ("cpu", "meta"):
        with pytest.raises(MemoryError, match="fit 2 GPUs: 2 of its 3 parameters, such as norm, would"):
            refuse_offloaded(Placed(embed="cuda", norm=where, head=where), 2)
        with pytest.raises(MemoryError, match="1 of its 1 parameters"):  # nothing fits, and accelerate is not used
            refuse_offloaded(Placed(embed=where), 2)
