"""What a model is made of: matrices, other parameters by role, and what its key-value cache depends on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import SourceError
from harness.models import headers, hub
from harness.models.gguf.header import read_header, sizes
from harness.models.scope import in_decoder
from harness.models.sources import HUB_ID, package_file

KNOWN_LAYOUTS = ("granite", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose parameters follow from ``config.json`` alone, by ``headers.synthetic``."""
ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|token_embd|word_embeddings|embed_in|tok_embeddings)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.|^output\.weight$")
_EXPERT = re.compile(r"experts|_exps\.")


@dataclass(frozen=True)
class Attention:
    """``windows`` has an entry per layer with a key-value cache: the tokens it keeps at most, or None for all."""

    windows: tuple[int | None, ...]
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class ModelShapes:
    """A model as far as memory goes. Counts are of parameters.

    ``matrices`` are those that the ``decoder`` scope holds (a shape's last numbers are outputs and inputs);
    ``kept`` counts matrices that no method quantizes, such as a router. A tied head has no parameters of its own.
    ``rotary`` counts float32 numbers of the rotary embedding's buffers, which no checkpoint holds.
    """

    label: str
    model_type: str | None
    dtype: str
    context_length: int | None
    matrices: tuple[tuple[int, ...], ...]
    kept: int
    embedding: int
    head: int
    norms: int
    rotary: int
    hidden: int
    inner: int
    vocabulary: int
    attention: Attention
    has_experts: bool = False

    @property
    def decoder(self) -> int:
        return sum(map(math.prod, self.matrices))

    @property
    def parameters(self) -> int:
        return self.decoder + self.kept + self.embedding + self.head + self.norms


def read(model: str, revision: str | None = None) -> ModelShapes:
    """The shapes of a folder, a ``config.json``, a GGUF file, ``synthetic:CONFIG.json``, ``package:…`` or a hub id.

    Raises SourceError where the model is not there, is quantized already, or its shapes cannot be known.
    """
    scheme, _, rest = model.partition(":")
    if scheme == "synthetic" and rest:
        if not rest.endswith(".json"):
            raise SourceError(f"{model!r}: name the configuration of a synthetic model: synthetic:config.json")
        return _from_config(model, headers.read_json(Path(rest)))
    if scheme == "package" and rest:
        return _from_gguf(model, package_file(rest))
    path = Path(model).expanduser()
    if path.is_dir():
        return _from_folder(model, path)
    if path.is_file():
        return _from_gguf(model, path) if path.suffix == ".gguf" else _from_config(model, headers.read_json(path))
    if HUB_ID.match(model) and not model.endswith((".gguf", ".json")):
        config, header = hub.header(model, revision)
        return _from_config(model, config) if header is None else shapes(model, config, header)
    raise SourceError(f"model not found: {model!r} is no file or folder, and no hub id")


def shapes(label: str, config: Mapping[str, Any], header: headers.Header) -> ModelShapes:
    """Sorts a header's tensors by role. ``config`` has the keys of a transformers configuration.

    Raises SourceError for a checkpoint that is quantized already, or whose cache is of another build.
    """
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method")
        raise SourceError(f"{label}: is already quantized ({method}); estimate the model that it was made of")
    text: Mapping[str, Any] = config.get("text_config") or config
    tied = bool(config.get("tie_word_embeddings", False))
    counts = {"kept": 0, "embedding": 0, "head": 0, "norms": 0}
    matrices = []
    for name, shape in header.shapes.items():
        if in_decoder(name, len(shape)):
            matrices.append(shape)
        else:
            role = _role(name, shape)
            counts[role] += 0 if role == "head" and tied else math.prod(shape)
    heads, hidden = attention(label, text), _number(label, text, "hidden_size", "n_embd")
    rotates = not any("position_embeddings" in name or "wpe" in name for name in header.shapes)
    partial = float((text.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0))
    return ModelShapes(
        label=label,
        model_type=header.model_type,
        dtype=header.dtype or "float32",
        context_length=header.context_length,
        matrices=tuple(sorted(matrices)),
        **counts,
        rotary=int(heads.head_dim * partial) if rotates else 0,  # two buffers of half of it each
        hidden=hidden,
        inner=_inner(text, hidden),
        vocabulary=_number(label, text, "vocab_size"),
        attention=heads,
        has_experts=any(_EXPERT.search(name) for name in header.shapes),
    )


def _role(name: str, shape: tuple[int, ...]) -> str:
    if _EMBEDDING.search(name):
        return "embedding"
    if _HEAD.search(name):
        return "head"
    return "kept" if len(shape) >= 2 else "norms"


def _from_folder(label: str, folder: Path) -> ModelShapes:
    config = headers.read_config(folder)
    held = any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").exists()
    return shapes(label, config, headers.read_directory(folder)) if held else _from_config(label, config)


def _from_gguf(label: str, file: Path) -> ModelShapes:
    header = read_header(file)
    return shapes(label, sizes(file), header)


def _from_config(label: str, config: dict[str, Any]) -> ModelShapes:
    kind = config.get("model_type")
    header = headers.synthetic(config) if kind in KNOWN_LAYOUTS else None
    if header is None:
        raise SourceError(
            f"{label}: the parameters of a model of type {kind!r} do not follow from its configuration alone (they do "
            f"for {', '.join(KNOWN_LAYOUTS)} without experts); name a folder with weights, whose headers are read"
        )
    dtype = config.get("dtype") or config.get("torch_dtype") or header.dtype
    return shapes(label, {**config, "dtype": dtype}, headers.with_dtype(header, str(dtype)))


def attention(label: str, config: Mapping[str, Any]) -> Attention:
    """What a configuration says of its attention. Raises SourceError where that is of a kind that is not reckoned."""
    if "kv_lora_rank" in config:
        raise SourceError(f"{label}: the cache of multi-head latent attention is not reckoned yet")
    heads = _number(label, config, "num_attention_heads", "n_head")
    layers = _number(label, config, "num_hidden_layers", "n_layer")
    hidden = _number(label, config, "hidden_size", "n_embd")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    kinds = config.get("layer_types") or ["sliding_attention" if window else "full_attention"] * layers
    if unknown := set(kinds) - ATTENTION_LAYERS:
        raise SourceError(f"{label}: layers of type {', '.join(sorted(unknown))} keep a state that is not reckoned yet")
    return Attention(
        windows=tuple(None if kind == "full_attention" else window for kind in kinds),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
    )


def _inner(config: Mapping[str, Any], hidden: int) -> int:
    """The width between a layer's up and down projections; of a mixture, of all experts that one token meets."""
    experts = config.get("num_experts_per_tok")
    inner = config.get("moe_intermediate_size") if experts else None
    inner = inner or config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    return int(inner) * int(experts or 1)


def _number(label: str, config: Mapping[str, Any], *keys: str) -> int:
    """Raises SourceError where none of the keys holds a positive whole number."""
    found = next((config[key] for key in keys if config.get(key) is not None), None)
    if not isinstance(found, int) or isinstance(found, bool) or found <= 0:
        raise SourceError(f"{label}: its configuration says {found!r} for {keys[0]}, where a positive number must be")
    return found
