"""Energy of prefill and decode, from hardware counters only. Without a readable counter, a fact says why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from harness.core.capability import Decodes
from harness.core.identity import Scalar
from harness.core.label import Fact
from harness.core.metric import Metric
from harness.core.record import Measurement
from harness.core.workload import GridCell, ThroughputWorkload
from harness.errors import reason_of
from harness.host.gpu import Gpu, gpus
from harness.numerics.prompts import random_tokens

VERSION = 1
IDLE_S = 1.0
LEAST_S = 2.0
"""Minimum duration of repeated work: a GPU's counter updates only every 20 to 100 ms."""
POWERCAP = Path("/sys/class/powercap")
Note = Callable[[Fact], None]


class Meter(Protocol):
    """Counts joules. ``read`` returns the joules since some fixed moment; ``source`` names the counter."""

    source: str

    def read(self) -> float: ...


class GpuMeter:
    """GPUs' own counters (nvmlDeviceGetTotalEnergyConsumption), summed: their chips and memories, not the host."""

    def __init__(self, devices: Sequence[Gpu], source: str = "NVML") -> None:
        self.source = source
        self._devices = devices

    def read(self) -> float:
        """Raises RuntimeError if a counter can no longer be read."""
        joules = [device.energy_j() for device in self._devices]
        known = [each for each in joules if each is not None]
        if len(known) < len(joules):
            raise RuntimeError("NVML no longer reports the GPU's energy")
        return sum(known)


class RaplMeter:
    """The CPU's counters (RAPL, through Linux's powercap): packages, and memory if it is counted separately.

    A counter wraps to zero at its ``max_energy_range_uj``; it may do so at most once between two readings.
    """

    source = "RAPL"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = zones
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(zone / "energy_uj") for zone in zones]
        self._total_uj = 0

    def read(self) -> float:
        for index, zone in enumerate(self._zones):
            now = _number(zone / "energy_uj")
            moved = now - self._last[index]
            self._total_uj += moved if moved >= 0 else moved + self._ranges[index]
            self._last[index] = now
        return self._total_uj / 1e6


@contextmanager
def meters(device: str, note: Note) -> Iterator[tuple[Meter, ...]]:
    """The machine's counters that matter for a run on the device; ``note`` gets a fact for each that is missing.

    Of several GPUs they are the sum, and each one's.
    """
    with gpus() as found:
        able: list[Meter] = []
        if device.startswith("cuda"):
            if found and all(each.energy_j() is not None for each in found):
                able.append(GpuMeter(found))
                each_own = enumerate(found) if len(found) > 1 else ()
                able += [GpuMeter([one], f"NVML GPU {index}") for index, one in each_own]
            else:
                reason = "NVML does not report it (GPUs before Volta, MIG slices)"
                note(Fact("energy_not_measured", {"counter": "GPU", "reason": reason}))
        try:
            zones = _zones()
            if zones:
                able.append(RaplMeter(zones))
            else:
                reason = f"no RAPL counter below {POWERCAP}"
                note(Fact("energy_not_measured", {"counter": "CPU", "reason": reason}))
        except OSError as error:
            reason = f"{error.filename}: {reason_of(error)}"
            note(Fact("energy_not_measured", {"counter": "CPU", "reason": reason}))
        yield tuple(able)


def _zones() -> list[Path]:
    """Packages, and the memory zones below them, which packages do not include. Packages include all other zones."""
    zones = sorted(POWERCAP.glob("intel-rapl:*"))
    names = {zone: (zone / "name").read_text().strip() for zone in zones if (zone / "name").is_file()}
    return [
        zone
        for zone, name in names.items()
        if (zone.name.count(":") == 1 and name.startswith("package")) or name == "dram"
    ]


def _number(path: Path) -> int:
    return int(path.read_text())


@dataclass(frozen=True)
class _Stretch:
    """The duration of repeated work, the number of repetitions, and the joules on each counter."""

    seconds: float
    times: int
    joules: tuple[float, ...]


def measure(model: Decodes, workload: ThroughputWorkload, seed: int, note: Note) -> Iterator[Measurement]:
    """Idle power, and joules per token of prefill and decode, for each grid cell and counter.

    Idle power is measured over one second in which the loaded process waits. Then prefills run for two seconds, and
    whole generations (a prefill and ``new_tokens`` steps) for two more. Decode energy is the generations' energy
    minus that of their prefills, because a counter is too coarse to be read around a single step.
    """
    with meters(model.device, note) as counters:
        for cell in workload.cells if counters else ():
            yield from _cell(model, cell, seed, counters)


def _cell(model: Decodes, cell: GridCell, seed: int, counters: Sequence[Meter]) -> Iterator[Measurement]:
    import torch

    tokens = random_tokens(model.vocabulary, cell.batch_size, cell.prompt_tokens, seed).to(model.device)

    def generate(new_tokens: int) -> None:
        """Runs one prefill and ``new_tokens`` greedy steps, and waits for the device."""
        logits, cache = decoder.prefill(tokens)
        for _ in range(new_tokens):
            logits, cache = decoder.decode(logits.argmax(dim=-1, keepdim=True), cache)
        model.sync()

    with torch.inference_mode(), model.decoder(cell.decode_mode, tokens, cell.new_tokens) as decoder:
        generate(cell.new_tokens)  # a warm-up
        idle = _stretch(counters, lambda: time.sleep(IDLE_S), 0)
        prefill = _stretch(counters, lambda: generate(0), LEAST_S)
        whole = _stretch(counters, lambda: generate(cell.new_tokens), LEAST_S)
    for index, counter in enumerate(counters):
        protocol: dict[str, Scalar] = {**cell.protocol, "source": counter.source}
        idle_w = idle.joules[index] / idle.seconds
        yield _one("idle_power_w", "W", idle_w, protocol)
        for kept, off_w in (("included", 0.0), ("subtracted", idle_w)):
            once = (prefill.joules[index] - off_w * prefill.seconds) / prefill.times
            both = (whole.joules[index] - off_w * whole.seconds) / whole.times
            own = {**protocol, "idle": kept}
            yield _one("prefill_j_per_tok", "J/token", once / (cell.batch_size * cell.prompt_tokens), own)
            yield _one("decode_j_per_tok", "J/token", (both - once) / (cell.batch_size * cell.new_tokens), own)


def _stretch(counters: Sequence[Meter], work: Callable[[], None], least_s: float) -> _Stretch:
    """Repeats the work for at least ``least_s`` seconds, and at least once."""
    before = [counter.read() for counter in counters]
    began, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - began < least_s:
        work()
        times += 1
    seconds = time.perf_counter() - began
    after = [counter.read() for counter in counters]
    return _Stretch(seconds, times, tuple(b - a for a, b in zip(before, after, strict=True)))


def _one(metric: str, unit: str, value: float, protocol: dict[str, Scalar]) -> Measurement:
    direction: Literal["lower", "neither"] = "neither" if unit == "W" else "lower"
    return Measurement(metric, VERSION, unit, direction, "samples", (value,), protocol)


ENERGY = Metric(
    name="energy",
    version=VERSION,
    kind="workload",
    summary="joules per token of prefill and decode, from the GPU's and the CPU's counters",
    make=measure,
)
