"""What a loaded model can do: one small protocol for all of them, and one for each capability beyond that.

Tokens are (batch, length) int64 tensors on any device; hidden states and logits come back on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from harness.core.identity import DecodeMode

if TYPE_CHECKING:
    import torch

Capability = Literal["logits", "factored", "branching", "decodes", "generates"]
"""The names by which an engine declares what its models can do, and a job what it uses of them."""
Role = Literal["linear", "embedding", "head", "other"]
KernelFamily = Literal["packed", "dequantize", "plain"]
"""How a linear layer multiplies: with the packed codes themselves, after unpacking them, or densely."""
Stop = Callable[["torch.Tensor"], "torch.Tensor"]


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


@dataclass(frozen=True)
class HeadWeights:
    """A dense output embedding and what follows it: ``cap(scale · (weight · h + bias))``."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@runtime_checkable
class LoadedModel(Protocol):
    """What every engine's model has, whatever else it can do.

    ``vocabulary`` is the number of tokens that it knows, ``context_length`` the longest input that its configuration
    names (None where it names none), ``attention`` the implementation that runs, ``threads`` the CPU threads that it
    computes with. ``cache_description`` says how keys and values are kept where that is not as the model makes them;
    a text is then read in chunks, each from the cache of those before it.
    """

    tokenizer: Any | None
    vocabulary: int
    device: str
    attention: str
    threads: int
    cache_description: str | None
    context_length: int | None

    def weight_ledger(self) -> Sequence[StoredTensor]:
        """Every stored parameter as it was loaded, each storage counted once."""
        ...

    def running_bytes(self) -> int:
        """What the parameters take now: some libraries repack them for a kernel in the first forward pass."""
        ...

    def kernels(self) -> Mapping[str, int]:
        """How many layers each class of linear module and weight has."""
        ...

    def families(self) -> Mapping[str, KernelFamily]:
        """The family of kernels that each of the decoder's linear layers runs on, by the layer's name."""
        ...

    def sync(self) -> None:
        """Returns when the device has finished all the work it was given."""
        ...

    def close(self) -> None:
        """Frees the weights and all that was made of them. The model cannot be used afterwards."""
        ...


@runtime_checkable
class Logits(LoadedModel, Protocol):
    """Scores text: the logits of every position."""

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The model's own final logits, (batch, length, vocabulary)."""
        ...

    def own_cache_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The same with the model's own key-value cache, whatever it runs with: they identify an artifact."""
        ...


@runtime_checkable
class Factored(Logits, Protocol):
    """Its logits are a head applied to hidden states, which take far less room to keep than logits.

    ``hidden`` and ``head`` may be used only where ``factored`` is True. ``probe_head`` sets it, once, after loading:
    ``head(hidden(x))`` then equals the model's own logits.
    """

    factored: bool

    def probe_head(self) -> None:
        """Sets ``factored``. This is the model's first forward pass: until then its weights are as they were loaded."""
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


@runtime_checkable
class Branching(Factored, Protocol):
    """Reuses prefixes: texts that begin alike share the computation of their beginning.

    A prefix cache is what the model keeps of tokens already read. It never changes: it can be extended, and rows can
    branch from it, many times.
    """

    def can_branch(self) -> bool:
        """Whether this model really can. The first call finds out, by comparing branches with each text alone."""
        ...

    def extend_prefix(self, tokens: torch.Tensor, prefix: Any | None) -> tuple[torch.Tensor, Any]:
        """Hidden states (n, width) of tokens (n,) that follow a prefix, and the prefix cache of both together."""
        ...

    def forward_tree(self, tokens: torch.Tensor, visible_until: torch.Tensor, prefix: Any | None) -> torch.Tensor:
        """Hidden states (n, width) of a row of tokens (n,) that branches after a prefix.

        The tokens in places i to ``visible_until[i]`` - 1 see the token in place i, and all of them see the prefix. The
        position of a token is the number of other tokens that it sees: it is read as if it stood right after those.
        """
        ...

    def select_prefix(self, prefix: Any, rows: torch.Tensor, length: int) -> Any:
        """The last ``length`` tokens of a prefix cache, of these rows (int64) of its batch."""
        ...

    def join_prefixes(self, prefixes: Sequence[Any]) -> Any:
        """One prefix cache with the rows of all, padded on the left to the longest."""
        ...


class Decoder(Protocol):
    """Writes text: reads a whole prompt at once, then writes one token a step."""

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits of the last position, (batch, vocabulary), and a key-value cache."""
        ...

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One step: tokens (batch, 1) on top of the cache; logits (batch, vocabulary) and the cache."""
        ...


@runtime_checkable
class Decodes(LoadedModel, Decoder, Protocol):
    """Prefill and decoding as single steps, which can be timed apart."""

    def decoder(self, mode: DecodeMode, prompt: torch.Tensor, new_tokens: int) -> AbstractContextManager[Decoder]:
        """A decoder for prompts (batch, length) like this one and so many tokens after them.

        In eager mode it may be the model itself. Raises UnsupportedError where the model cannot decode in that mode.
        """
        ...


@runtime_checkable
class Generates(LoadedModel, Protocol):
    """Writes text after prompts until a condition holds."""

    def generate(
        self, tokens: torch.Tensor, mask: torch.Tensor, prefix: Any | None, stop: Stop, **settings: Any
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Continues prompts with the settings of transformers' ``generate``; returns the new tokens (batch, steps).

        Prompts are tokens (batch, length) and a mask that is 0 at padding; ``prefix`` may hold all of them but the last
        column. After each step ``stop`` maps the tokens (batch, steps) written so far to the rows that are done
        (batch,). Also returned: which rows wrote the model's own end token, and, where the model can branch, the prefix
        cache of all tokens but the last one written, from which writing can continue. Raises UnsupportedError for
        settings that the model does not know.
        """
        ...


PROTOCOLS: Mapping[Capability, type[LoadedModel]] = MappingProxyType(
    {
        "logits": Logits,
        "factored": Factored,
        "branching": Branching,
        "decodes": Decodes,
        "generates": Generates,
    }
)
"""What a model must implement for each capability."""


def states_and_head(
    model: Logits,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """The two steps from tokens to logits: hidden states, then the head.

    A model that does not factor does all of it in the first step.
    """
    if isinstance(model, Factored) and model.factored:
        return model.hidden, model.head
    return model.logits, lambda logits: logits


def as_branching(model: LoadedModel) -> Branching | None:
    """The model as one that reuses prefixes, or None where it does not."""
    return model if isinstance(model, Branching) and model.can_branch() else None
