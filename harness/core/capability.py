"""What an engine can do: one small protocol for all loaded models, one for each capability beyond that, and serving.

Tokens are (batch, length) int64 tensors on any device; hidden states and logits come back on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from harness.core.identity import DecodeMode

if TYPE_CHECKING:
    import torch

Capability = Literal[
    "logits", "factored", "ragged", "branching", "decodes", "generates", "completes", "scores", "serves"
]
"""What an engine declares that it can do, and a job declares that it uses.

Two follow from others: an engine has ``scores`` if its models have ``logits``, and ``serves``, which needs no loaded
model, if it declares ``serve``.
"""
Role = Literal["linear", "embedding", "head", "other"]
KernelFamily = Literal["packed", "dequantize", "plain"]
"""How a linear layer multiplies: with the packed codes directly, after unpacking them, or densely."""
Encode = Callable[[Any, Sequence[str], bool], Sequence[Sequence[int]]]
"""The tokens of each text, by a tokenizer, with its special tokens or without."""
Stop = Callable[["torch.Tensor"], "torch.Tensor"]
Choose = Callable[[int, "torch.Tensor"], "torch.Tensor"]
"""From the tokens written so far by this call and logits (batch, vocabulary) to scores; the largest is written next."""


@dataclass(frozen=True)
class StoredTensor:
    """One parameter of the model as actually stored in memory.

    ``parameters`` counts the elements it represents, ``value_bytes`` the bytes of their codes and
    ``scale_bytes`` those of scales, zero points and look-up tables. A tensor that shares the storage of
    another one (tied embeddings) has zero bytes and ``tied`` set.
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
class ScaleFault:
    """How many of the ``values`` scales in a tensor are not finite, and how many are zero."""

    name: str
    values: int
    not_finite: int
    zero: int

    @property
    def fatal(self) -> bool:
        """Whether the tensor's matrix cannot be meant: some of its weights are not finite, or all of them are zero."""
        return self.not_finite > 0 or self.zero == self.values


@dataclass(frozen=True)
class ScaleCheck:
    """How many tensors of scales and scales were looked at, and the tensors with faults."""

    tensors: int = 0
    scales: int = 0
    faults: tuple[ScaleFault, ...] = ()

    def __add__(self, other: ScaleCheck) -> ScaleCheck:
        return ScaleCheck(self.tensors + other.tensors, self.scales + other.scales, (*self.faults, *other.faults))


@dataclass(frozen=True)
class Product:
    """How a linear layer multiplies a number of rows at once.

    ``dtype`` is the torch name of the dtype of the numbers that are multiplied; for ``dequantize`` the codes are
    unpacked to it. None if it is not known: unpacked and dense matrices then have the model's own dtype.
    """

    family: KernelFamily
    dtype: str | None = None


@dataclass(frozen=True)
class Arithmetic:
    """How a linear layer computes its product, by names of torch dtypes.

    ``activations`` is what its inputs are rounded to before the product, the model's own dtype if they are not
    rounded. ``products`` is the dtype of the numbers that are multiplied: int8, where int4 codes meet int8 inputs.
    """

    activations: str
    products: str


@dataclass(frozen=True)
class Routed:
    """What one router of a mixture of experts did with some tokens.

    ``scores`` (tokens, experts) are its logits, or probabilities if the model computes those; ``chosen`` (tokens, k)
    are the numbers of the experts that each token goes to.
    """

    scores: torch.Tensor
    chosen: torch.Tensor


SeeRouted = Callable[[str, Routed], None]
"""Called with the name of a block, such as ``layers.3.mlp``, and what its router did, in the order of computation."""


