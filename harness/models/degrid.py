"""Moves weights off a coarse grid without changing what the model computes.

A dequantized GGUF lies on the grid of its format, so that a method which shares that grid looks
lossless on it. Multiplying a norm's gain and dividing the columns that read it, the rows of v and
the columns of o, the rows of up and the columns of down by the same random factors leaves the
function as it was and the grid behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

SPREAD = 1 / 8
"""Factors are 2^u, u uniform within ±SPREAD: enough to leave a 4-bit grid, too little to make the model harder."""
KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose norms multiply by a plain gain and whose MLP is ``down(act(gate) · up)``."""


def degrid(model: Any, seed: int) -> None:
    """Rescales a transformers model in place. Raises UnsupportedError for an architecture it does not know."""
    import torch

    config = model.config
    if config.model_type not in KNOWN:
        raise UnsupportedError(f"degrid knows {', '.join(sorted(KNOWN))}, not {config.model_type}")
    generator = torch.Generator().manual_seed(seed)

    def factors(count: int) -> torch.Tensor:
        return torch.exp2((torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1) * SPREAD)

    with torch.no_grad():
        for layer in model.get_decoder().layers:
            attention, mlp = layer.self_attn, layer.mlp
            hidden = config.hidden_size
            readers = [attention.q_proj, attention.k_proj, attention.v_proj]
            _exchange(layer.input_layernorm, readers, factors(hidden))
            _exchange(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], factors(hidden))
            value = factors(attention.v_proj.out_features)
            _rows(attention.v_proj, value)
            _columns(attention.o_proj, 1 / _per_query_head(value, config, attention.head_dim))
            inner = factors(mlp.up_proj.out_features)
            _rows(mlp.up_proj, inner)
            _columns(mlp.down_proj, 1 / inner)


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
    """In float64, so that only the last rounding is lost."""
    parameter.copy_((parameter.double() * factor.to(parameter.device)).to(parameter.dtype))
