"""What the rooms of the house hand to one another: frozen data and protocols, no behaviour.

torch is named here for type checkers alone; importing this module imports none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from harness.recipe import Strict
from harness.record import Measurement
from harness.spec import Scalar, Stage

if TYPE_CHECKING:
    import torch

Role = Literal["linear", "embedding", "head", "other"]


class MethodParams(Strict):
    """Base of a method's parameters: one pydantic field per parameter, its default included."""


P = TypeVar("P", bound=MethodParams)


@dataclass(frozen=True)
class LoadRequest:
    """How an engine is to load a checkpoint: ``quantization`` is what its library's own loader takes.

    ``read`` loads the checkpoint where transformers cannot: a method's own (see Method).
    """

    path: Path
    dtype: str
    device: str
    attention: str | None = None
    quantization: object | None = None
    trust_remote_code: bool = False
    read: Callable[[LoadRequest], Any] | None = None


@dataclass(frozen=True)
class CalibrationSet:
    """The token ids that every calibrated method of a sweep gets, and nothing else.

    All rows have one length; of row i the first ``lengths[i]`` tokens are text and the rest is padding,
    which a library that takes a mask must be told to ignore. ``sha256`` is of the ids and the lengths.
    """

    tokens: Sequence[Sequence[int]]
    lengths: Sequence[int]
    sha256: str

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return len(self.tokens[0])

    @property
    def texts(self) -> list[list[int]]:
        """The rows without their padding, for libraries that would count it."""
        return [list(row[:length]) for row, length in zip(self.tokens, self.lengths, strict=True)]

    @property
    def masks(self) -> list[list[int]]:
        """1 for text and 0 for padding, one row per row of tokens."""
        return [[1] * length + [0] * (len(row) - length) for row, length in zip(self.tokens, self.lengths, strict=True)]


@dataclass(frozen=True)
class Setting:
    """What a method that quantizes while loading must know beside its parameters.

    ``untouched`` names the modules that must stay as they are: the head, routers, and what the recipe skips.
    """

    dtype: str
    device: str
    untouched: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeJob(Generic[P]):
    """One offline quantization: read the checkpoint at ``source``, leave a loadable one in ``out``.

    ``load`` reads the source as an unquantized transformers model on the job's device; a method
    whose library loads for itself leaves it alone. ``scope`` names the modules to quantize and ``untouched``
    every other one that has a matrix: the head, routers, what the recipe skips. ``overrides`` are parameters
    that differ for single modules, by module name. ``note`` adds a fact to the run's record.
    """

    params: P
    source: Path
    out: Path
    device: str
    dtype: str
    seed: int
    load: Callable[[], Any]
    calibration: CalibrationSet | None = None
    scope: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    trust_remote_code: bool = False
    note: Callable[[str, Scalar], None] = lambda name, value: None

    @property
    def calibration_set(self) -> CalibrationSet:
        """The calibration set of a method that declared itself calibrated."""
        assert self.calibration is not None, "a method must declare that it is calibrated"
        return self.calibration


@dataclass(frozen=True)
class Needs:
    """What a variant cannot do without; the planner marks a pair that lacks it as unsupported.

    ``capability`` is the least CUDA compute capability; the divisors must divide every input or output
    width in scope; ``model_types`` are those of ``config.json`` that the library knows (empty: any).
    """

    device: Literal["cuda", "cpu"] | None = None
    capability: tuple[int, int] | None = None
    input_divisor: int | None = None
    output_divisor: int | None = None
    model_types: frozenset[str] = frozenset()


KernelFamily = Literal["packed", "dequantize", "plain"]
"""How a linear layer multiplies: with the packed codes themselves, after unpacking them, or densely."""


