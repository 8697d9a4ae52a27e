"""A model's shapes: matrices, other parameters by role, and what its KV cache depends on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.core.foreign import locate, quoted
from harness.core.layers import layer_number
from harness.core.model import Attention, LayerCache, ModelRef
from harness.errors import SourceError
from harness.models import headers, hub
from harness.models.gguf.header import configuration, read_header
from harness.models.native import FORMATS
from harness.models.resolve import Resolved, resolve
from harness.models.scope import holds_experts, in_decoder, reads_other_inputs, shape_of
from harness.models.sources import HUB_ID, SourceModel, package_file
from harness.numerics.traffic import routing

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
UNCLEAR_CACHES = ("kv_lora_rank", "global_head_dim", "num_kv_shared_layers", "multi_query")
"""Keys of a configuration whose layers cache something else than the keys and values of all of their heads."""
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens\w*|wte|token_embd|word_embeddings|embed_in|tok_embeddings|embeddings)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.|^output\.weight$")
_KEYS = re.compile(r"(k_proj|attn_k)\.weight$")
PLAIN_DTYPES = ("float32", "float16", "bfloat16")
NATIVE_BYTES = {
    **{"float32": 4, "bfloat16": 2, "float16": 2},
    **dict.fromkeys(("float8_e4m3fn", "float8_e8m0fnu", "uint8", "int8"), 1),
}
"""Of an element of the codes and scales of native checkpoints."""


@dataclass(frozen=True)
class NativeWeights:
    """A natively quantized checkpoint: ``format`` is its quant_method.

    ``codes`` counts bytes of quantized matrices and their scales, of which ``expert_codes`` are those of a mixture's
    experts. The rest are parameters that it leaves plain: those of the decoder's matrices, and of the other roles.
    """

    format: str
    codes: int
    expert_codes: int
    decoder: int
    kept: int
    embedding: int
    head: int
    norms: int
    other_inputs: int


@dataclass(frozen=True)
class Widths:
    """What the memory of texts depends on: the widths of a token's states, of its logits, and what layers cache."""

    hidden: int
    inner: int
    vocabulary: int
    attention: Attention


