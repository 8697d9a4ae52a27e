"""Memory on a GPU: whose figure counts, what is taken off it, and that measuring hides no error. No GPU is needed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvml_stub import DRIVER_MISMATCH, H200, SLICED_H200, SLICES, NvmlStub, Process
from run_specs import run_spec

from harness.core.engine import Engine, EngineParams, LoadRequest
from harness.core.format import TRANSFORMERS_FORMAT
from harness.core.model import ModelRef
from harness.execution import context
from harness.execution.context import Context
from harness.metrics.memory import PeakMemory
from harness.storage.cache import Cache

MIB = 2**20
CONTEXT = 400 * MIB
OTHERS = 5000 * MIB


@dataclass
class Card:
    """A GPU, or a slice of one, that another process uses too: torch's side of it, and through NVML the driver's.

    ``how`` is how the driver tells of this process: with its memory, with 0 bytes, without its memory, or not at all.
    """

    nvml: NvmlStub
    how: str
    is_slice: bool = False
    has_context: bool = False
    torch_bytes: int = 0
    outside_bytes: int = 0
    torch_peak_bytes: int = 0
    lost: bool = False

    def __post_init__(self) -> None:
        self.take()

    @property
    def is_known(self) -> bool:
        return self.how == "with its memory"

    def take(self, torch_bytes: int = 0, outside_bytes: int = 0) -> None:
        self.torch_bytes += torch_bytes
        self.outside_bytes += outside_bytes
        self.torch_peak_bytes = max(self.torch_peak_bytes, self.torch_bytes)
        own = CONTEXT * self.has_context + self.torch_bytes + self.outside_bytes
        listed = {"with its memory": Process(None, own), "0 bytes": Process(None, 0)}
        listed |= {"no memory": Process(None, None), "by another number": Process(4711, own)}
        one = SLICES[0] if self.is_slice else H200
        used = replace(one, used_bytes=OTHERS + own).running(*([listed[self.how]] if self.has_context else []))
        self.nvml.holds(replace(SLICED_H200, slices=(used,)) if self.is_slice else used)  # type: ignore[arg-type]

    def synchronize(self, index: int) -> None:
        assert index == 0
        if not self.has_context:
            self.has_context = True
            self.take()
        if self.lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def reset_peak_memory_stats(self, index: int) -> None:
        self.torch_peak_bytes = self.torch_bytes

    @property
    def cuda(self) -> Any:
        return SimpleNamespace(
            synchronize=self.synchronize,
            empty_cache=lambda: None,
            reset_peak_memory_stats=self.reset_peak_memory_stats,
            memory_allocated=lambda index: self.torch_bytes,
            max_memory_allocated=lambda index: self.torch_peak_bytes,
            max_memory_reserved=lambda index: self.torch_peak_bytes + 2 * MIB,
        )


@pytest.fixture(
    params=[
        ("with its memory", False),
        ("with its memory", True),
        ("0 bytes", False),
        ("no memory", True),
        ("by another number", False),
    ],
    ids=lambda param: f"{param[0]}{' on a slice' if param[1] else ''}",
)
def card(request: pytest.FixtureRequest, nvml: NvmlStub, monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card(nvml, *request.param)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=made.cuda))
    return made


def device_figures(peaks: PeakMemory) -> dict[tuple[str, str, str], float]:
    """By phase, metric and source."""
    return {
        (str(m.protocol["phase"]), m.metric.removesuffix("_memory_bytes").removeprefix("memory_"), source): m.values[0]
        for m in peaks.finish()
        if (source := str(m.protocol["source"])).startswith(("cuda", "NVML"))
    }


def test_torch_counts_its_own_peak_and_the_driver_all_that_the_process_holds(card: Card) -> None:
    peaks = PeakMemory("cuda")
    with peaks.phase("load"):
        card.take(torch_bytes=300 * MIB)
        card.take(torch_bytes=-100 * MIB, outside_bytes=30 * MIB)
    held = "NVML process" if card.is_known else "NVML since the start"
    assert device_figures(peaks) == {
        ("load", "before_bytes", "cuda allocated"): 0,
        ("load", "peak", "cuda allocated"): 300 * MIB,
        ("load", "peak", "cuda reserved"): 302 * MIB,
        ("load", "after_bytes", held): CONTEXT + 230 * MIB,
        ("load", "after_bytes", "NVML device"): OTHERS + CONTEXT + 230 * MIB,
    }


def test_a_model_outside_torch_is_what_the_driver_counts_since_loading(card: Card) -> None:
    """Neither the CUDA context nor what other processes hold is the model's; what torch holds beside it is counted."""
    peaks = PeakMemory("cuda", "driver")
    with peaks.phase("import"):
        pass
    with peaks.phase("load"):
        card.take(outside_bytes=700 * MIB)
    with peaks.phase("prefill"):
        card.take(outside_bytes=-100 * MIB, torch_bytes=8 * MIB)
    found = device_figures(peaks)
    since = {(phase, metric): size for (phase, metric, source), size in found.items() if source == "NVML since loading"}
    assert since == {
        ("import", "before_bytes"): 0,
        ("import", "peak"): 0,
        ("load", "before_bytes"): 0,
        ("load", "peak"): 700 * MIB,
        ("prefill", "before_bytes"): 700 * MIB,
        ("prefill", "peak"): 700 * MIB,  # it began with more than it ended with
    }
    held = "NVML process" if card.is_known else "NVML since the start"
    assert found["import", "after_bytes", held] == CONTEXT
    assert not [source for _, _, source in found if source.startswith("cuda")]


