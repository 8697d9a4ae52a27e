"""Clocks for the device: CUDA events in the stream on a GPU, the host's clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from harness.core.capability import LoadedModel


class Stopwatch(Protocol):
    """Times spans of work. ``clock`` names the clock."""

    clock: str

    def span(self) -> Any:
        """A context manager: the device's work inside it is one span."""
        ...

    def read_s(self) -> list[float]:
        """Waits for the device and returns the seconds of each span since the last call, in order."""
        ...


class HostStopwatch:
    """The host's monotonic clock, read while the device is idle (``sync`` waits for that)."""

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
    """CUDA events, recorded in the stream around each span and read at the end.

    The host never waits between spans, so it may run ahead of the GPU as in normal use. If the host is the slower one,
    the span includes the time that the GPU waits for it. ``event`` creates an event with timing enabled
    (torch.cuda.Event); its resolution is about half a microsecond.
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
    """The clock for the model's device."""
    if model.device.startswith("cuda"):
        import torch

        return CudaStopwatch(model.sync, lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
    return HostStopwatch(model.sync)
