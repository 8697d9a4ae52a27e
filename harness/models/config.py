"""Validates a checkpoint's configuration: the types and bounds of the fields that the harness uses.

A configuration may come from anybody, and its sizes decide how much is computed from it. Fields that only a library
reads are left to that library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.foreign import quoted
from harness.errors import SourceError
from harness.numerics.traffic import ACTIVE_COUNTS, EXPERT_COUNTS

MAX_SIZE = 2**31
"""The largest width, vocabulary or context length. No model comes near."""
MAX_LAYERS = 2_000
"""The deepest published language models have fewer than 200."""
MAX_EXPERTS = 2**14
"""Experts of one layer. Doge has as many, of one neuron each; other published models have up to 512."""
MAX_EXPERTS_IN_ALL = 2**19
"""Experts of all layers together: those of Doge in 32 layers."""
MAX_NESTING = 4
"""Configurations inside configurations: a model's text model, and its parts."""
MAX_NAME = 200
"""Characters of a name, such as the model's type."""
SIZES = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size", "n_inner", "vocab_size", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "kv_lora_rank", "global_head_dim", "sliding_window"),
    *("n_embd", "n_head", "n_positions", "d_model", "qk_head_dim", "v_head_dim", *ACTIVE_COUNTS),
)
PER_LAYER = (
    *("intermediate_size", "moe_intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("sliding_window", "moe_num_experts", "moe_topk"),
)
"""Fields that for some models hold a list: a size per layer or per kind of layer."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth")
NAMES = ("model_type", "dtype", "torch_dtype", "quant_method")
MAPPINGS = ("quantization_config", "rope_parameters", "rope_scaling", "text_config")


def check(config: Mapping[str, Any], name: str, nesting: int = 0) -> None:
    """Raises SourceError for a field of the wrong type or out of bounds; ``name`` is the file for the message."""
    if nesting > MAX_NESTING:
        raise SourceError(f"{name}: its configuration is nested more than {MAX_NESTING} levels deep")
    for keys, most in ((SIZES, MAX_SIZE), (LAYERS, MAX_LAYERS), (EXPERT_COUNTS, MAX_EXPERTS)):
        for key in keys:
            _check_size(config.get(key), most, name, key)
    layers, experts = (max(map(_largest, map(config.get, keys))) for keys in (LAYERS, EXPERT_COUNTS))
    if layers * experts > MAX_EXPERTS_IN_ALL:
        raise SourceError(
            f"{name}: {experts} experts in each of {layers} layers; at most {MAX_EXPERTS_IN_ALL} are read"
        )
    for key in NAMES:
        value = config.get(key)
        if value is not None and not (isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()):
            raise _wrong(name, key, value, f"a name of at most {MAX_NAME} characters")
    kinds = config.get("layer_types")
    if kinds is not None and not (
        isinstance(kinds, list) and len(kinds) <= MAX_LAYERS and all(isinstance(each, str) for each in kinds)
    ):
        raise _wrong(name, "layer_types", kinds, f"a list of at most {MAX_LAYERS} names")
    for key in MAPPINGS:
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise _wrong(name, key, config[key], "a mapping")
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            check(value, name, nesting + 1)


def _check_size(value: Any, most: int, name: str, key: str) -> None:
    listed = key in PER_LAYER and isinstance(value, list) and 0 < len(value) <= MAX_LAYERS
    for each in value if listed else (value,):
        if each is not None and not (type(each) is int and 0 <= each <= most):
            raise _wrong(name, key, value, f"a whole number from 0 to {most}")


def _largest(value: Any) -> int:
    """The largest of a checked field's sizes; 0 if it has none."""
    return max((each or 0 for each in value), default=0) if isinstance(value, list) else value or 0


def _wrong(name: str, key: str, value: Any, expected: str) -> SourceError:
    return SourceError(f"{name}: {key} is {quoted(value)}; expected {expected}")