@dataclass(frozen=True)
class HeadWeights:
    """A dense output embedding and the steps after it: ``cap(scale · (weight · h + bias))``."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@runtime_checkable
class LoadedModel(Protocol):
    """What every engine's model provides.

    ``vocabulary`` is the number of its tokens, ``context_length`` the longest input according to its configuration
    (None if unknown), ``attention`` the implementation that runs, ``threads`` the CPU threads that it uses.
    ``cache_description`` says how keys and values are stored if not as the model computes them; a text is then read
    in chunks, each on top of the cache of the chunks before it.
    """

    tokenizer: Any | None
    vocabulary: int
    device: str
    attention: str
    threads: int
    cache_description: str | None
    context_length: int | None

    def weight_ledger(self) -> Sequence[StoredTensor]:
        """Every parameter as loaded, each storage counted once."""
        ...

    def running_bytes(self) -> int:
        """The parameters' bytes now: some libraries repack them for a kernel in the first forward pass."""
        ...

    def kernels(self) -> Mapping[str, int]:
        """The number of layers of each class of linear module and weight."""
        ...

    def products(self, rows: int, mode: DecodeMode = "eager") -> Mapping[str, Product]:
        """How the linear layers multiply ``rows`` tokens at once, by their names in the checkpoint; known ones only.

        By the library's own rule: many kernels change with the number of rows. ``mode`` is the decode mode of the pass.
        Call it after the model has run: some libraries choose a kernel in the first pass.
        """
        ...

    def sync(self) -> None:
        """Waits until the device has finished all of its work."""
        ...

    def close(self) -> None:
        """Frees the weights and everything derived from them. The model cannot be used afterwards."""
        ...


@runtime_checkable
class Logits(LoadedModel, Protocol):
    """Scores text: the logits of every position."""

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The model's own final logits, (batch, length, vocabulary)."""
        ...

    def own_cache_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The same with the model's own key-value cache, whichever cache it runs with. They identify an artifact."""
        ...


