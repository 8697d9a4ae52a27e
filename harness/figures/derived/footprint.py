"""The memory that generation needs, from its measured parts, and what fits a memory budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.protocols import (
    DEVICE_PEAKS,
    DRIVER_GROWTH,
    DRIVER_PROCESS,
    DRIVER_SINCE_LOADING,
    TORCH_RESERVED,
)
from harness.core.record import Measurement, RunRecord

SOURCES = {"VmHWM": "VmRSS", **{source: source for source in DEVICE_PEAKS}}
"""A peak that was reset at the start of its phase, and the source of the memory in use just before."""
POOL = "kv_cache_pool_bytes"
ALLOCATED = "allocated_kv_cache_bytes"
SPARE = 1.05
"""Memory for generation is estimated 5% higher: the kernel's counters lag and miss changes of less than a page."""
MOST = 2**31
"""Upper limit of context and batch; without it, a variant that needs no memory would fit without end."""


@dataclass(frozen=True)
class Workspace:
    """Temporary memory of a phase beside weights and cache, as a function of the batch and the tokens in each row.

    ``constant + per_token · (batch · tokens) + per_square · (batch · tokens²)`` bytes; the last term is for attention
    that materializes its scores.
    """

    constant: float
    per_token: float
    per_square: float = 0.0

    def bytes(self, batch: int, tokens: int) -> float:
        return self.constant + self.per_token * batch * tokens + self.per_square * batch * tokens**2


@dataclass(frozen=True)
class Footprint:
    """The parts of the memory for generation. ``base_bytes`` is what the loaded process holds before it generates.

    ``pool_bytes`` is what the engine allocates for keys and values when it loads, 0 if it allocates them as they come.
    It is no part of ``base_bytes``: the memory of a use counts the tokens that the use keeps, as for other engines.
    ``measured_tokens`` is the longest prompt at which the parts were measured, ``context_limit`` the longest input
    that the model's configuration allows (None if it sets no limit); ``on_gpu`` says which memory is meant.
    """

    base_bytes: int
    kv_bytes_per_token: float
    prefill: Workspace
    decode: Workspace
    measured_tokens: int
    context_limit: int | None
    on_gpu: bool
    pool_bytes: int = 0

    def bytes(self, batch: int, tokens: int) -> float:
        """The peak for a batch of rows of ``tokens`` each, with a margin: prefilling all, or decoding the last."""
        work = max(self.prefill.bytes(batch, tokens), self.decode.bytes(batch, tokens))
        return self.base_bytes + SPARE * (self.kv_bytes_per_token * batch * tokens + work)

    def longest_context(self, budget_bytes: int, batch: int = 1) -> int:
        """The most tokens per row of a batch that fit, up to the model's limit; 0 if none does."""
        return largest_fitting(lambda tokens: self.bytes(batch, tokens) <= budget_bytes, self.context_limit or MOST)

    def largest_batch(self, budget_bytes: int, tokens: int) -> int:
        """The most rows of that many tokens each that fit; 0 if not even one does."""
        return largest_fitting(lambda batch: self.bytes(batch, tokens) <= budget_bytes, MOST)


@dataclass(frozen=True)
class _PhasePoint:
    """A phase at one point of the grid: the memory in use before it, without a cache allocated for it, and its own."""

    batch: int
    tokens: int
    before_bytes: float
    work_bytes: float


def footprint(runs: Sequence[RunRecord]) -> Footprint | None:
    """The parts measured by runs of one variant in eager mode; None if there are none or peaks were not reset.

    With several runs, the largest figure counts. A workspace is a phase's peak, minus the memory in use when it began,
    minus the growth of the key-value cache, unless the engine allocated that before. Over several prompt lengths it is
    fitted by a line, or with a square term if attention materializes its scores (``eager``).
    """
    source = next((name for name in reversed(SOURCES) if _points(runs, "prefill", name)), None)
    caches = [m for m in _all(runs, "kv_cache_bytes_per_token") if m.protocol["after"] == "decode"]
    if source is None or not caches or any(run.spec.decode_mode != "eager" for run in runs):
        return None
    prefill, decode = _points(runs, "prefill", source), _points(runs, "decode", source)
    square = any(_attention(run) == "eager" for run in runs)
    limits = [m.values[0] for m in _all(runs, "context_length")]
    on_gpu = source in DEVICE_PEAKS
    pool_bytes = int(max((m.values[0] for m in _all(runs, POOL)), default=0))
    return Footprint(
        base_bytes=int(max(point.before_bytes for point in prefill))
        - pool_bytes
        + (_context_bytes(runs) if on_gpu else 0),
        kv_bytes_per_token=cache_of_most_tokens(caches).values[0],
        prefill=fitted(prefill, square),
        decode=fitted(decode, square=False),
        measured_tokens=max(point.tokens for point in prefill),
        context_limit=int(min(limits)) if limits else None,
        on_gpu=on_gpu,
        pool_bytes=pool_bytes,
    )


