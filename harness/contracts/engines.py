"""Between engines and what measures: how a checkpoint is to be loaded, and a model that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

Role = Literal["linear", "embedding", "head", "other"]
KernelFamily = Literal["packed", "dequantize", "plain"]
"""How a linear layer multiplies: with the packed codes themselves, after unpacking them, or densely."""


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
