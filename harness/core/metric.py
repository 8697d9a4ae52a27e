"""Between the worker and what measures: windows of text, chunks of them, and the kinds of measurement."""

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


@dataclass(frozen=True)
class Windows:
    """Token windows of an evaluation text, and the protocol they were cut by.

    Of window i the tokens at positions ``firsts[i]`` (1 or more) and after are scored, each given all that
    stand before it in the window; the model reads all but the last. ``documents[i]`` names the document it belongs
    to: windows of one document are not independent. ``amounts`` count what a document holds in other units than
    tokens ("word", "byte").
    """

    tokens: Sequence[Sequence[int]]
    firsts: Sequence[int]
    documents: Sequence[str]
    protocol: Mapping[str, str | int | float | bool | None]
    amounts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What a model predicts at n positions, over the whole vocabulary.

    ``exponents`` are the logits less the row's highest, ``weights`` their exponentials, both float32
    (n, vocabulary); ``totals`` are the sums of the weights, float64 (n,). A weight over its total is a probability.
    """

    exponents: torch.Tensor
    weights: torch.Tensor
    totals: torch.Tensor


@dataclass(frozen=True)
class Chunk:
    """Some positions of one window on their way through the observers of the one forward pass.

    ``prediction`` is of the tokens at positions ``start`` to ``start + n`` of the window, ``targets`` (n,) are
    those tokens; ``reference`` is what the baseline predicts there, where there is a reference.
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
    """Wraps the phases of a run and measures something about each; ``where`` tells phases of one name apart."""

    def phase(self, name: str, **where: Scalar) -> AbstractContextManager[None]: ...

    def finish(self) -> Sequence[Measurement]: ...


class MetricParams(Strict):
    """Base of a plugin metric's parameters: one pydantic field per parameter, its default included."""


MetricKind = Literal["observer", "workload", "instrument"]


@dataclass(frozen=True)
class Metric:
    """A measurement: an observer, a workload of its own, or an instrument.

    ``make`` builds it inside the worker. Its signature follows the kind:
    observer ``(Windows) -> Observer``, instrument ``(device) -> Instrument``, and for a workload the measuring
    itself, ``(model, its workload, …) -> Iterator[Measurement]``.

    A plugin's metric is named under ``measure`` in a recipe, with its ``params``. It is an observer,
    ``(Windows, params) -> Observer``, which sees the forward pass of every quality run, or a workload,
    ``(model, params, seed) -> Iterable[Measurement]``, which every performance run measures after speed and memory, in
    a phase of its own. ``uses`` names the capabilities that a workload needs of the model, ``packages`` the libraries
    whose versions decide its values.
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
        """A plugin metric's parameters in its own type."""
        return self.params.model_validate(dict(given))
