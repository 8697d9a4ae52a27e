"""The GPU's clock on made-up CUDA events: a stream that works later than it is asked to, and a host that runs ahead."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from harness.core.workload import ThroughputWorkload
from harness.metrics import stopwatch, throughput
from harness.metrics.stopwatch import CudaStopwatch

pytestmark = pytest.mark.heavy


class Stream:
    """Work and events in the order they were asked for; each unit of work takes its milliseconds once it is run."""

    def __init__(self) -> None:
        self.queue: list[object] = []
        self.now_ms = 0.0
        self.syncs = 0

    def sync(self) -> None:
        self.syncs += 1
        for asked in self.queue:
            if isinstance(asked, Event):
                asked.at_ms = self.now_ms
            else:
                assert isinstance(asked, float)
                self.now_ms += asked
        self.queue = []


class Event:
    """As torch.cuda.Event: it has a time once the stream has come to it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.at_ms: float | None = None

    def record(self) -> None:
        self.stream.queue.append(self)

    def elapsed_time(self, later: Event) -> float:
        assert self.at_ms is not None, "read before the stream came to it"
        assert later.at_ms is not None, "read before the stream came to it"
        return later.at_ms - self.at_ms


class Model:
    """Prefill takes 8 ms, the n-th decode step after it n ms; 100 ms pass between one step and the next."""

    vocabulary = 5
    device = "cuda:0"

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.sync = stream.sync
        self.syncs_while_decoding = 0

    def decoder(self, mode: str, prompt: torch.Tensor, new_tokens: int):
        assert mode == "eager"
        return nullcontext(self)

    def prefill(self, tokens: torch.Tensor):
        self.stream.queue.append(8.0)
        return torch.zeros(1, self.vocabulary), (0, self.stream.syncs)

    def decode(self, tokens: torch.Tensor, cache: tuple[int, int]):
        step, syncs = cache
        self.stream.queue[-1:-1] = [100.0]  # before the event that begins this span
        self.stream.queue.append(step + 1.0)
        self.syncs_while_decoding += self.stream.syncs - syncs
        return torch.zeros(1, self.vocabulary), (step + 1, self.stream.syncs)


def test_spans_are_the_streams_time_between_their_events() -> None:
    stream = Stream()
    watch = CudaStopwatch(stream.sync, lambda: Event(stream))
    with watch.span():
        stream.queue.append(2.0)
    stream.queue.append(50.0)  # belongs to no span
    with watch.span():
        stream.queue += [1.0, 2.0]
    assert stream.syncs == 0
    assert watch.read_s() == pytest.approx([0.002, 0.003])
    assert watch.read_s() == []


def test_the_host_does_not_wait_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    model = Model(stream)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(stream))
    workload = ThroughputWorkload((1,), (8,), new_tokens=3, warmup=1, iterations=2)
    prefill, decode = throughput.measure(model, workload, seed=0)  # type: ignore[arg-type]
    assert prefill.values == pytest.approx((0.008, 0.008))
    assert decode.values == pytest.approx((0.001, 0.002, 0.003) * 2)
    assert model.syncs_while_decoding == 0
    assert {m.protocol["clock"] for m in (prefill, decode)} == {"CUDA events"}


def test_on_a_cpu_the_clock_is_read_when_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: stream.now_ms / 1000))
    watch = stopwatch.HostStopwatch(stream.sync)
    stream.queue.append(50.0)  # asked for before
    with watch.span():
        stream.queue.append(4.0)
    assert watch.read_s() == [pytest.approx(0.004)]