@dataclass(frozen=True)
class ModelShapes(Widths):
    """The shapes that determine a model's memory. Counts are of parameters.

    ``matrices`` and ``experts`` form the ``decoder`` scope (a shape's last numbers are outputs and inputs); ``experts``
    are those of a mixture's experts, of which each token uses the fraction ``active_share``. ``kept`` counts matrices
    that no method quantizes, such as a router. A tied head has no parameters of its own. ``rotary`` counts float32
    elements of the rotary embedding's buffers, which no checkpoint holds.

    ``other_inputs`` counts the vision and audio parts of a multimodal model, which are loaded and never quantized;
    ``unloaded`` those of a checkpoint whose text model is loaded without them. ``native`` describes a checkpoint that
    was published quantized: all other counts are of its unpacked parameters.
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
    experts: tuple[tuple[int, ...], ...] = ()
    active_share: float = 1.0
    other_inputs: int = 0
    unloaded: int = 0
    native: NativeWeights | None = None

    @property
    def decoder(self) -> int:
        return sum(map(math.prod, self.matrices)) + self.expert_parameters

    @property
    def expert_parameters(self) -> int:
        return sum(map(math.prod, self.experts))

    @property
    def active(self) -> int:
        """The parameters that one token of text uses: of the experts, those that it is routed to."""
        return self.parameters - self.other_inputs - round(self.expert_parameters * (1 - self.active_share))

    @property
    def parameters(self) -> int:
        return self.decoder + self.kept + self.embedding + self.head + self.norms + self.other_inputs


def read(model: str, revision: str | None = None) -> ModelShapes:
    """The shapes of a folder, a ``config.json``, a GGUF file, ``synthetic:CONFIG.json``, ``package:…`` or a hub id.

    Raises SourceError if the model is missing, already quantized (but for native formats), or of unknown shapes.
    """
    scheme, _, rest = model.partition(":")
    if scheme == "synthetic" and rest:
        if not rest.endswith(".json"):
            raise SourceError(f"{model!r}: name the configuration of a synthetic model: synthetic:config.json")
        return _from_config(model, headers.read_config_file(locate(rest, Path(), SourceError)))
    if scheme == "package" and rest:
        return _from_gguf(model, package_file(rest))
    path = locate(model, Path(), SourceError)
    if path.is_dir():
        return _from_folder(model, path)
    if path.is_file():
        return (
            _from_gguf(model, path) if path.suffix == ".gguf" else _from_config(model, headers.read_config_file(path))
        )
    if HUB_ID.fullmatch(model) and not model.endswith((".gguf", ".json")):
        config, header = hub.header(model, revision)
        return _from_config(model, config) if header is None else shapes(model, config, header)
    raise SourceError(f"model not found: {quoted(model)} is no file or folder, and no hub id")


def shapes(
    label: str, config: Mapping[str, Any], header: headers.Header, resolved: Resolved | None = None
) -> ModelShapes:
    """Sorts a header's tensors by role. ``config`` is the content of ``config.json``; ``resolved`` completes it.

    Of a natively quantized checkpoint the tensors are those that transformers makes of its configuration. Raises
    SourceError for a checkpoint that was quantized otherwise or has an unsupported kind of cache.
    """
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None and method not in FORMATS:
        raise SourceError(f"{label}: is already quantized ({method}); estimate the model that it was made of")
    known = resolved or resolve(label, config)
    held = header.shapes if method is None else known.shapes
    if held is None:
        raise _unbuilt(label, config, known)
    matrices, experts, counts = _by_role(held, known.tied, header.model_type)
    if not matrices and not experts:
        raise SourceError(f"{label}: holds no decoder layers that are known by their names; it cannot be estimated")
    heads, hidden = attention(label, known), _number(label, "hidden_size", known.text.get("hidden_size"))
    _refuse_uneven(label, held, known, heads)
    routed = routing(config) or routing(known.text)  # a class may call what the file says otherwise
    return ModelShapes(
        label=label,
        model_type=header.model_type,
        dtype=_dtype(config, method is not None) or header.dtype or "float32",
        context_length=header.context_length or known.text.get("max_position_embeddings"),
        matrices=tuple(sorted(matrices)),
        **counts,
        rotary=known.rotary or 0,
        hidden=hidden,
        inner=_inner(label, known.text, hidden),
        vocabulary=_number(label, "vocab_size", known.text.get("vocab_size")),
        attention=heads,
        experts=tuple(sorted(experts)),
        active_share=routed.active / routed.experts if routed and experts else 1.0,
        unloaded=known.unloaded,
        native=_native(method, known),
    )


def _by_role(
    held: Mapping[str, tuple[int, ...]], tied: bool, model_type: str | None = None
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], dict[str, int]]:
    """The decoder's matrices, those of its experts, and the number of parameters of every other role."""
    counts = {"kept": 0, "embedding": 0, "head": 0, "norms": 0, "other_inputs": 0}
    matrices, experts = [], []
    for name, shape in held.items():
        if holds_experts(name, len(shape)):
            experts.append(shape_of(name, shape, model_type))
        elif in_decoder(name, len(shape)):
            matrices.append(shape)
        else:
            role = _role(name, shape)
            counts[role] += 0 if role == "head" and tied else math.prod(shape)
    return matrices, experts, counts


def _native(method: str | None, known: Resolved) -> NativeWeights | None:
    """The stored form of a natively quantized checkpoint. What it adds or changes is codes and scales."""
    if method is None or known.native is None or known.shapes is None:
        return None
    plain = {
        name: shape
        for name, (dtype, shape) in known.native.items()
        if known.shapes.get(name) == shape and dtype in PLAIN_DTYPES
    }
    matrices, experts, counts = _by_role(plain, known.tied)
    codes = {
        name: NATIVE_BYTES[dtype] * math.prod(shape)
        for name, (dtype, shape) in known.native.items()
        if name not in plain
    }
    return NativeWeights(
        format=method,
        codes=sum(codes.values()),
        expert_codes=sum(size for name, size in codes.items() if ".experts." in name),
        decoder=sum(map(math.prod, (*matrices, *experts))),
        **counts,
    )


def _unbuilt(label: str, config: Mapping[str, Any], found: Resolved) -> SourceError:
    return SourceError(
        f"{label}: transformers makes no language model of a configuration of type {config.get('model_type')!r}: "
        f"{found.unbuilt}"
    )


def _role(name: str, shape: tuple[int, ...]) -> str:
    if reads_other_inputs(name):
        return "other_inputs"
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
    return shapes(label, configuration(file), read_header(file))