def _attention(run: RunRecord) -> object:
    found = run.outcome.fact("attention")
    return found.arguments["implementation"] if found else None


def cache_of_most_tokens(caches: Sequence[Measurement]) -> Measurement:
    """The measurement that represents a cache, whose bytes per token may depend on its length: the most tokens.

    A measurement after decoding has priority over one after the prompt alone.
    """
    decoded = [m for m in caches if m.protocol.get("after") == "decode"]
    return max(decoded or caches, key=lambda m: (int(m.protocol.get("tokens") or 0), m.values[0]))


def fitted(points: Sequence[_PhasePoint], square: bool) -> Workspace:
    """The least-squares fit of a workspace to the points, with no term below zero.

    With ``square`` the terms are batch · tokens and batch · tokens²; otherwise a constant and batch · tokens. A single
    point gives a workspace proportional to batch · tokens.
    """
    work = np.array([max(point.work_bytes, 0.0) for point in points])
    token = np.array([float(point.batch * point.tokens) for point in points])
    other = np.array([float(point.batch * point.tokens**2) if square else 1.0 for point in points])
    if len(set(token)) > 1:
        first, second = np.linalg.lstsq(np.stack([token, other], axis=1), work, rcond=None)[0]
    else:
        first, second = -1.0, -1.0
    if second < 0:
        first, second = float(token @ work / (token @ token)), 0.0
    elif first < 0:
        first, second = 0.0, float(other @ work / (other @ other))
    return Workspace(0.0, float(first), float(second)) if square else Workspace(float(second), float(first))


def _points(runs: Sequence[RunRecord], phase: str, source: str) -> list[_PhasePoint]:
    """The phase's workspace at every point of the grid, the largest over the runs."""
    found: dict[tuple[int, int], _PhasePoint] = {}
    for run in runs:
        before = _by_place(run, "memory_before_bytes", phase, SOURCES[source])
        for place, peak in _by_place(run, "peak_memory_bytes", phase, source).items():
            if place not in before:
                continue
            batch, prompt, new = place
            tokens = prompt + (new if phase == "decode" else 0)
            grown = _cache_bytes(run, place, phase) - (_cache_bytes(run, place, "prefill") if phase == "decode" else 0)
            allocated = next((m.values[0] for m in _all([run], ALLOCATED) if _place(m) == place), 0.0)
            grown = 0.0 if allocated or _all([run], POOL) else grown
            point = _PhasePoint(batch, tokens, before[place] - allocated, peak - before[place] - grown)
            largest = found.get((batch, tokens), point)
            found[batch, tokens] = max(point, largest, key=lambda each: each.work_bytes)
    return list(found.values())


Place = tuple[int, int, int]


def _by_place(run: RunRecord, metric: str, phase: str, source: str) -> Mapping[Place, float]:
    return {_place(m): m.values[0] for m in _of_phase(run, metric, phase, source) if "prompt_tokens" in m.protocol}


def _of_phase(run: RunRecord, metric: str, phase: str, source: str) -> list[Measurement]:
    return [m for m in _all([run], metric) if (m.protocol["phase"], m.protocol["source"]) == (phase, source)]


def _place(measured: Measurement) -> Place:
    protocol = measured.protocol
    batch, prompt, new = (int(protocol.get(name) or 0) for name in ("batch_size", "prompt_tokens", "new_tokens"))
    return batch, prompt, new


def _cache_bytes(run: RunRecord, place: Place, after: str) -> float:
    """The whole cache after a phase; 0 if it was not measured."""
    for measured in _all([run], "kv_cache_bytes_per_token"):
        if measured.protocol["after"] == after and _place(measured) == place:
            return measured.values[0] * place[0] * int(measured.protocol.get("tokens") or 0)
    return 0.0


def _context_bytes(runs: Sequence[RunRecord]) -> int:
    """What the driver counts beyond the peaks: the CUDA context, and other libraries if torch counts the peaks.

    It is the driver's figure for the process or, if that is unknown, the growth of the GPU's use since the process
    began, less what torch has reserved. Where only the driver counts, it is all that the GPU held before loading.
    """
    beyond = [0]
    for run in runs:
        reserved = _by_place(run, "peak_memory_bytes", "prefill", TORCH_RESERVED)
        for source in (DRIVER_PROCESS, DRIVER_GROWTH):
            for place, driver in _by_place(run, "memory_after_bytes", "prefill", source).items():
                beyond.append(math.ceil(driver - reserved.get(place, driver)))
            if _by_place(run, "peak_memory_bytes", "prefill", DRIVER_SINCE_LOADING):
                beyond += [int(m.values[0]) for m in _of_phase(run, "memory_after_bytes", "import", source)]
    return max(beyond)


def _all(runs: Iterable[RunRecord], metric: str) -> list[Measurement]:
    return [entry for run in runs for entry in run.outcome.measured(metric) if entry.values]


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits, or 0. ``fits`` must be monotonic: if n fits, so does n − 1."""
    return bisect_left(range(1, most + 1), True, key=lambda number: not fits(number))
