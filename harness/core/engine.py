"""Between engines and what measures: how a checkpoint is to be loaded, and a model that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.core.identity import DecodeMode, KvCache

if TYPE_CHECKING:
    import torch

Role = Literal["linear", "embedding", "head", "other"]
KernelFamily = Literal["packed", "dequantize", "plain"]
"""How a linear layer multiplies: with the packed codes themselves, after unpacking them, or densely."""
Stop = Callable[["torch.Tensor"], "torch.Tensor"]


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
    kv_cache: KvCache = "model"
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


class Decoder(Protocol):
    """What writes text: all of a prompt at once, then a token a step. Tokens and logits are as LoadedModel's."""

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits of the last position, (batch, vocabulary), and a key-value cache."""
        ...

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One step: tokens (batch, 1) on top of the cache; logits (batch, vocabulary) and the cache."""
        ...


class LoadedModel(Decoder, Protocol):
    """The narrow waist between engines and metrics: a model that runs.

    Tokens are (batch, length) int64 tensors on any device; hidden states and logits come back on
    the model's device. ``hidden`` and ``head`` may be used only where ``factored`` is True: ``probe``,
    called once after loading, found ``head(hidden(x))`` equal to the model's own logits.
    Where the key-value cache is another than the model's own (``cache_told`` says which), a text is read in chunks,
    each from the cache of those before.
    ``attention`` names the implementation that runs; ``context_length`` is the longest input the model's
    configuration names, None where it names none.
    """

    tokenizer: Any | None
    vocabulary: int
    device: str
    attention: str
    cache_told: str | None
    context_length: int | None
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

    def own_cache_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits with the model's own key-value cache, whatever it runs with: an artifact is recognized by them."""
        ...

    def branching(self) -> bool:
        """Whether pasts may be used: found by comparing ``extend`` and ``grow`` with ``hidden``, when first asked."""
        ...

    def extend(self, tokens: torch.Tensor, past: Any | None) -> tuple[torch.Tensor, Any]:
        """Hidden states (n, width) of tokens (n,) after those of ``past``, and the past that they make together.

        A past stays as it is: it can be extended and grown on many times.
        """
        ...

    def grow(self, tokens: torch.Tensor, reach: torch.Tensor, past: Any | None) -> torch.Tensor:
        """Hidden states (n, width) of a row of tokens (n,) that branches, after those of ``past``.

        The token in place i is seen by those in places i to ``reach[i]`` - 1, and all see the past. The position of
        a token is how many others it sees: each reads as if it stood at the end of those alone.
        """
        ...

    def select(self, past: Any, rows: torch.Tensor, length: int) -> Any:
        """The last ``length`` tokens of a past, of these rows (int64) of its batch."""
        ...

    def join(self, pasts: Sequence[Any]) -> Any:
        """One past of the rows of all, which are padded on the left to the longest."""
        ...

    def generate(
        self, tokens: torch.Tensor, mask: torch.Tensor, past: Any | None, stop: Stop, **settings: Any
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """What transformers' ``generate`` writes after prompts, with these settings: tokens (batch, steps).

        Prompts are tokens (batch, length) and a mask that is 0 where padding stands; ``past`` may hold all of them
        but the last column. ``stop`` says after each step, given the tokens (batch, steps) written so far, which
        rows are done (batch,). Also comes back which rows wrote the model's own end, and, of a model that can
        branch, the past of all tokens but the last one written: with it, writing can be continued.
        """
        ...

    def decoder(self, mode: DecodeMode, prompt: torch.Tensor, new_tokens: int) -> AbstractContextManager[Decoder]:
        """What writes so many tokens after prompts (batch, length) like this one: in eager mode the model itself.

        Raises UnsupportedError where the model cannot decode in that mode.
        """
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

    def layer_families(self) -> Mapping[str, KernelFamily]:
        """The same for each of them, by its name."""
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

    ``imports`` imports its libraries, so that the time and the memory this takes stay apart from loading's. ``stack``
    names the environment that it runs in. Where it loads another form than a transformers checkpoint, ``convert``
    writes that of an unquantized checkpoint to a folder, in a dtype, and returns what a reader must know, if anything;
    ``loads`` is the kind of model that already has this form. ``caches`` maps the key-value caches that it keeps to the
    packages that each needs beside ``packages``.
    """

    name: str
    version: int
    summary: str
    imports: Callable[[], None]
    load: Callable[[LoadRequest], LoadedModel]
    packages: tuple[str, ...] = ()
    stack: str = "main"
    convert: Callable[[Path, Path, str], str | None] | None = None
    loads: str | None = None
    caches: Mapping[KvCache, tuple[str, ...]] = field(default_factory=lambda: {"model": ()})