def _from_config(label: str, config: dict[str, Any]) -> ModelShapes:
    found = resolve(label, config)
    if found.shapes is None:
        raise _unbuilt(label, config, found)
    header = headers.Header(found.shapes, None, None, None, config.get("model_type"))
    return shapes(label, config, header, found)


def _dtype(config: Mapping[str, Any], native: bool) -> str | None:
    """The dtype that a configuration states for itself or for its text model; native formats unpack to bfloat16."""
    parts = (config, config.get("text_config") or {})
    stated = (part.get(key) for part in parts for key in ("dtype", "torch_dtype"))
    return next(filter(None, stated), "bfloat16" if native else None)


def attention(label: str, found: Resolved) -> Attention:
    """What each layer caches: as counted in the model, else as its configuration says.

    Raises SourceError if neither is known.
    """
    text = found.text
    heads, hidden = _largest(text.get("num_attention_heads")), _largest(text.get("hidden_size"))
    head_dim = _largest(text.get("head_dim")) or (hidden // heads if heads else 0)
    if values := _largest(text.get("v_head_dim")):
        head_dim = ((_largest(text.get("qk_head_dim")) or head_dim) + values) // 2
    kv_heads = _largest(text.get("num_key_value_heads")) or heads
    if found.caches is not None:
        return Attention(found.caches, heads, kv_heads, head_dim)
    special = [key for key in ("kv_lora_rank", "global_head_dim") if text.get(key)]
    special += sorted(set(found.layer_types) - ATTENTION_LAYERS)
    if special or not found.layer_types:
        why = found.uncounted or "that needs transformers"
        of = f" ({', '.join(special)})" if special else ""
        raise SourceError(f"{label}: its cache{of} was not counted: {why}")
    if found.window is None and set(found.layer_types) - {"full_attention"}:
        raise SourceError(f"{label}: its configuration has sliding-window layers but gives no window size")
    for key, value in (("num_attention_heads", heads), ("head_dim", head_dim)):
        _number(label, key, value)
    windows = (None if kind == "full_attention" else found.window for kind in found.layer_types)
    return Attention(
        tuple(LayerCache(2 * kv_heads * head_dim, window) for window in windows), heads, kv_heads, head_dim
    )


def _largest(value: Any) -> int:
    """A size of a configuration, the largest if it has one per layer; 0 if it has none."""
    sizes = value if isinstance(value, list) else [value]
    return max((size for size in sizes if type(size) is int), default=0)


@dataclass(frozen=True)
class ModelSize:
    """What the time and the files of a model's runs scale with. ``active`` parameters are those that one token uses.

    ``matrices`` counts the decoder's; ``hidden`` is the width of its states, ``vocabulary`` that of its logits, and
    ``heads`` are those of its attention, all 0 if its configuration does not say. ``router_scores`` counts those that a
    mixture's routers give one token, which goes to so many experts (``routed``) in each layer that has some.
    """

    parameters: int
    active: int
    decoder: int
    matrices: int
    hidden: int = 0
    vocabulary: int = 0
    heads: int = 0
    router_scores: int = 0
    routed: int = 0


@lru_cache(maxsize=16)
def size_of(source: SourceModel) -> ModelSize | None:
    """The size of a model from its header and its own configuration; None if it is not yet fetched.

    Every run of a plan asks for it, and a large mixture has 45,000 matrices.
    """
    if not source.matrices:
        return None
    try:
        config = _configuration(source.ref)
    except SourceError:
        config = {}
    text = config.get("text_config") or config
    routed = routing(config)
    held = {name: math.prod(shape) for name, shape in source.matrices.items() if holds_experts(name, len(shape))}
    unused = sum(held.values()) * (1 - routed.active / routed.experts) if routed else 0.0
    parameters = source.decoder_parameters + source.other_parameters
    counts = {key: _largest(text.get(key)) for key in ("hidden_size", "vocab_size", "num_attention_heads")}
    return ModelSize(
        parameters,
        round(parameters - unused),
        source.decoder_parameters,
        len(source.matrices),
        counts["hidden_size"],
        counts["vocab_size"],
        counts["num_attention_heads"],
        routed.experts * len({layer_number(name) for name in held}) if routed else 0,
        round(routed.active) if routed else 0,
    )


def attention_of(source: SourceModel) -> Attention | None:
    """What each layer caches, as far as the model's own configuration says; None if it does not.

    Unlike ``attention`` it does not ask transformers, which takes seconds. A window without ``layer_types`` counts for
    every layer, so that no cache is taken to be larger than it is.
    """
    try:
        config = _configuration(source.ref)
    except SourceError:  # a GGUF file of another architecture than those that are known
        return None
    text = config.get("text_config") or config
    count, window = text.get("num_hidden_layers"), text.get("sliding_window")
    if not isinstance(count, int) or isinstance(window, list):
        return None
    kinds = text.get("layer_types") or ["sliding_attention" if window else "full_attention"] * count
    known = Resolved(dict(text), tuple(kinds), window, tied=False, shapes=None, rotary=None, unbuilt=None)
    try:
        return attention(source.ref.label, known)
    except SourceError:
        return None


@lru_cache(maxsize=64)
def widths_of(source: SourceModel, tokens: int) -> Widths | None:
    """What the memory of texts of at most so many tokens depends on; None if it is not known.

    transformers is asked, which takes seconds the first time, only where the configuration alone does not say what
    layers cache of such texts.
    """
    label = source.ref.label
    try:
        config = {key: value for key, value in _configuration(source.ref).items() if key != "quantization_config"}
        if not config:
            return None
        known = _stated(config.get("text_config") or config, tokens) or resolve(label, config)
        hidden = _number(label, "hidden_size", known.text.get("hidden_size"))
        vocabulary = _number(label, "vocab_size", known.text.get("vocab_size"))
        return Widths(hidden, _inner(label, known.text, hidden), vocabulary, attention(label, known))
    except SourceError:
        return None


def _stated(text: Mapping[str, Any], tokens: int) -> Resolved | None:
    """A text model's configuration as it is, if it says what layers cache of so many tokens; else None."""
    count, kinds, window = text.get("num_hidden_layers"), text.get("layer_types"), text.get("sliding_window")
    slides = window is not None and text.get("use_sliding_window") is not False
    short = not slides or (isinstance(window, int) and tokens <= window)
    if not isinstance(count, int) or any(text.get(key) for key in UNCLEAR_CACHES) or not (kinds or short):
        return None
    if set(kinds or ()) - ATTENTION_LAYERS:
        return None
    kinds = kinds or ["full_attention"] * count
    return Resolved(dict(text), tuple(kinds), window, tied=False, shapes=None, rotary=None, unbuilt=None)


def _configuration(ref: ModelRef) -> Mapping[str, Any]:
    if ref.kind == "synthetic":
        return ref.config
    if not ref.path:
        return {}
    return _gguf_configuration(ref.path, ref.content) if ref.kind == "gguf" else headers.read_config(Path(ref.path))


@lru_cache(maxsize=16)
def _gguf_configuration(path: str, content: str) -> Mapping[str, Any]:
    """A plan asks for it several times, and each time the file's whole vocabulary is read; ``content`` is its hash."""
    return configuration(Path(path))


def _refuse_uneven(label: str, held: Mapping[str, tuple[int, ...]], known: Resolved, heads: Attention) -> None:
    """Raises SourceError if a layer's keys differ in width from those whose cache is known."""
    counted = known.shapes is not None and known.caches is not None
    widths = {shape[0] for _, shape in _keys(known.shapes or {})} if counted else {heads.kv_heads * heads.head_dim}
    for name, shape in _keys(held):
        if widths and shape[0] not in widths:
            raise SourceError(
                f"{label}: {name} gives keys of {shape[0]} numbers, and the configuration says "
                f"{' or '.join(map(str, sorted(widths)))}; the cache of such layers is not estimated yet"
            )


def _keys(held: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The matrices that make a layer's keys, where they are apart from its queries and values."""
    return ((name, shape) for name, shape in held.items() if _KEYS.search(name) and in_decoder(name, len(shape)))


def _inner(label: str, config: Mapping[str, Any], hidden: int) -> int:
    """The width between a layer's up and down projections; in a mixture, of all experts that one token uses."""
    routed = routing(config)
    dense = _largest(config.get("intermediate_size")) or _largest(config.get("n_inner")) or 4 * hidden
    if routed is None:
        return _number(label, "intermediate_size", dense)
    return routed.active * (_largest(config.get("moe_intermediate_size")) or dense)


def _number(label: str, key: str, found: Any) -> int:
    """The value of a key. Raises SourceError unless it is a positive integer."""
    if not isinstance(found, int) or isinstance(found, bool) or found <= 0:
        raise SourceError(f"{label}: its configuration says {quoted(found)} for {key}, where a positive number must be")
    return found
