"""Shapes of a checkpoint's tensors, read only from its headers: no weights, no torch."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import SourceError

SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOAT_TYPES = frozenset({"F32", "F16", "BF16", "F64"})
"""Unquantized types, as both formats name them."""
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja"),
)
"""The files of a checkpoint's tokenizer, as patterns."""
KNOWN_LAYOUTS = ("granite", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose parameters ``synthetic`` derives without transformers."""
GGUF = ".gguf"
GGUF_FILE = "model.gguf"
"""The name of a GGUF file in a folder of the cache."""


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
    return [
        Tensor(name, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for file in weight_files(folder)
        for name, entry in safetensors(file).items()
    ]


def read_directory(folder: Path) -> Header:
    """The header of a transformers checkpoint. Raises SourceError if it holds no safetensors weights."""
    return header_of(read_config(folder), tensors(folder))


def header_of(config: dict[str, Any], held: Iterable[Tensor]) -> Header:
    """The header of a checkpoint with this configuration and these tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: Counter[str] = Counter()
    for tensor in held:
        shapes[tensor.name] = tensor.shape
        dtypes[tensor.dtype] += math.prod(tensor.shape)
    stored = SAFETENSORS_DTYPES.get(dtypes.most_common(1)[0][0], "float32") if dtypes else "float32"
    quantization = config.get("quantization_config") or {}
    return Header(
        shapes,
        config.get("max_position_embeddings"),
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
        shards = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
        lacking = [shard.name for shard in shards if not shard.exists()]
        if not shards or lacking:
            raise SourceError(f"{folder}: its index names weights that are not there: {', '.join(lacking) or 'none'}")
        return shards
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    found = sorted(path.name for path in folder.glob("*.bin"))
    hint = f" (found {', '.join(found)}: pickled weights are not loaded)" if found else ""
    raise SourceError(f"{folder}: no .safetensors weights{hint}")


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json. Raises SourceError if it is missing or not a JSON mapping."""
    if not (folder / "config.json").exists():
        raise SourceError(f"{folder}: no config.json; is it a model's folder?")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON mapping. Raises SourceError if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path}: not a mapping")
    return content


def synthetic(config: dict[str, Any]) -> Header | None:
    """The shapes of a Llama-like model from its configuration; None for another architecture or if a size is missing.

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


def safetensors(file: Path) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each tensor: the JSON behind the first eight bytes, as the format defines it."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        if not all({"shape", "dtype", "data_offsets"} <= entry.keys() for entry in header.values()):
            raise ValueError("a tensor without shape, dtype or place")
        return header
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{file}: not a whole safetensors file: {error}") from None
