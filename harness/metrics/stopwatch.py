"""Clocks of the device that works: CUDA events in the stream on a GPU, the host's clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from harness.core.capability import LoadedModel


class Stopwatch(Protocol):
    """Times spans of work. ``clock`` names what is read."""

    clock: str

    def span(self) -> Any:
        """A context: what is asked of the device within it is one span."""
        ...

    def read_s(self) -> list[float]:
        """Waits for the device; the seconds of each span since the last reading, in order."""
        ...


class HostStopwatch:
    """The host's monotonic clock, read while the device rests (``sync`` returns when it does)."""

    clock = "perf_counter"

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._spans_s: list[float] = []

    @contextmanager
    def span(self) -> Iterator[None]:
        self._sync()
        began = time.perf_counter()
        yield
        self._sync()
        self._spans_s.append(time.perf_counter() - began)

    def read_s(self) -> list[float]:
        found, self._spans_s = self._spans_s, []
        return found


class CudaStopwatch:
    """CUDA events, recorded in the stream around each span and read when all is done.

    The host is never held up between spans: it may run ahead of the GPU, as it does in use. Where it is the
    slower of the two, the GPU's waiting for it lies within the span. ``event`` makes an event that keeps its time
    (torch.cuda.Event); an event's resolution is about half a microsecond.
    """

    clock = "CUDA events"

    def __init__(self, sync: Callable[[], None], event: Callable[[], Any]) -> None:
        self._sync, self._event = sync, event
        self._spans: list[tuple[Any, Any]] = []

    @contextmanager
    def span(self) -> Iterator[None]:
        began, ended = self._event(), self._event()
        began.record()
        yield
        ended.record()
        self._spans.append((began, ended))

    def read_s(self) -> list[float]:
        self._sync()
        found, self._spans = self._spans, []
        return [began.elapsed_time(ended) / 1000 for began, ended in found]


def stopwatch(model: LoadedModel) -> Stopwatch:
    """The clock of the model's device."""
    if model.device.startswith("cuda"):
        import torch

        return CudaStopwatch(model.sync, lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
    return HostStopwatch(model.sync)