@dataclass(frozen=True)
class Method(Generic[P]):
    """A quantization algorithm as some library implements it.

    Exactly one of these is set, or neither for the unquantized baseline and for a ``published`` checkpoint:

    ``load_config``  quantizes while loading: returns what ``from_pretrained(quantization_config=…)``
                     takes, given the parameters and the setting.
    ``quantize``     quantizes offline: writes a checkpoint and returns the model as it is in memory,
                     so that what is reloaded can be held against it.

    ``read`` loads what ``quantize`` wrote where transformers alone cannot. ``stack`` names the environment
    that quantizes; the main one always measures. ``packages`` are what quantizing needs there, and ``readers``
    what loading the result needs in the main stack (the same packages, unless said otherwise).
    ``calibrated`` says whether text is needed, ``needs`` what else is. ``kernel`` is the family that the
    method is meant to run on; a row that ran on a slower one is labelled.

    ``enable`` is called in the worker before anything is loaded and timed: it imports the library and
    registers what must be known to transformers. ``bits_per_weight`` is what one quantized weight
    takes as stored, its scales included, given the bits of an unquantized one and the layer's input width.
    ``run_dtype`` is the dtype the model runs in, given the one that the recipe asks for.
    """

    name: str
    version: int
    summary: str
    params: type[P]
    packages: tuple[str, ...] = ()
    extra: str | None = None
    stack: str = "main"
    readers: tuple[str, ...] | None = None
    load_config: Callable[[P, Setting], object] | None = None
    quantize: Callable[[QuantizeJob[P]], Any] | None = None
    read: Callable[[LoadRequest], Any] | None = None
    enable: Callable[[], None] | None = None
    published: bool = False
    calibrated: Callable[[P], bool] = lambda params: False
    needs: Callable[[P], Needs] = lambda params: Needs()
    overrides: bool = False
    kernel: KernelFamily | None = None
    bits_per_weight: Callable[[P, float, int], float] = lambda params, plain_bits, width: plain_bits
    run_dtype: Callable[[P, str], str] = lambda params, dtype: dtype
    batch_dependent: bool = False

    @property
    def stage(self) -> Stage:
        """When it quantizes: never, while loading, in a run of its own, or before it was published."""
        if self.published:
            return "published"
        return "offline" if self.quantize else "on_load" if self.load_config else "none"


@dataclass(frozen=True)
class StoredTensor:
    """One parameter of the model as its bytes really lie in memory.

    ``parameters`` counts the elements it stands for, ``value_bytes`` what their codes take and
    ``scale_bytes`` what scales, zero points and look-up tables take. A tensor whose storage another
    one already counted (tied embeddings) has zero bytes and ``tied`` set.
    """

    name: str
    role: Role
    storage: str
    parameters: int
    value_bytes: int
    scale_bytes: int
    quantized: bool
    tied: bool = False


class LoadedModel(Protocol):
    """The narrow waist between engines and metrics: a model that runs.

    Tokens are (batch, length) int64 tensors on any device; hidden states and logits come back on
    the model's device. ``hidden`` and ``head`` may be used only where ``factored`` is True: ``probe``,
    called once after loading, found ``head(hidden(x))`` equal to the model's own logits.
    ``attention`` names the implementation that runs.
    """

    tokenizer: Any | None
    vocabulary: int
    device: str
    attention: str
    factored: bool

    def probe(self) -> None:
        """Sets ``factored``. Until then nothing has run, and what is stored is as it was loaded."""
        ...

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """The input of the output embedding, (batch, length, width)."""
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final logits of hidden states, (…, vocabulary): bias, scale and soft cap included."""
        ...

    def output_embedding(self) -> HeadWeights | None:
        """What a reader needs to apply the head without the model; None where that is not possible."""
        ...

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The model's own final logits, (batch, length, vocabulary)."""
        ...

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits of the last position, (batch, vocabulary), and a key-value cache."""
        ...

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One step: tokens (batch, 1) on top of the cache; logits (batch, vocabulary) and the cache."""
        ...

    def sync(self) -> None:
        """Returns when the device has finished all that was asked of it."""
        ...

    def weight_ledger(self) -> Sequence[StoredTensor]:
        """Every stored parameter as it was loaded, each storage counted once."""
        ...

    def running_bytes(self) -> int:
        """What the parameters take now: some libraries repack them for a kernel in the first forward pass."""
        ...

    def kernels(self) -> Mapping[str, int]:
        """How many layers each class of linear module and weight has."""
        ...

    def families(self) -> Mapping[KernelFamily, int]:
        """How many of the decoder's linear layers run on each family of kernels."""
        ...


@dataclass(frozen=True)
class HeadWeights:
    """A dense output embedding and what follows it: ``cap(scale · (weight · h + bias))``."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Engine:
    """A runtime that turns a checkpoint into a LoadedModel.

    ``imports`` imports its libraries, so that the time and the memory this takes stay apart from loading's.
    """

    name: str
    version: int
    summary: str
    imports: Callable[[], None]
    load: Callable[[LoadRequest], LoadedModel]
    packages: tuple[str, ...] = ()


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
