"""Moves weights off a coarse grid without changing what the model computes.

A dequantized GGUF lies on the grid of its format, so a method with the same grid appears lossless on it. Multiplying
one side of a pair by random factors and dividing the other by the same factors moves the weights off the grid and
leaves the function unchanged. The pairs are a norm's gain and the columns that read it, the rows of v and the columns
of o, and the rows of up and the columns of down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.layers import layer_of
from harness.errors import UnsupportedError
from harness.models.headers import Header

if TYPE_CHECKING:
    import torch

SPREAD = 1 / 8
"""Factors are 2^u, u uniform within ±SPREAD: enough to leave a 4-bit grid, too little to make quantization harder."""
KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose norms multiply by a plain gain and whose MLP is ``down(act(gate) · up)``."""
_NORMS = ("input_layernorm", "post_attention_layernorm")
_LINEARS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
NEEDED = frozenset(f"{name}.weight" for name in (*_NORMS, *_LINEARS))
"""The parameters that every layer must have."""
ALLOWED = NEEDED | {
    *(f"{name}.bias" for name in _LINEARS),  # v's and up's are scaled with their rows; the others do not change
    *(f"self_attn.{name}_norm.weight" for name in "qk"),  # after the rescaled layers; their inputs do not change
    "self_attn.rotary_emb.inv_freq",  # a constant that old checkpoints keep
}
"""The parameters that a layer may have: nothing else reads what is rescaled."""
GGUF_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def obstacle(header: Header, packed: str | None = None) -> str | None:
    """Why a model with this header cannot be degridded, or None; ``packed`` is the format that it is loaded in.

    Returns None for a header without tensors (of a model that is not fetched yet).
    """
    if not header.shapes:
        return None
    if packed is not None:
        return f"degrid moves floating-point weights; this checkpoint is loaded as {packed}"
    layers: dict[str, set[str]] = {}
    for name in header.shapes:
        if layer := layer_of(name):
            part, _, own = name.removeprefix(f"{layer}.").rpartition(".")
            layers.setdefault(layer, set()).add(f"{GGUF_NAMES.get(part, part)}.{own}".lstrip("."))
    return _unknown(header.model_type, layers.values())


def _unknown(model_type: str | None, layers: Iterable[Iterable[str]]) -> str | None:
    """Why a model cannot be rescaled, or None: ``layers`` holds the names of each layer's parameters."""
    if model_type not in KNOWN:
        return f"degrid knows {', '.join(sorted(KNOWN))}, not {model_type}; leave 'degrid' out"
    held = [set(parts) for parts in layers]
    strange = sorted(set().union(*held) - ALLOWED)
    if strange:
        return f"degrid does not know layers of {model_type} that hold {', '.join(strange[:3])}; leave 'degrid' out"
    lacking = sorted(NEEDED - held[0].intersection(*held[1:])) if held else sorted(NEEDED)
    return f"degrid does not know layers without {', '.join(lacking[:3])}; leave 'degrid' out" if lacking else None


@dataclass(frozen=True)
class Factors:
    """What a layer's weights are multiplied or divided by: one factor for each feature of its two norms, each row of v
    and each row of up."""

    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    value: torch.Tensor
    inner: torch.Tensor


def draw_factors(model: Any, seed: int) -> list[Factors]:
    """The factors of each layer of a transformers model. Raises UnsupportedError for an unknown architecture."""
    import torch

    config = model.config
    layers = getattr(model.get_decoder(), "layers", ())
    why = _unknown(config.model_type, [[name for name, _ in layer.named_parameters()] for layer in layers])
    if why:
        raise UnsupportedError(why)
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> torch.Tensor:
        return torch.exp2((torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1) * SPREAD)

    return [
        Factors(
            draw(config.hidden_size),
            draw(config.hidden_size),
            draw(layer.self_attn.v_proj.out_features),
            draw(layer.mlp.up_proj.out_features),
        )
        for layer in layers
    ]


def rescale(layer: Any, factors: Factors, config: Any) -> None:
    """Multiplies and divides a layer's weights by its factors, in place."""
    import torch

    attention, mlp = layer.self_attn, layer.mlp
    with torch.no_grad():
        _exchange(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], factors.attention_norm)
        _exchange(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], factors.mlp_norm)
        _rows(attention.v_proj, factors.value)
        _columns(attention.o_proj, 1 / _per_query_head(factors.value, config, attention.head_dim))
        _rows(mlp.up_proj, factors.inner)
        _columns(mlp.down_proj, 1 / factors.inner)


def _per_query_head(value: torch.Tensor, config: Any, head: int) -> torch.Tensor:
    """Factors of the key-value heads, repeated for the query heads that share them."""
    groups = config.num_attention_heads // config.num_key_value_heads
    return value.reshape(-1, head).repeat_interleave(groups, dim=0).reshape(-1)


def _exchange(norm: Any, readers: list[torch.nn.Linear], factor: torch.Tensor) -> None:
    _scale(norm.weight, 1 / factor)
    for reader in readers:
        _columns(reader, factor)


def _columns(linear: torch.nn.Linear, factor: torch.Tensor) -> None:
    _scale(linear.weight, factor)


def _rows(linear: torch.nn.Linear, factor: torch.Tensor) -> None:
    _scale(linear.weight, factor.unsqueeze(1))
    if linear.bias is not None:
        _scale(linear.bias, factor)


def _scale(parameter: torch.Tensor, factor: torch.Tensor) -> None:
    """Scales in float64, so that only the final cast rounds."""
    parameter.copy_((parameter.double() * factor.to(parameter.device)).to(parameter.dtype))
