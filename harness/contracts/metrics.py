"""Between the worker and what measures: windows of text, chunks of them, and the kinds of measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.record import Measurement

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Windows:
    """Token windows of an evaluation text, all of one length, and the protocol they were cut by.

    In every window each token but the first is scored, given those before it.
    """

    tokens: Sequence[Sequence[int]]
    protocol: Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Chunk:
    """A stretch of one window on its way through the observers of the one forward pass.

    ``logprobs`` are float32 (n, vocabulary), natural logarithms, of the tokens at positions
    ``start`` to ``start + n`` of the window; ``targets`` (n,) are those tokens; ``reference`` holds
    the baseline's log-probabilities of the same positions, where there is a reference.
    """

    window: int
    start: int
    targets: torch.Tensor
    logprobs: torch.Tensor
    reference: torch.Tensor | None


class Observer(Protocol):
    """Sees every chunk of the forward pass over the text."""

    def observe(self, chunk: Chunk) -> None: ...

    def finish(self) -> Sequence[Measurement]: ...


class Instrument(Protocol):
    """Wraps the phases of a run and measures something about each."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...

    def finish(self) -> Sequence[Measurement]: ...


MetricKind = Literal["observer", "workload", "instrument"]


@dataclass(frozen=True)
class Metric:
    """A measurement plugin: an observer, a workload of its own, or an instrument.

    ``make`` builds it inside the worker. Its signature follows the kind:
    observer ``(Windows) -> Observer``, instrument ``(device) -> Instrument``, and for a workload the measuring
    itself, ``(LoadedModel, ThroughputWorkload, seed) -> Iterator[Measurement]``.
    """

    name: str
    version: int
    kind: MetricKind
    summary: str
    make: Callable[..., Any]
