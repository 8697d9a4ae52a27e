"""Throughput on a fake clock: what is timed, what is left out."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from harness.core.workload import ThroughputWorkload
from harness.metrics import stopwatch, throughput

pytestmark = pytest.mark.heavy


class Clock:
    """Time that passes only when the model works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queued = 0.0

    def perf_counter(self) -> float:
        return self.now


class Model:
    """Prefill takes 1 s a prompt token, the n-th decode step after it n ms; work is done only when synchronised."""

    vocabulary = 50
    device = "cpu"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seen: list[torch.Tensor] = []
        self.warm = False

    def decoder(self, mode: str, prompt: torch.Tensor, new_tokens: int):
        assert mode == "eager"
        return nullcontext(self)

    def prefill(self, tokens: torch.Tensor):
        self.seen.append(tokens)
        self.clock.queued += tokens.shape[1] * (1.0 if self.warm else 100.0)
        self.warm = True
        return torch.zeros(tokens.shape[0], self.vocabulary), 0

    def decode(self, tokens: torch.Tensor, cache: int):
        assert tokens.shape == (self.seen[-1].shape[0], 1)
        self.clock.queued += (cache + 1) / 1000
        return torch.zeros(tokens.shape[0], self.vocabulary), cache + 1

    def sync(self) -> None:
        self.clock.now += self.clock.queued
        self.clock.queued = 0.0


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    model = Model(clock)
    workload = ThroughputWorkload((1, 4), (8,), new_tokens=3, warmup=1, iterations=2)
    return model, list(throughput.measure(model, workload, seed=0))  # type: ignore[arg-type]


def test_prefill_and_decode_are_timed_apart_and_raw(measured) -> None:
    _, (prefill, decode, *_) = measured
    assert prefill.metric == "prefill_s"
    assert prefill.values == (8.0, 8.0)
    assert decode.metric == "decode_step_s"
    assert decode.values == pytest.approx((0.001, 0.002, 0.003) * 2)
    assert decode.cluster_ids == ("0", "0", "0", "1", "1", "1")


def test_the_warm_up_is_left_out(measured) -> None:
    model, (prefill, *_) = measured
    assert len(model.seen) == 2 * (1 + 2)
    assert max(prefill.values) == 8.0


def test_every_cell_of_the_grid_is_measured_on_the_same_prompts(measured) -> None:
    model, measurements = measured
    assert [m.protocol["batch_size"] for m in measurements] == [1, 1, 4, 4]
    assert [tuple(tokens.shape) for tokens in model.seen] == [(1, 8)] * 3 + [(4, 8)] * 3
    assert all(torch.equal(model.seen[0], tokens) for tokens in model.seen[1:3])


def test_the_record_names_the_clock(measured) -> None:
    _, measurements = measured
    assert {m.protocol["clock"] for m in measurements} == {"perf_counter"}


def test_the_machine_is_looked_at_around_the_timed_iterations_of_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    model = Model(clock)
    told: list[tuple[str, int]] = []
    workload = ThroughputWorkload((1, 4), (8,), new_tokens=3, warmup=2, iterations=3)
    list(throughput.measure(model, workload, 0, lambda name: told.append((name, len(model.seen)))))  # type: ignore[arg-type]
    assert told == [("timing begins", 2), ("timing ends", 5), ("timing begins", 7), ("timing ends", 10)]
