"""Presents a checkpoint saved by transformers 5 to transformers 4, which unmaintained libraries require.

transformers 4 reads such a folder without an error but incorrectly: it ignores ``rope_parameters``, so the rotary base
falls back to 10000 and scaling is dropped; and it fails on the tokenizer's class. Observed with 5.17 and 4.51.3. No
torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UnsupportedError
from harness.models.headers import TOKENIZER_FILES, read_config, read_json

VERSION = 1
"""Increase this with every change of how a checkpoint is presented."""
_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"
_ROPE_NAMES = {
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
}
"""Model types for which transformers 4 has other names for the rotary base and the fraction of rotated columns."""
_LINKED = (
    "*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
    "*.model",
    "*.py",
    "generation_config.json",
)
_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
_TOKENIZER_NOTES = ("backend", "is_local")
"""transformers 5's notes on how the tokenizer was made, which are not settings."""


def view(source: Path, out: Path) -> None:
    """Fills the folder ``out`` with links to the files of ``source`` and with rewritten configurations.

    Raises SourceError if ``source`` has no config.json, UnsupportedError for what transformers 4 cannot express.
    """
    out.mkdir(parents=True, exist_ok=True)
    rewritten = {_CONFIG: model_config(read_config(source))}
    if (source / _TOKENIZER).exists():
        rewritten[_TOKENIZER] = tokenizer_config(read_json(source / _TOKENIZER))
    for file in {file for pattern in _LINKED for file in source.glob(pattern)}:  # a name may fit two patterns
        if file.name not in rewritten:
            (out / file.name).symlink_to(file.resolve())
    for name, content in rewritten.items():
        _write(out / name, content)


def restore(source: Path, out: Path) -> None:
    """Restores the source's own configuration in the checkpoint that a library made from ``view(source, …)``.

    Of the library's config.json, only ``quantization_config`` is kept: transformers 4 has rewritten everything else in
    its own terms. Raises SourceError if either folder has no config.json.
    """
    config = read_config(source)
    written = read_config(out)
    if "quantization_config" in written:
        config["quantization_config"] = written["quantization_config"]
    _write(out / _CONFIG, config)


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration, including nested ones, in the terms of transformers 4.

    Raises UnsupportedError for rotary embeddings that differ between layers or that transformers 4 would compute
    differently.
    """
    result = {
        key: model_config(value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ("dtype", "rope_parameters")
    }
    if config.get("dtype") is not None:
        result["torch_dtype"] = config["dtype"]
    if config.get("rope_parameters"):
        result |= _rope(config)
    return result


def tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration in the terms of transformers 4."""
    result = {key: value for key, value in config.items() if key not in _TOKENIZER_NOTES}
    chosen = result.get("tokenizer_class")
    if chosen is not None:
        result["tokenizer_class"] = _TOKENIZER_CLASSES.get(chosen, chosen)
    if isinstance(result.get("extra_special_tokens"), list):  # transformers 4: a list is additional, a mapping extra
        result["additional_special_tokens"] = result.pop("extra_special_tokens")
    if "model_specific_special_tokens" in result:
        result["extra_special_tokens"] = result.pop("model_specific_special_tokens")
    return result


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta``, ``rope_scaling`` and related keys, from transformers 5's ``rope_parameters``."""
    rope = dict(config["rope_parameters"])
    if all(value is None or isinstance(value, dict) for value in rope.values()):  # one mapping per type of layer
        kinds = [value for value in rope.values() if value is not None]
        if any(kind != kinds[0] for kind in kinds):
            raise UnsupportedError("rotary embeddings that differ between layers cannot be told to transformers 4")
        rope = dict(kinds[0])
    base, share = _ROPE_NAMES.get(str(config.get("model_type")), ("rope_theta", "partial_rotary_factor"))
    result: dict[str, Any] = {}
    for name, key in ((base, "rope_theta"), (share, "partial_rotary_factor")):
        value = rope.pop(key, None)
        if value is not None:
            result[name] = value
    kind = rope.get("rope_type", "default")
    if kind == "yarn":
        rope = _yarn(rope, config.get("max_position_embeddings"))
    elif kind == "longrope":  # transformers 4 reads the original length beside the mapping, in which Phi-3 needs "type"
        rope["type"] = rope.pop("rope_type")
        original = rope.pop("original_max_position_embeddings", None)
        if original is not None:
            result["original_max_position_embeddings"] = original
    if kind != "default":
        result["rope_scaling"] = rope
    return result


def _yarn(rope: dict[str, Any], longest: int | None) -> dict[str, Any]:
    """transformers 4 ignores ``factor`` if the original length is given, and divides the longest length by that."""
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if original is None or factor is None or longest == original * factor:
        return rope
    if longest == original:
        return {key: value for key, value in rope.items() if key != "original_max_position_embeddings"}
    raise UnsupportedError(
        f"YaRN by a factor of {factor} from {original} positions, with max_position_embeddings {longest}: "
        "transformers 4 would take the quotient of the two lengths as the factor"
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.unlink(missing_ok=True)  # if it is a link, its target must not change
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
