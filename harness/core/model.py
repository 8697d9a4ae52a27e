"""The subject of a run: an unquantized model and the method applied to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from harness.core.capability import Endpoint
from harness.core.identity import Scalar, Stage, digest
from harness.core.json_values import ABSENT_AT_DEFAULT

MAIN_ENGINE = "transformers"
"""The engine that computes what all engines share: the reference that divergence is measured against."""


@dataclass(frozen=True)
class LayerCache:
    """The numbers that one layer keeps of each text.

    They are ``token`` numbers for each of the last ``window`` tokens (None: of all) and, whatever the length, ``state``
    numbers in the cache's dtype and ``float32_state`` in float32: the states of linear attention and of convolutions.
    A layer that compresses also keeps an ``entry`` of so many numbers for every full ``block`` of tokens, and
    ``pending`` numbers for each token that came since the last but one block ended; 0 if it does not.
    """

    token: int
    window: int | None = None
    state: int = 0
    float32_state: int = 0
    block: int = 0
    entry: int = 0
    pending: int = 0

    def numbers(self, tokens: float) -> float:
        """How many of them are in the cache's dtype after ``tokens`` tokens, at least one, of one text."""
        kept = self.state + self.token * (tokens if self.window is None else min(tokens, self.window))
        if not self.block:
            return kept
        return kept + self.entry * (tokens // self.block) + self.pending * (1 + (tokens - 1) % self.block)


@dataclass(frozen=True)
class Attention:
    """``layers`` has an entry per layer with a cache of its own.

    ``head_dim`` is the mean width of a head's keys and values, and ``kv_heads`` the keys that a token is given: where a
    layer keeps a compressed form of them, it keeps fewer numbers than 2 · kv_heads · head_dim.
    """

    layers: tuple[LayerCache, ...]
    heads: int
    kv_heads: int
    head_dim: int

    def cache_bytes(self, tokens: float, element_bytes: float) -> float:
        """Bytes that all layers keep of one text of ``tokens`` tokens."""
        return sum(each.numbers(tokens) * element_bytes + 4 * each.float32_state for each in self.layers)


@dataclass(frozen=True)
class ModelRef:
    """The unquantized model of a variant.

    ``content`` identifies the weights and the tokenizer (a sha256, or ``id@revision`` on a hub).
    ``native_quantization`` names the grid that the published weights already lie on, if any. ``dequantize`` is the
    quant_method of a checkpoint that is made dense first.
    """

    id: str
    label: str
    content: str
    kind: Literal["hub", "directory", "gguf", "synthetic"]
    path: str
    dtype: str = "auto"
    degrid: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    native_quantization: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    dequantize: str | None = None

    @cached_property
    def content_id(self) -> str:
        """A digest that is equal for models with the same content."""
        return digest(model_identity(self))

    @property
    def on_hub(self) -> bool:
        """Whether it is fetched from a hub: its folder or, of kind ``gguf``, one file of a repository."""
        return self.kind == "hub" or self.revision is not None

    @property
    def altered(self) -> bool:
        """Whether its weights are not stored as they were published."""
        return self.degrid is not None or self.dequantize is not None

    @property
    def needs_preparing(self) -> bool:
        """Whether a checkpoint must first be prepared from it: converted, dequantized, degridded or drawn at random."""
        return self.kind in ("gguf", "synthetic") or self.altered


@dataclass(frozen=True)
class ServerRef:
    """Where a server of the user's is, and the environment variable that holds its key, if it needs one.

    No part of any identity: a server may move. The key itself is never kept.
    """

    url: str
    api_key_env: str | None = None


@dataclass(frozen=True)
class MethodRef:
    """A method with every parameter resolved; ``label`` shows those that the recipe wrote.

    ``published`` is set if the run measures a checkpoint that somebody else quantized, and ``server`` if it measures
    what a server of the user's serves. ``stack`` is set if the recipe overrides the method's own environment.
    """

    name: str
    version: int
    params: Mapping[str, Scalar]
    label: str
    stage: Stage
    published: ModelRef | None = None
    stack: str | None = None
    server: ServerRef | None = field(default=None, metadata=ABSENT_AT_DEFAULT)

    @property
    def given(self) -> dict[str, Scalar]:
        """All parameters, also those that are no part of the identity."""
        own = self.server
        return dict(self.params) if own is None else {**self.params, "url": own.url, "api_key_env": own.api_key_env}

    @property
    def endpoint(self) -> Endpoint | None:
        """The user's server with the name of its model; None if the variant is loaded here."""
        own = self.server
        return None if own is None else Endpoint(own.url, str(self.params["model"]), api_key_env=own.api_key_env)

    @cached_property
    def content_id(self) -> str:
        """A digest that is equal for equal methods."""
        return digest(self.identity)

    @property
    def identity(self) -> list[Any]:
        """Equal for equal methods. A published checkpoint is compared by content, not by location."""
        chosen = [self.name, self.published.content] if self.published else [self.name, dict(self.params)]
        return [*chosen, self.stack] if self.stack else chosen


def model_identity(model: ModelRef) -> list[Any]:
    """Equal for equal models: content, the dtype to run in, and how the model was prepared."""
    return [model.content, model.dtype, model.degrid, dict(model.config), model.seed]
