"""A model's configuration as GGUF metadata for llama.cpp, and the weights that llama.cpp stores differently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import UnsupportedError
from harness.numerics.traffic import routing

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter

Config = Mapping[str, Any]
SLIDING_ROPE_BASE = 10000.0
"""Gemma 3's rotary base in sliding-window layers: llama.cpp supports no other."""
GEMMA_LARGEST = {"gemma2": 46, "gemma3_text": 62}
"""Layers of the 27B models, for which llama.cpp does not derive the attention scale from the head width."""


@dataclass(frozen=True)
class Architecture:
    """A model type as llama.cpp implements it.

    ``paired`` models rotate neighbouring columns of a head, whereas transformers rotates its halves, so the rows
    of query and key must be reordered; ``norm_shift`` is added to the weights of norms. A ``mixture`` has experts in
    every layer, and the weights of a token's experts sum to 1.
    """

    name: str
    activations: tuple[str, ...] = ("silu",)
    paired: bool = False
    norm_shift: float = 0.0
    windowed: bool = False
    mixture: bool = False


GELU = ("gelu_pytorch_tanh", "gelu")
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", paired=True),
    "mistral": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "mixtral": Architecture("llama", paired=True, mixture=True),
    "qwen3_moe": Architecture("qwen3moe", mixture=True),
    "gemma": Architecture("gemma", GELU, norm_shift=1.0),
    "gemma2": Architecture("gemma2", GELU, norm_shift=1.0, windowed=True),
    "gemma3_text": Architecture("gemma3", GELU, norm_shift=1.0, windowed=True),
}
"""By ``model_type`` in config.json."""


def architecture(config: Config) -> Architecture:
    """Raises UnsupportedError for a model that llama.cpp would compute differently."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"gguf: no conversion of {kind} models is known here; known: {known}")
    found = ARCHITECTURES[kind]
    act = config.get("hidden_activation") or config.get("hidden_act")
    if act not in found.activations:
        usual = found.activations[0]
        raise UnsupportedError(f"gguf: llama.cpp's {found.name} models have the activation {usual}, not {act}")
    if (config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedError("gguf: rotary embeddings of a part of each head are not converted")
    if kind in GEMMA_LARGEST:
        _refuse_scale(config, GEMMA_LARGEST[kind])
    if found.mixture:
        _refuse_routing(config, kind)
    return found


def _refuse_routing(config: Config, kind: str) -> None:
    """Raises UnsupportedError unless tokens are routed as in llama.cpp, in every layer."""
    if routing(config) is None:
        raise UnsupportedError("gguf: the configuration does not say how many experts there are and are used")
    if kind == "qwen3_moe" and not config.get("norm_topk_prob", False):
        raise UnsupportedError(
            "gguf: norm_topk_prob is false, and llama.cpp makes the weights of a token's experts sum to 1"
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise UnsupportedError("gguf: some layers have no experts; llama.cpp's have them in every layer")


def _refuse_scale(config: Config, largest: int) -> None:
    """Raises UnsupportedError unless the attention scale is the one that llama.cpp derives from the model's shape."""
    heads = config["num_attention_heads"]
    implied = config["hidden_size"] / heads if config["num_hidden_layers"] == largest else head_width(config)
    if config.get("query_pre_attn_scalar", implied) != implied:
        raise UnsupportedError(
            f"gguf: query_pre_attn_scalar {config['query_pre_attn_scalar']}; llama.cpp would take {implied:g}"
        )


def head_width(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def write_fields(writer: GGUFWriter, config: Config, found: Architecture) -> None:
    """Writes a model's sizes and constants. Raises UnsupportedError for rotary scaling that llama.cpp lacks."""
    width, heads = head_width(config), int(config["num_attention_heads"])
    writer.add_context_length(context_length(config, found))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if found.windowed:
        writer.add_sliding_window(config["sliding_window"])
    experts = routing(config) if found.mixture else None
    if experts is not None:
        writer.add_expert_count(experts.experts)
        writer.add_expert_used_count(experts.active)
    if found.mixture and "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    _write_rope(writer, config, found)


def context_length(config: Config, found: Architecture) -> int:
    """The model's maximum context; if llama.cpp does not support its sliding window, at most the window."""
    longest = int(config["max_position_embeddings"])
    used = config.get("use_sliding_window", True) and config.get("sliding_window")
    return min(longest, int(used)) if used and not found.windowed else longest


def rope(config: Config) -> dict[str, Any]:
    """Rotary base and scaling, as written by transformers 5 or 4, for layers with full attention."""
    held = dict(config.get("rope_parameters") or {})
    if isinstance(held.get("full_attention"), dict):
        sliding = held.get("sliding_attention") or {}
        if sliding.get("rope_theta", SLIDING_ROPE_BASE) != SLIDING_ROPE_BASE:
            raise UnsupportedError(f"gguf: a rotary base of {sliding['rope_theta']} in layers with a window")
        held = dict(held["full_attention"])
    if not held:
        scaling = config.get("rope_scaling") or {}
        held = {"rope_theta": config.get("rope_theta", 10000.0), **scaling}
    held.setdefault("rope_type", held.pop("type", "default"))
    return held


def _write_rope(writer: GGUFWriter, config: Config, found: Architecture) -> None:
    from gguf import RopeScalingType

    held = rope(config)
    writer.add_rope_freq_base(held["rope_theta"])
    kind = held["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(held["factor"])
    elif kind == "yarn" and not held.keys() - {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(held["factor"])
        writer.add_rope_scaling_orig_ctx_len(
            held.get("original_max_position_embeddings") or config["max_position_embeddings"]
        )
    elif kind != "default" and not (kind == "llama3" and found.name == "llama"):
        raise UnsupportedError(f"gguf: rotary scaling {kind!r} of {found.name} models is not converted")


def rope_factors(config: Config) -> list[float] | None:
    """The divisor of each rotary frequency in Llama 3.1's scaling, (width / 2,); None without that scaling.

    Wavelengths below the original length over ``high_freq_factor`` are unchanged, those above it over
    ``low_freq_factor`` are divided by ``factor``, and between them the inverse is interpolated, as in transformers.
    """
    held = rope(config)
    if held["rope_type"] != "llama3":
        return None
    width, original = head_width(config), held["original_max_position_embeddings"]
    low, high, factor = held["low_freq_factor"], held["high_freq_factor"], held["factor"]
    factors = []
    for index in range(0, width, 2):
        wavelength = 2 * math.pi * held["rope_theta"] ** (index / width)
        smooth = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def adapted(name: str, weight: torch.Tensor, config: Config, found: Architecture) -> torch.Tensor:
    """A tensor of the checkpoint as llama.cpp stores it."""
    if found.norm_shift and name.endswith("norm.weight"):
        return weight.float() + found.norm_shift
    if found.paired and (".q_proj." in name or ".k_proj." in name):
        heads = int(config["num_attention_heads"])
        return paired(weight, heads if ".q_proj." in name else int(config.get("num_key_value_heads") or heads))
    return weight


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleaves the two halves of each head's rows: (outputs, …) in and out."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