def test_a_later_run_of_the_same_process_counts_from_the_same_baseline(card: Card) -> None:
    first = PeakMemory("cuda", "driver")
    with first.phase("load"):
        card.take(outside_bytes=700 * MIB)
    second = PeakMemory("cuda", "driver", first.baseline)
    with second.phase("questions"):
        card.take(outside_bytes=50 * MIB)
    assert device_figures(second)["questions", "peak", "NVML since loading"] == 750 * MIB


def test_a_process_keeps_its_baseline_beside_the_model_that_it_has_loaded(
    card: Card, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second task of a process finds the model loaded: the model counts, though nothing was loaded meanwhile."""

    def load(request: LoadRequest, params: EngineParams) -> Any:
        card.take(outside_bytes=700 * MIB)
        return SimpleNamespace(cache_description=None)

    runtime: Any = Engine(
        "llamacpp", 1, "", frozenset(), (TRANSFORMERS_FORMAT,), lambda: None, load, EngineParams, counted_by="driver"
    )
    monkeypatch.setattr(context, "engine", lambda name: runtime)
    model = ModelRef("tiny", "tiny", "0" * 64, "directory", str(tiny), "float32")
    spec = run_spec("task", model=model, engine="llamacpp", device="cuda")
    first = Context(spec, Cache(tmp_path), lambda phase: None)
    first.load(object)  # type: ignore[type-var]
    second = Context(spec, Cache(tmp_path), lambda phase: None, first.loaded)
    second.load(object)  # type: ignore[type-var]
    with second.phase("questions"):
        card.take(outside_bytes=50 * MIB)
    peaks = {
        str(m.protocol["phase"]): m.values[0]
        for m in second.findings()
        if (m.metric, m.protocol["source"]) == ("peak_memory_bytes", "NVML since loading")
    }
    assert peaks == {"questions": 750 * MIB}


def test_the_memory_of_several_gpus_is_their_sum_and_each_ones(nvml: NvmlStub, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks, calls = {0: 300 * MIB, 1: 200 * MIB}, []
    cuda = SimpleNamespace(
        synchronize=calls.append,
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda index: None,
        memory_allocated=lambda index: 0,
        max_memory_allocated=lambda index: peaks[index],
        max_memory_reserved=lambda index: peaks[index] + MIB,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    first = replace(H200, used_bytes=900 * MIB).running(Process(None, 700 * MIB))
    second = replace(H200, uuid="GPU-2", used_bytes=500 * MIB).running(Process(None, 400 * MIB))
    nvml.holds(first, second)
    instrument = PeakMemory("cuda", gpus=2)
    with instrument.phase("load"):
        pass
    found = {(m.metric, m.protocol["source"], m.protocol.get("gpu")): m.values[0] for m in instrument.finish()}
    assert found["peak_memory_bytes", "cuda allocated", None] == 500 * MIB
    assert found["peak_memory_bytes", "cuda reserved", None] == 502 * MIB
    assert found["memory_after_bytes", "NVML process", None] == 1100 * MIB
    assert found["memory_after_bytes", "NVML device", None] == 1400 * MIB
    assert [found["peak_memory_of_gpu_bytes", "cuda allocated", index] for index in (0, 1)] == [300 * MIB, 200 * MIB]
    assert [found["memory_of_gpu_after_bytes", "NVML device", index] for index in (0, 1)] == [900 * MIB, 500 * MIB]
    assert set(calls) == {0, 1}


def fail(card: Card) -> None:
    card.lost = True
    raise IndexError("the cause")


@pytest.mark.parametrize("counted_by", ["torch", "driver"])
def test_the_error_of_a_broken_gpu_is_the_runs_and_not_the_instruments(card: Card, counted_by: Any) -> None:
    """After a device-side assert each call raises the same error again, wherever it comes from."""
    peaks = PeakMemory("cuda", counted_by)
    with pytest.raises(IndexError, match="the cause"), peaks.phase("prefill"):
        fail(card)
    assert ("peak_memory_bytes", "prefill") in {(m.metric, m.protocol["phase"]) for m in peaks.finish()}


def test_a_broken_gpu_is_an_error_where_nothing_else_failed(card: Card) -> None:
    measured = PeakMemory("cuda").phase("prefill")
    measured.__enter__()
    card.lost = True
    with pytest.raises(RuntimeError, match="device-side assert"):
        measured.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("counted_by", "expected"), [("torch", {"cuda allocated", "cuda reserved"}), ("driver", set())]
)
def test_without_the_drivers_figures_only_torch_counts(card: Card, counted_by: Any, expected: set[str]) -> None:
    card.nvml.holds(init=DRIVER_MISMATCH)
    card.has_context = True
    peaks = PeakMemory("cuda", counted_by)
    with peaks.phase("load"):
        card.torch_bytes += MIB
    assert {source for _, _, source in device_figures(peaks)} == expected


def test_a_gpu_that_is_lost_leaves_the_drivers_figures_out(card: Card) -> None:
    peaks = PeakMemory("cuda", "driver")
    with peaks.phase("load"):
        card.nvml.holds(replace(H200, lost=True))
    assert device_figures(peaks) == {("load", "before_bytes", "NVML since loading"): 0}
