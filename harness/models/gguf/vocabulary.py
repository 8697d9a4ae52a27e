"""A tokenizer as GGUF metadata, made from its files, for users who give llama.cpp text.

The harness itself gives every engine the same token ids, made by the checkpoint's own tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UnsupportedError
from harness.models.gguf.splits import SPLITS
from harness.models.headers import MAX_TOKENIZER_VALUES, has_tokenizer, read_json

if TYPE_CHECKING:
    from gguf import GGUFWriter

_PATTERNS = {  # a part of the expression that splits text, and llama.cpp's name for the whole
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*": "llama-bpe",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*": "qwen2",
}
UNKNOWN_SPLIT = "default"
SPACE = "▁"


def write_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> str | None:
    """Writes the tokens of a checkpoint's tokenizer.json, or that there are none; returns a note for readers, or None.

    Raises UnsupportedError for a tokenizer that is not byte pair encoding.
    """
    if not (folder / "tokenizer.json").exists():
        if has_tokenizer(folder):
            raise UnsupportedError("gguf: the checkpoint's tokenizer is no tokenizer.json")
        writer.add_tokenizer_model("none")
        return None
    content = read_json(folder / "tokenizer.json", MAX_TOKENIZER_VALUES)
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise UnsupportedError(f"gguf: tokenizers of type {model.get('type')} are not converted")
    tokens, types = _tokens(content, model, size)
    note = None
    if model.get("byte_fallback") and not _of_bytes(content):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(_scores(model, tokens))
        writer.add_add_space_prefix(_prefixes_space(content))
    else:
        writer.add_tokenizer_model("gpt2")
        split = _split(content.get("pre_tokenizer") or {}, bool(model.get("ignore_merges")))
        note = "its way of splitting text is not known: given text, llama.cpp splits it by its default"
        note = note if split == UNKNOWN_SPLIT else None
        writer.add_tokenizer_pre(split)
        writer.add_token_merges([_merge(pair) for pair in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _write_special(writer, folder)
    return note


def _of_bytes(content: Mapping[str, Any]) -> bool:
    """Whether all text is converted to bytes first, so that no byte fallback is needed."""
    return any(part.get("type") == "ByteLevel" for part in _pieces(content.get("pre_tokenizer") or {}))


def _tokens(content: Mapping[str, Any], model: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token and its type, by id; unused ids are filled with placeholders."""
    from gguf import TokenType

    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(TokenType.UNUSED)] * size
    added = {entry["id"]: entry for entry in content.get("added_tokens") or ()}
    for token, index in {**model["vocab"], **{entry["content"]: index for index, entry in added.items()}}.items():
        if index >= size:
            raise UnsupportedError(f"gguf: the tokenizer has token {index}, and the model's vocabulary ends at {size}")
        tokens[index], types[index] = token, int(TokenType.NORMAL)
        if model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            types[index] = int(TokenType.BYTE)
    for index, entry in added.items():
        types[index] = int(TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED)
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = int(TokenType.UNKNOWN)
    return tokens, types


def _merge(pair: str | Sequence[str]) -> str:
    """A merge as llama.cpp reads it: two parts separated by a space; a space within a part is written Ġ."""
    return pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair)


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """The earlier a merge, the higher the score of its token: sentencepiece picks merges by score."""
    ranks = {_merge(pair).replace(" ", ""): rank for rank, pair in reversed(list(enumerate(model["merges"])))}
    return [-float(ranks.get(token, 0)) for token in tokens]


def _prefixes_space(content: Mapping[str, Any]) -> bool:
    """Whether a space is added before the text."""
    held = [content.get("normalizer") or {}, content.get("pre_tokenizer") or {}]
    parts = [part for each in held for part in (each, *(each.get("normalizers") or ()))]
    return any(
        (part.get("type") == "Prepend" and part.get("prepend") == SPACE)
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _split(pre: Mapping[str, Any], whole: bool) -> str:
    """llama.cpp's name for how text is split before merging; ``whole``: pieces that are tokens are not merged."""
    parts = _pieces(pre)
    cuts = takewhile(lambda part: part.get("type") == "Split", parts)
    exactly = tuple((part.get("pattern") or {}).get("Regex") for part in cuts)
    for name, split in SPLITS.items():  # so that a tokenizer built from a GGUF file can be written back into one
        if split.whole == whole and split.oniguruma() == exactly:
            return name
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    expressions = [str((part.get("pattern") or {}).get("Regex", "")) for part in parts if part.get("type") == "Split"]
    for piece, name in _PATTERNS.items():
        if any(f"?{piece}" in each or f"|{piece}" in each for each in expressions):
            return name
    return UNKNOWN_SPLIT


def _pieces(pre: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The steps that split text before merging."""
    return pre.get("pretokenizers") or [pre]


def _write_special(writer: GGUFWriter, folder: Path) -> None:
    """Writes the special tokens' ids, from model and generation configurations, and whether BOS and EOS are added."""
    from transformers import AutoTokenizer

    held: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            held |= {key: value for key, value in read_json(folder / name).items() if value is not None}
    adders = {
        "bos_token_id": writer.add_bos_token_id,
        "eos_token_id": writer.add_eos_token_id,
        "pad_token_id": writer.add_pad_token_id,
    }
    for key, add in adders.items():
        value = held.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and value >= 0:
            add(value)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    around = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and around[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and around[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
