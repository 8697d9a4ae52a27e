"""Energy on made-up counters and a made-up clock: what is taken off, what is counted once, what is not there."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
import torch
from nvml_stub import H200, NvmlStub

from harness.core.label import Fact
from harness.core.record import Measurement
from harness.core.workload import ThroughputWorkload
from harness.metrics import energy
from harness.metrics.energy import IDLE_S, LEAST_S, RaplMeter, measure, meters

pytestmark = pytest.mark.heavy

IDLE_W, PREFILL_W, DECODE_W = 50.0, 300.0, 110.0
PREFILL_S, DECODE_S = 0.02, 0.01
WORKLOAD = ThroughputWorkload((1, 4), (8,), new_tokens=3, warmup=1, iterations=2)


class World:
    """Time and joules pass only while the model works or the harness sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.joules = 5e6

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.passes(seconds, IDLE_W)

    def passes(self, seconds: float, power_w: float) -> None:
        self.now += seconds
        self.joules += seconds * power_w


class Model:
    """Works the same time whatever its batch."""

    vocabulary = 50

    def __init__(self, world: World, device: str) -> None:
        self.world, self.device = world, device

    def decoder(self, mode: str, prompt: torch.Tensor, new_tokens: int):
        assert mode == "eager"
        return nullcontext(self)

    def prefill(self, tokens: torch.Tensor):
        self.world.passes(PREFILL_S, PREFILL_W)
        return torch.zeros(tokens.shape[0], self.vocabulary), 0

    def decode(self, tokens: torch.Tensor, cache: int):
        self.world.passes(DECODE_S, DECODE_W)
        return torch.zeros(tokens.shape[0], self.vocabulary), cache + 1

    def sync(self) -> None:
        pass


@pytest.fixture
def world(nvml: NvmlStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A clock, no RAPL, and an NVML that counts what passes."""
    made = World()
    nvml.holds(H200)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: int(made.joules * 1000))
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(energy, "time", made)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    return made


def run(world: World, device: str = "cpu") -> tuple[list[Measurement], dict[str, object]]:
    facts: list[Fact] = []
    found = list(measure(Model(world, device), WORKLOAD, 0, facts.append))  # type: ignore[arg-type]
    return found, {fact.name: fact.value for fact in facts}


def value(found: list[Measurement], metric: str, **protocol: object) -> float:
    (one,) = [m for m in found if m.metric == metric and protocol.items() <= dict(m.protocol).items()]
    return one.values[0]


def zone(folder: Path, name: str, uj: object, top: int = 10**12) -> Path:
    folder.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", uj), ("max_energy_range_uj", top)):
        (folder / file).write_text(f"{content}\n")
    return folder


def test_joules_per_token_with_the_idle_power_in_it_and_taken_off(world: World) -> None:
    found, facts = run(world, "cuda")
    assert list(facts) == ["energy of the CPU"]
    for batch in (1, 4):
        at = {"batch_size": batch, "source": "NVML"}
        assert value(found, "idle_power_w", **at) == pytest.approx(IDLE_W, abs=0.01)
        for idle, off_w in (("included", 0), ("subtracted", IDLE_W)):
            prefill = PREFILL_S * (PREFILL_W - off_w) / (8 * batch)
            decode = DECODE_S * (DECODE_W - off_w) / batch
            assert value(found, "prefill_j_per_tok", idle=idle, **at) == pytest.approx(prefill, rel=1e-3)
            assert value(found, "decode_j_per_tok", idle=idle, **at) == pytest.approx(decode, rel=1e-3)


def test_the_energy_of_several_gpus_is_their_sum_and_each_ones(world: World, nvml: NvmlStub) -> None:
    nvml.holds(H200, replace(H200, uuid="GPU-2"))
    found, _ = run(world, "cuda")
    own = [value(found, "idle_power_w", batch_size=1, source=f"NVML GPU {index}") for index in (0, 1)]
    assert own == pytest.approx([IDLE_W, IDLE_W], abs=0.01)
    assert value(found, "idle_power_w", batch_size=1, source="NVML") == pytest.approx(2 * IDLE_W, abs=0.02)


def test_each_stretch_is_long_beside_the_counters_step(world: World) -> None:
    began = world.now
    found, _ = run(world, "cuda")
    assert world.now - began >= len(WORKLOAD.cells) * (IDLE_S + 2 * LEAST_S)
    assert {m.metric: m.unit for m in found} == {
        "idle_power_w": "W",
        "prefill_j_per_tok": "J/token",
        "decode_j_per_tok": "J/token",
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_counter_there_is_no_figure_and_a_fact_says_why(world: World, monkeypatch, device: str) -> None:
    def refuse(handle: int) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    began = world.now
    found, facts = run(world, device)
    assert found == []
    assert world.now == began  # nothing is run for nothing
    assert str(facts["energy of the CPU"]).startswith("not measured: no RAPL counter below")
    assert ("energy of the GPU" in facts) == (device == "cuda")


def test_a_cpu_run_does_not_ask_the_gpu(world: World) -> None:
    assert run(world, "cpu")[0] == []


def test_a_counter_that_only_root_may_read_is_told(world: World, monkeypatch) -> None:
    folder = zone(energy.POWERCAP / "intel-rapl:0", "package-0", 1)
    readable = energy._number

    def guarded(path: Path) -> int:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return readable(path)

    monkeypatch.setattr(energy, "_number", guarded)
    _, facts = run(world)
    assert facts["energy of the CPU"] == f"not measured: {folder}/energy_uj: Permission denied"


def test_packages_and_memory_are_summed_and_nothing_is_counted_twice(world: World) -> None:
    """A package's core and uncore lie within it, psys holds everything; memory is beside its package."""
    root = energy.POWERCAP
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
    }
    for name, called in zones.items():
        zone(root / name, called, 0)
    (root / "intel-rapl").mkdir()
    with meters("cpu", lambda *_: pytest.fail("nothing is missing")) as (meter,):
        for name in zones:
            (root / name / "energy_uj").write_text("1000000")
        assert meter.source == "RAPL"
        assert meter.read() == pytest.approx(3.0)


def test_a_counter_that_begins_again_is_followed(tmp_path: Path) -> None:
    folder = zone(tmp_path / "intel-rapl:0", "package-0", 9_000_000, top=10_000_000)
    meter = RaplMeter([folder])
    readings = []
    for now in (9_500_000, 500_000, 700_000, 100_000):
        (folder / "energy_uj").write_text(str(now))
        readings.append(meter.read())
    assert readings == pytest.approx([0.5, 1.5, 1.7, 11.1])


def test_the_cpus_counter_serves_a_cpu_run(world: World, monkeypatch) -> None:
    zone(energy.POWERCAP / "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(energy, "_number", lambda path: 10**15 if "range" in path.name else int(world.joules * 1e6))
    found, facts = run(world)
    assert facts == {}
    assert {m.protocol["source"] for m in found} == {"RAPL"}
    assert value(found, "decode_j_per_tok", idle="included", batch_size=1) == pytest.approx(DECODE_S * DECODE_W)
