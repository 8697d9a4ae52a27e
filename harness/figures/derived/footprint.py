"""What generating takes, from its measured parts, and what of it fits a budget of memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.record import Measurement, RunRecord

SOURCES = {"VmHWM": "VmRSS", "cuda allocated": "cuda allocated"}
"""A peak that was set back when its phase began, and the figure of the moment before."""
SPARE = 1.05
"""What generating takes is counted 5% higher: the kernel's counts lag behind, and less than a page is not seen."""
MOST = 2**31
"""No context and no batch is longer: what takes no memory would fit without end."""


@dataclass(frozen=True)
class Workspace:
    """What a phase takes for a while beside weights and cache, as a function of the batch and the tokens in each row.

    ``constant + per_token · (batch · tokens) + per_square · (batch · tokens²)`` bytes; the last term is that of
    attention which writes out its scores.
    """

    constant: float
    per_token: float
    per_square: float = 0.0

    def bytes(self, batch: int, tokens: int) -> float:
        return self.constant + self.per_token * batch * tokens + self.per_square * batch * tokens**2


@dataclass(frozen=True)
class Footprint:
    """The parts that generating takes. ``base_bytes`` is what the loaded process holds before it generates.

    ``measured_tokens`` is the longest prompt that the parts were measured at, ``context_limit`` the longest input
    that the model's configuration names (None where it names none); ``on_gpu`` says which memory is meant.
    """

    base_bytes: int
    kv_bytes_per_token: float
    prefill: Workspace
    decode: Workspace
    measured_tokens: int
    context_limit: int | None
    on_gpu: bool

    def bytes(self, batch: int, tokens: int) -> float:
        """The peak of a batch of rows of so many tokens each, with some to spare: read at once, or the last decoded."""
        work = max(self.prefill.bytes(batch, tokens), self.decode.bytes(batch, tokens))
        return self.base_bytes + SPARE * (self.kv_bytes_per_token * batch * tokens + work)

    def longest_context(self, budget_bytes: int, batch: int = 1) -> int:
        """The most tokens in each row of a batch that fit, as far as the model goes; 0 where none does."""
        return largest_fitting(lambda tokens: self.bytes(batch, tokens) <= budget_bytes, self.context_limit or MOST)

    def largest_batch(self, budget_bytes: int, tokens: int) -> int:
        """The most rows of so many tokens each that fit; 0 where not even one does."""
        return largest_fitting(lambda batch: self.bytes(batch, tokens) <= budget_bytes, MOST)


@dataclass(frozen=True)
class _PhasePoint:
    """A phase at one point of the grid: what was there before, and its own."""

    batch: int
    tokens: int
    before_bytes: float
    work_bytes: float


def footprint(runs: Sequence[RunRecord]) -> Footprint | None:
    """The parts that runs of one variant measured in eager mode; None where they did not, or peaks were not set back.

    Of several runs the largest figure counts. A workspace is a phase's peak, less what was in use when it began,
    less what the key-value cache grew by; through those of several prompt lengths a line is laid, and where attention
    writes out its scores (``eager``) a square.
    """
    source = next((name for name in reversed(SOURCES) if _points(runs, "prefill", name)), None)
    caches = [m for m in _all(runs, "kv_cache_bytes_per_token") if m.protocol["after"] == "decode"]
    if source is None or not caches or any(run.spec.decode_mode != "eager" for run in runs):
        return None
    prefill, decode = _points(runs, "prefill", source), _points(runs, "decode", source)
    square = any(_attention(run) == "eager" for run in runs)
    limits = [m.values[0] for m in _all(runs, "context_length")]
    on_gpu = source.startswith("cuda")
    return Footprint(
        base_bytes=int(max(point.before_bytes for point in prefill)) + (_context_bytes(runs) if on_gpu else 0),
        kv_bytes_per_token=cache_of_most_tokens(caches).values[0],
        prefill=fitted(prefill, square),
        decode=fitted(decode, square=False),
        measured_tokens=max(point.tokens for point in prefill),
        context_limit=int(min(limits)) if limits else None,
        on_gpu=on_gpu,
    )


def _attention(run: RunRecord) -> object:
    found = run.outcome.fact("attention")
    return found.arguments["implementation"] if found else None


def cache_of_most_tokens(caches: Sequence[Measurement]) -> Measurement:
    """Of a cache's bytes per token, which may depend on how full it is, those that stand for it: at the most tokens.

    What was counted after decoding goes before what was counted after the prompt alone.
    """
    decoded = [m for m in caches if m.protocol.get("after") == "decode"]
    return max(decoded or caches, key=lambda m: (int(m.protocol.get("tokens") or 0), m.values[0]))


def fitted(points: Sequence[_PhasePoint], square: bool) -> Workspace:
    """The workspace nearest to the points by least squares, with no term below zero.

    With ``square`` the terms are batch · tokens and batch · tokens², else a constant and batch · tokens. A single
    point gives what is proportional to batch · tokens.
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
    """The phase's workspace at every point of the grid, the largest of the runs."""
    found: dict[tuple[int, int], _PhasePoint] = {}
    for run in runs:
        before = _by_place(run, "memory_before_bytes", phase, SOURCES[source])
        for place, peak in _by_place(run, "peak_memory_bytes", phase, source).items():
            if place not in before:
                continue
            batch, prompt, new = place
            tokens = prompt + (new if phase == "decode" else 0)
            grown = _cache_bytes(run, place, phase) - (_cache_bytes(run, place, "prefill") if phase == "decode" else 0)
            point = _PhasePoint(batch, tokens, before[place], peak - before[place] - grown)
            largest = found.get((batch, tokens), point)
            found[batch, tokens] = max(point, largest, key=lambda each: each.work_bytes)
    return list(found.values())


Place = tuple[int, int, int]


def _by_place(run: RunRecord, metric: str, phase: str, source: str) -> Mapping[Place, float]:
    return {
        _place(m): m.values[0]
        for m in _all([run], metric)
        if (m.protocol["phase"], m.protocol["source"]) == (phase, source) and "prompt_tokens" in m.protocol
    }


def _place(measured: Measurement) -> Place:
    protocol = measured.protocol
    batch, prompt, new = (int(protocol[name] or 0) for name in ("batch_size", "prompt_tokens", "new_tokens"))
    return batch, prompt, new


def _cache_bytes(run: RunRecord, place: Place, after: str) -> float:
    """The whole cache after a phase; 0 where it was not measured."""
    for measured in _all([run], "kv_cache_bytes_per_token"):
        if measured.protocol["after"] == after and _place(measured) == place:
            return measured.values[0] * place[0] * int(measured.protocol["tokens"] or 0)
    return 0.0


def _context_bytes(runs: Sequence[RunRecord]) -> int:
    """What the driver counts to the process beyond what torch holds: the CUDA context and other libraries' memory."""
    beyond = [0]
    for run in runs:
        reserved = _by_place(run, "peak_memory_bytes", "prefill", "cuda reserved")
        for place, driver in _by_place(run, "memory_after_bytes", "prefill", "NVML process").items():
            beyond.append(math.ceil(driver - reserved.get(place, driver)))
    return max(beyond)


def _all(runs: Iterable[RunRecord], metric: str) -> list[Measurement]:
    return [entry for run in runs for entry in run.outcome.measurements if entry.metric == metric and entry.values]


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits, or 0. Whatever is smaller than one that fits must fit too."""
    return bisect_left(range(1, most + 1), True, key=lambda number: not fits(number))
