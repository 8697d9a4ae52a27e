"""The contract between the worker and metrics: windows of text, chunks of them, and the kinds of metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.core.capability import Capability
from harness.core.identity import Scalar
from harness.core.record import Measurement
from harness.core.strict import Strict

if TYPE_CHECKING:
    import torch

LOGITS_BYTES = 2**27
"""Maximum size of a stretch's float32 logits: large, because multiplying the head by few rows is slow."""


@dataclass(frozen=True)
class Windows:
    """Token windows of an evaluation text, and the protocol that cut them.

    In window i the tokens from position ``firsts[i]`` (1 or more) on are scored, each given all tokens before it in
    the window; the model reads all tokens but the last. ``documents[i]`` names the window's document: windows of one
    document are not independent. ``amounts`` counts a document in units other than tokens ("word", "byte").
    """

    tokens: Sequence[Sequence[int]]
    firsts: Sequence[int]
    documents: Sequence[str]
    protocol: Mapping[str, str | int | float | bool | None]
    amounts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def clusters(self) -> Sequence[str]:
        """What each window's values are clustered by: its document, or the window itself if there is only one."""
        if len(set(self.documents)) == 1:
            return [str(index) for index in range(len(self.documents))]
        return self.documents


@dataclass(frozen=True)
class Prediction:
    """What a model predicts at n positions, over the whole vocabulary.

    ``exponents`` are the logits minus the row's maximum, ``weights`` their exponentials, both float32
    (n, vocabulary). ``totals`` are the sums of the weights, float64 (n,). A probability is a weight over its total.
    """

    exponents: torch.Tensor
    weights: torch.Tensor
    totals: torch.Tensor


@dataclass(frozen=True)
class Chunk:
    """Some positions of one window, passed to the observers of a single forward pass.

    ``prediction`` covers the tokens at positions ``start`` to ``start + n`` of the window, and ``targets`` (n,) are
    those tokens. ``reference`` is the baseline's prediction there, if there is a reference.
    """

    window: int
    start: int
    targets: torch.Tensor
    prediction: Prediction
    reference: Prediction | None


class Observer(Protocol):
    """Sees every chunk of the forward pass over the text."""

    def observe(self, chunk: Chunk) -> None: ...

    def finish(self) -> Sequence[Measurement]: ...


class Instrument(Protocol):
    """Wraps the phases of a run and measures something about each; ``where`` distinguishes phases with one name."""

    def phase(self, name: str, **where: Scalar) -> AbstractContextManager[None]: ...

    def finish(self) -> Sequence[Measurement]: ...


class MetricParams(Strict):
    """Base of a plugin metric's parameters: one pydantic field per parameter, its default included."""


MetricKind = Literal["observer", "workload", "instrument"]


@dataclass(frozen=True)
class Metric:
    """A measurement: an observer, a workload, or an instrument.

    ``make`` builds it inside the worker. Its signature depends on the kind: observer ``(Windows) -> Observer``,
    instrument ``(device, …) -> Instrument``; a workload measures directly,
    ``(model, its workload, …) -> Iterator[Measurement]``.

    A recipe names a plugin's metric under ``measure``, with its ``params``. It is either an observer,
    ``(Windows, params) -> Observer``, which sees the forward pass of every quality run, or a workload,
    ``(model, params, seed) -> Iterable[Measurement]``, which every performance run measures after speed and memory, in
    a phase of its own. ``uses`` names the capabilities that a workload needs from the model, ``packages`` the
    libraries whose versions affect its values.
    """

    name: str
    version: int
    kind: MetricKind
    summary: str
    make: Callable[..., Any]
    params: type[MetricParams] = MetricParams
    uses: tuple[Capability, ...] = ()
    packages: tuple[str, ...] = ()

    def parsed(self, given: Mapping[str, Scalar]) -> MetricParams:
        """A plugin metric's parameters as its own type."""
        return self.params.model_validate(dict(given))
