"""Shapes of a checkpoint's tensors, read only from its headers: no weights, no torch."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.foreign import MAX_JSON_VALUES, parse_json, quoted, read_file, shown
from harness.errors import SourceError
from harness.models import config as configurations
from harness.models import safetensors
from harness.models.redirects import refuse_redirects

SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOAT_TYPES = frozenset({"F32", "F16", "BF16", "F64"})
"""Unquantized types, as both formats name them."""
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja"),
)
"""The files of a checkpoint's tokenizer, as patterns; with none of the first kind there is no tokenizer."""
KNOWN_LAYOUTS = ("granite", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose parameters ``synthetic`` derives without transformers."""
GGUF = ".gguf"
GGUF_FILE = "model.gguf"
"""The name of a GGUF file in a folder of the cache."""
MAX_JSON_BYTES = 64 * 2**20
"""Of a checkpoint's JSON file: an index of ``MAX_TENSORS`` has 55 MB, the largest tokenizer 35 MB."""
MAX_TOKENIZER_VALUES = 10_000_000
"""In a tokenizer.json, which only workers read; that of Gemma 3 has 1.8 million."""
MAX_TENSORS = 500_000
"""Of a checkpoint in all its files; the largest published ones have 150,000."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a tokenizer."""
    return any(folder.glob(TOKENIZER_FILES[0]))


@dataclass(frozen=True)
class Header:
    """Names and shapes of all tensors; a shape's last number is the input width.

    ``quantization`` names the format of a natively quantized checkpoint's matrices, and ``dtype`` the dtype in which
    it is loaded unless a recipe sets another; None if there is no header to read.
    ``unreadable_tokenizer`` is why a GGUF file's tokenizer cannot be read correctly, None if it can.
    """

    shapes: dict[str, tuple[int, ...]]
    context_length: int | None
    quantization: str | None
    dtype: str | None
    model_type: str | None = None
    unreadable_tokenizer: str | None = None


@dataclass(frozen=True)
class Tensor:
    """One tensor as a safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def tensors(folder: Path) -> list[Tensor]:
    """Every tensor of a checkpoint. Raises SourceError if it holds no safetensors weights."""
    found: list[Tensor] = []
    for file in weight_files(folder):
        held = safetensors.read(file)
        if len(found) + len(held) > MAX_TENSORS:
            raise SourceError(f"{shown(folder)}: more than {MAX_TENSORS} tensors, the most that a checkpoint may have")
        found += (Tensor(name, each.dtype, each.shape, each.end - each.begin) for name, each in held.items())
    return found


def read_directory(folder: Path) -> Header:
    """The header of a transformers checkpoint.

    Raises SourceError if it holds no safetensors weights, or makes transformers read more than them.
    """
    config = read_config(folder)
    refuse_redirects(folder, config)
    return header_of(config, tensors(folder))


def header_of(config: dict[str, Any], held: Iterable[Tensor]) -> Header:
    """The header of a checkpoint with this configuration and these tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: Counter[str] = Counter()
    for tensor in held:
        shapes[tensor.name] = tensor.shape
        dtypes[tensor.dtype] += math.prod(tensor.shape)
    stored = SAFETENSORS_DTYPES.get(dtypes.most_common(1)[0][0], "float32") if dtypes else "float32"
    quantization = config.get("quantization_config") or {}
    text = config.get("text_config") or {}
    return Header(
        shapes,
        config.get("max_position_embeddings") or text.get("max_position_embeddings"),
        quantization.get("quant_method"),
        str(config.get("dtype") or config.get("torch_dtype") or stored),
        config.get("model_type"),
    )


def weight_files(folder: Path) -> list[Path]:
    """The files to load: a GGUF file, the shards of transformers' index, or model.safetensors.

    Raises SourceError if any are missing.
    """
    if folder.suffix == GGUF:
        return [folder]
    if (folder / GGUF_FILE).exists():
        return [folder / GGUF_FILE]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = [folder / name for name in _indexed(index)]
        lacking = [shard.name for shard in shards if not shard.exists()]
        if not shards or lacking:
            raise SourceError(
                f"{shown(folder)}: its index names weights that are not there: {_first(lacking) or 'none'}; "
                "fetch the checkpoint again"
            )
        return shards
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    found = sorted(path.name for path in folder.glob("*.bin"))
    hint = f" (found {_first(found)}: pickled weights are not loaded)" if found else ""
    raise SourceError(f"{shown(folder)}: no .safetensors weights{hint}")


def _indexed(index: Path) -> list[str]:
    """The names of the files that an index lists: plain names in its own folder. Raises SourceError for others."""
    listed = read_json(index).get("weight_map", {})
    if not isinstance(listed, dict):
        raise SourceError(f"{shown(index)}: weight_map must map tensors to files")
    for name in listed.values():
        plain = isinstance(name, str) and name.endswith(".safetensors") and name.isprintable() and "/" not in name
        if not plain or name.startswith(".") or len(os.fsencode(name)) > 255:
            raise SourceError(
                f"{shown(index)}: weight_map names {quoted(name)}; expected a .safetensors file beside it"
            )
    return sorted(set(listed.values()))


def _first(names: list[str]) -> str:
    """The first names, for a message."""
    return ", ".join(name if name.isprintable() else quoted(name) for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json. Raises SourceError if it is missing or a field in it is wrong."""
    if not (folder / "config.json").exists():
        raise SourceError(f"{shown(folder)}: no config.json; is it a model's folder?")
    return read_config_file(folder / "config.json")


def read_config_file(path: Path) -> dict[str, Any]:
    """A model's configuration. Raises SourceError if it is no JSON mapping or a field in it is wrong."""
    config = read_json(path)
    configurations.check(config, shown(path))
    return config


def end_tokens(folder: Path) -> set[int]:
    """The tokens with which a checkpoint's model ends a text, by its configurations. Raises as ``read_json``."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = read_json(folder / name).get("eos_token_id") if (folder / name).exists() else None
        found |= {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)}
    return found


def read_json(path: Path, limit_values: int = MAX_JSON_VALUES) -> dict[str, Any]:
    """A file's JSON mapping. Raises SourceError if it holds none, or more than ``limit_values`` values."""
    raw = read_file(path, MAX_JSON_BYTES, SourceError)
    content = parse_json(raw, f"{shown(path)}: cannot be read", SourceError, limit_values)
    if not isinstance(content, dict):
        raise SourceError(f"{shown(path)}: not a mapping")
    return content


def synthetic(config: dict[str, Any]) -> Header | None:
    """The shapes of a Llama-like model from a checked configuration; None for another architecture or a missing size.

    Biases and norms are those of transformers' llama, mistral, granite, qwen2 (query, key and value have a bias) and
    qwen3 (queries and keys have a norm).
    """
    if config.get("model_type") not in KNOWN_LAYOUTS:
        return None
    try:
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        vocabulary = int(config["vocab_size"])
        head = int(config.get("head_dim") or hidden // heads)
        keys = int(config.get("num_key_value_heads") or heads) * head
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        parts = {
            "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, heads * head),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
        shapes |= {
            f"model.layers.{layer}.{name}.bias": shape[:1] for name, shape in parts.items() if _has_bias(config, name)
        }
        norms = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        if config.get("model_type") == "qwen3":
            norms |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in norms.items()}
    return Header(shapes, config.get("max_position_embeddings"), None, "float32", config.get("model_type"))


def _has_bias(config: dict[str, Any], name: str) -> bool:
    """Whether a layer of a Llama-like model has a bias; in qwen2 it is implicit."""
    if name.startswith("mlp."):
        return bool(config.get("mlp_bias", False))
    if config.get("model_type") == "qwen2":
        return name != "self_attn.o_proj"
    return bool(config.get("attention_bias", False))
