"""The subject of a run: an unquantized model and the method applied to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core.identity import Scalar, Stage

MAIN_ENGINE = "transformers"
"""The engine that computes what all engines share: the reference that divergence is measured against."""


@dataclass(frozen=True)
class Attention:
    """``windows`` has an entry per layer with a KV cache: the most tokens that it keeps, or None for all."""

    windows: tuple[int | None, ...]
    heads: int
    kv_heads: int
    head_dim: int


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

    @property
    def altered(self) -> bool:
        """Whether its weights are not stored as they were published."""
        return self.degrid is not None or self.dequantize is not None

    @property
    def needs_preparing(self) -> bool:
        """Whether a checkpoint must first be prepared from it: converted, dequantized, degridded or drawn at random."""
        return self.kind in ("gguf", "synthetic") or self.altered


@dataclass(frozen=True)
class MethodRef:
    """A method with every parameter resolved; ``label`` shows those that the recipe wrote.

    ``published`` is set if the run measures a checkpoint that somebody else quantized. ``stack`` is set if the recipe
    overrides the method's own environment.
    """

    name: str
    version: int
    params: Mapping[str, Scalar]
    label: str
    stage: Stage
    published: ModelRef | None = None
    stack: str | None = None

    @property
    def identity(self) -> list[Any]:
        """Equal for equal methods. A published checkpoint is compared by content, not by location."""
        chosen = [self.name, self.published.content] if self.published else [self.name, dict(self.params)]
        return [*chosen, self.stack] if self.stack else chosen


def model_identity(model: ModelRef) -> list[Any]:
    """Equal for equal models: content, the dtype to run in, and how the model was prepared."""
    return [model.content, model.dtype, model.degrid, dict(model.config), model.seed]