@runtime_checkable
class Factored(Logits, Protocol):
    """Computes logits as a head applied to hidden states, which are far smaller than logits.

    ``hidden`` and ``head`` may be used only if ``factored`` is True, which means that ``head(hidden(x))`` equals the
    model's own logits. ``probe_head`` sets it, once, after loading.
    """

    factored: bool

    def probe_head(self) -> None:
        """Sets ``factored``. This is the model's first forward pass: before it the weights are as loaded."""
        ...

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """The input of the output embedding, (batch, length, width)."""
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final logits of hidden states, (…, vocabulary), including bias, scale and soft cap."""
        ...

    def output_embedding(self) -> HeadWeights | None:
        """What is needed to apply the head without the model; None if that is impossible."""
        ...


@dataclass(frozen=True)
class StreamingCost:
    """What streaming a model has cost so far.

    ``checkpoint_bytes`` is what one pass through all parts reads, ``bytes_read`` and ``read_s`` are of all reads,
    ``spilled_bytes`` of the states that were written to disk for want of memory.
    """

    parts: int
    largest_part_bytes: int
    checkpoint_bytes: int
    bytes_read: int
    read_s: float
    passes: int
    spilled_bytes: int


@runtime_checkable
class Streamed(Factored, Protocol):
    """Reads its weights from disk part by part in every pass, so that a pass should be made for many texts at once."""

    def load_each(self) -> None:
        """Loads every part once, one after the other: of a method that quantizes while loading, the whole work.

        Call it before any pass: what it reads counts as one.
        """
        ...

    def hidden_each(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The hidden states of each batch of tokens, in order, in one pass."""
        ...

    def logits_each(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The logits of each batch of tokens, in order, in one pass."""
        ...

    def streaming_cost(self) -> StreamingCost:
        """What it has read until now."""
        ...


@runtime_checkable
class Ragged(Factored, Protocol):
    """Reads many texts of unequal length together, without padding."""

    def hidden_of(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Hidden states of each text, (its length, width), in order. The model schedules the texts itself."""
        ...


@runtime_checkable
class Branching(Factored, Protocol):
    """Reuses prefixes: texts with a common beginning share its computation.

    A prefix cache is what the model keeps from the tokens already read. It is immutable: it can be extended, and rows
    can branch from it, many times.
    """

    def can_branch(self) -> bool:
        """Whether this model really can. The first call tests it by comparing branches with each text run alone."""
        ...

    def extend_prefix(self, tokens: torch.Tensor, prefix: Any | None) -> tuple[torch.Tensor, Any]:
        """Hidden states (n, width) of tokens (n,) after a prefix, and the prefix cache of both together."""
        ...

    def forward_tree(self, tokens: torch.Tensor, visible_until: torch.Tensor, prefix: Any | None) -> torch.Tensor:
        """Hidden states (n, width) of a row of tokens (n,) that branches after a prefix.

        The tokens at indices i to ``visible_until[i]`` - 1 see token i, and all tokens see the prefix. The position of
        a token is the number of other tokens that it sees, as if it came right after them.
        """
        ...

    def select_prefix(self, prefix: Any, rows: torch.Tensor, length: int) -> Any:
        """The last ``length`` tokens of these rows (int64) of a prefix cache's batch."""
        ...

    def join_prefixes(self, prefixes: Sequence[Any]) -> Any:
        """One prefix cache with the rows of all, left-padded to the longest."""
        ...


class Decoder(Protocol):
    """Writes text: reads a whole prompt at once, then writes one token per step."""

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits of the last position, (batch, vocabulary), and a key-value cache."""
        ...

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One step: tokens (batch, 1) on top of the cache; logits (batch, vocabulary) and the cache."""
        ...


@runtime_checkable
class Decodes(LoadedModel, Decoder, Protocol):
    """Prefill and decoding as single steps, which can be timed separately."""

    def decoder(self, mode: DecodeMode, prompt: torch.Tensor, new_tokens: int) -> AbstractContextManager[Decoder]:
        """A decoder for prompts of this shape (batch, length) and ``new_tokens`` tokens after them.

        In eager mode it may be the model itself. Raises UnsupportedError if the model cannot decode in this mode.
        """
        ...


@dataclass(frozen=True)
class CachePool:
    """Memory for keys and values that is allocated before any text: ``blocks``, each for ``block_tokens`` tokens."""

    bytes: int
    blocks: int
    block_tokens: int


@runtime_checkable
class Pooled(LoadedModel, Protocol):
    """Allocates its key-value cache when it loads, so that all of its memory peaks include the whole pool."""

    def cache_pool(self) -> CachePool:
        """The pool, full or not."""
        ...


@runtime_checkable
class Preallocates(LoadedModel, Protocol):
    """Allocates the whole key-value cache of a decoder when it makes the decoder, before any prompt."""

    def allocated_cache_bytes(self) -> int:
        """The cache of the decoder that exists now, full or not."""
        ...


@runtime_checkable
class Spread(LoadedModel, Protocol):
    """May have its layers on several GPUs, which compute one after the other."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that hold its weights."""
        ...


@runtime_checkable
class Generates(LoadedModel, Protocol):
    """Writes text after prompts until a condition holds."""

    def generate(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        prefix: Any | None,
        stop: Stop,
        choose: Choose | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Continues prompts with the settings of transformers' ``generate``; returns the new tokens (batch, steps).

        Prompts are tokens (batch, length) and a mask that is 0 at padding; ``prefix`` may hold all but their last
        column. After each step ``stop`` maps the tokens (batch, steps) written so far to the rows that are done
        (batch,). Also returns which rows wrote the model's own end token and, if the model can branch, the prefix
        cache of all tokens but the last one written, to continue from. ``choose`` decides each token if nothing
        samples; None takes the likeliest. Raises UnsupportedError for unknown settings.
        """
        ...


@runtime_checkable
class Explains(LoadedModel, Protocol):
    """Knows the arithmetic of its linear layers. No job needs it, so engines do not declare it."""

    def arithmetic(self) -> Mapping[str, Arithmetic]:
        """The arithmetic of linear layers by their names in the checkpoint, ``lm_head`` included; known ones only."""
        ...


@runtime_checkable
class ShowsDtype(LoadedModel, Protocol):
    """Knows in which dtype it computes, whatever it was asked for. No job needs it, so engines do not declare it.

    ``states_dtype`` is the torch name of the dtype of the first hidden states that it computed; None if it has none.
    """

    states_dtype: str | None


@runtime_checkable
class ShowsScales(LoadedModel, Protocol):
    """Looks at the scales of its quantized matrices in memory. No job needs it, so engines do not declare it."""

    def check_scales(self) -> ScaleCheck:
        """Of a model that reads its weights part by part, each part's as they were when it was first loaded."""
        ...


@runtime_checkable
class ShowsRouters(LoadedModel, Protocol):
    """Shows what the routers of a mixture of experts do. No job needs it, so engines do not declare it."""

    def router_blocks(self) -> Sequence[str]:
        """The blocks that have a router, in order; empty for a dense model. The first call tests it with few tokens.

        Raises UnsupportedError if the model is a mixture whose routers cannot be read.
        """
        ...

    def watching_routers(self, see: SeeRouted) -> AbstractContextManager[None]:
        """Inside this context ``see`` gets what each router does with the tokens of each forward pass."""
        ...


@dataclass(frozen=True)
class Prompt:
    """Tokens to continue. Texts that are drawn with one seed have different numbers."""

    tokens: Sequence[int]
    number: int


def numbered(texts: Iterable[Sequence[int]]) -> list[Prompt]:
    """Prompts that are numbered in their order."""
    return [Prompt(tokens, number) for number, tokens in enumerate(texts)]


@runtime_checkable
class Completes(LoadedModel, Protocol):
    """Writes text after many prompts by continuous batching: a text that ends makes room for the next one."""

    def complete(
        self, prompts: Sequence[Prompt], new_tokens: int, stops: Sequence[str], seed: int, **settings: Any
    ) -> list[list[int]]:
        """The new tokens after each prompt, at most ``new_tokens``, in order; the model schedules the prompts itself.

        A text ends with the model's own end token, or with the token that completes one of the strings ``stops`` in its
        decoded tokens, special ones included. ``settings`` are those of transformers' ``generate``, with the defaults
        of the checkpoint's generation config. If texts are sampled, the randomness of each belongs to ``seed`` and its
        prompt's number, and to nothing else. Raises UnsupportedError for settings that the model cannot follow.
        """
        ...


@dataclass(frozen=True)
class TokenScores:
    """Of a text's tokens but the first: the natural logarithm of each one's probability, and whether it was the
    likeliest."""

    logarithms: tuple[float, ...]
    likeliest: tuple[bool, ...]


@runtime_checkable
class Scores(LoadedModel, Protocol):
    """Scores texts whose logits may not leave it, as on a server elsewhere."""

    def score(self, texts: Sequence[Sequence[int]], together: int) -> list[TokenScores]:
        """The scores of each text's tokens, in order, with at most ``together`` texts computed at once.

        Raises UnsupportedError if it cannot score.
        """
        ...


PROTOCOLS: Mapping[Capability, type[LoadedModel]] = MappingProxyType(
    {
        "logits": Logits,
        "factored": Factored,
        "ragged": Ragged,
        "branching": Branching,
        "decodes": Decodes,
        "generates": Generates,
        "completes": Completes,
        "scores": Scores,
    }
)
"""The protocol that each capability requires of a loaded model."""


@dataclass(frozen=True)
class Endpoint:
    """A running server with OpenAI's API.

    ``url`` is its base without ``/v1``, and ``model`` the name that requests give. ``metrics_url`` shows its counters
    in Prometheus' text format; None if it has no such page. ``api_key_env`` names the environment variable that holds
    the key that requests carry; None if they need none. The key itself is never kept. ``together`` is how many requests
    it computes together, while others wait, and ``longest_tokens`` its longest text, new tokens included; None if that
    is not known.
    """

    url: str
    model: str
    metrics_url: str | None = None
    api_key_env: str | None = None
    together: int | None = None
    longest_tokens: int | None = None


def states_and_head(
    model: Logits,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """The two steps from tokens to logits: hidden states, then the head.

    A model that is not factored does everything in the first step.
    """
    if isinstance(model, Factored) and model.factored:
        return model.hidden, model.head
    return model.logits, lambda logits: logits


def states_each(model: Logits, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The first of the two steps of ``states_and_head`` for each batch, in order and one at a time.

    A streamed model reads its weights once for all of them.
    """
    if isinstance(model, Streamed):
        yield from (model.hidden_each if model.factored else model.logits_each)(list(batches))
    else:
        yield from map(states_and_head(model)[0], batches)


def logits_each(model: Logits, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The logits of each batch, in order and one at a time; in one pass if the model is streamed."""
    if isinstance(model, Streamed):
        yield from model.logits_each(list(batches))
    else:
        yield from map(model.logits, batches)


def as_ragged(model: LoadedModel) -> Ragged | None:
    """The model if it can read texts of unequal length and apply its head to their states, else None."""
    return model if isinstance(model, Ragged) and model.factored else None


def as_branching(model: LoadedModel) -> Branching | None:
    """The model if it can reuse prefixes, else None."""
    return model if isinstance(model, Branching) and model.can_branch() else None
