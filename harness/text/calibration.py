"""Calibration sets: made once, so that every calibrated method and library gets the same token ids.

The usual amounts are 128 sequences of 2,048 tokens for GPTQ (Frantar et al., arXiv:2210.17323, section 4)
and 128 of 512 for AWQ (its published code).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.core.foreign import parse_json, read_file
from harness.core.method import CalibrationSet
from harness.core.workload import CalibrationRef
from harness.errors import DamagedError, ResultsError, UnsupportedError
from harness.text.sources import rows

VERSION = 1
"""Increased whenever the way a text becomes samples changes."""
FILE = "calibration.json"
MAX_BYTES = 2**28
"""The largest file that is read: about 40 million token ids."""
JOINER = "\n\n"
LITTLE_TOKENS = 32_768
"""With fewer tokens, results depend on which samples are drawn: half of AWQ's usual amount, an eighth of GPTQ's."""


def build(ref: CalibrationRef, tokenizer: Any) -> CalibrationSet:
    """The calibration set for a tokenizer. Raises UnsupportedError if the text is too short for one sample."""
    documents = [row for row in rows(ref.text) if row.strip()]
    if ref.chat_template:
        documents = [_as_chat(document, tokenizer) for document in documents]
    bos = _bos(ref, tokenizer, documents)
    room = ref.length - len(bos)
    draw = random.Random(ref.seed)
    if ref.packing == "concat":
        found = _concat(documents, room, ref, tokenizer, draw)
    else:
        draw.shuffle(documents)
        cut = _crop(documents, room, tokenizer, draw) if ref.packing == "crop" else _first(documents, room, tokenizer)
        found = [sample for sample, _ in zip(cut, range(ref.samples), strict=False)]
    if not found:
        raise UnsupportedError(
            f"calibration text {ref.text.id!r} is too short for one sample of {ref.length} tokens; name a longer text"
        )
    padding = _padding(tokenizer)
    lengths = [len(bos) + len(sample) for sample in found]
    tokens = [[*bos, *sample] + [padding] * (room - len(sample)) for sample in found]
    return CalibrationSet(tokens, lengths, digest(tokens, lengths))


def digest(tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> str:
    """The sha256 of token ids and lengths."""
    return hashlib.sha256(json.dumps([tokens, lengths]).encode()).hexdigest()


def save(calibration: CalibrationSet, folder: Path) -> None:
    """Writes plain JSON, so that an environment without this one's libraries reads the same ids."""
    content = {"sha256": calibration.sha256, "lengths": calibration.lengths, "tokens": calibration.tokens}
    (folder / FILE).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path) -> CalibrationSet:
    """Reads what ``save`` wrote. Raises DamagedError if it cannot be read, or its ids do not match their hash."""
    damage = DamagedError(f"{folder}: damaged; delete it and run the recipe again")
    try:
        raw = read_file(folder / FILE, MAX_BYTES, ResultsError)
        content = parse_json(raw, FILE, ResultsError, limit_values=MAX_BYTES)
    except ResultsError:
        raise damage from None
    if not isinstance(content, dict) or content.keys() != {"sha256", "lengths", "tokens"}:
        raise damage
    if digest(content["tokens"], content["lengths"]) != content["sha256"]:
        raise damage
    return CalibrationSet(content["tokens"], content["lengths"], content["sha256"])


def _concat(documents: list[str], room: int, ref: CalibrationRef, tokenizer: Any, draw: random.Random) -> list[Any]:
    """Blocks of the joined text, drawn without replacement and kept in text order."""
    joined = documents if ref.chat_template else [JOINER.join(documents)]
    ids = [token for document in joined for token in _ids(document, tokenizer)]
    blocks = [ids[start : start + room] for start in range(0, len(ids) - room + 1, room)]
    chosen = sorted(draw.sample(range(len(blocks)), min(ref.samples, len(blocks))))
    return [blocks[index] for index in chosen]


def _crop(documents: list[str], room: int, tokenizer: Any, draw: random.Random) -> Iterator[list[int]]:
    """A span at a random position from each row that is long enough."""
    for document in documents:
        ids = _ids(document, tokenizer)
        if len(ids) >= room:
            start = draw.randint(0, len(ids) - room)
            yield ids[start : start + room]


def _first(documents: list[str], room: int, tokenizer: Any) -> Iterator[list[int]]:
    """The beginning of each row."""
    for document in documents:
        yield _ids(document, tokenizer)[:room]


def _ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _as_chat(document: str, tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise UnsupportedError("calibration wants the chat template, and the model's tokenizer has none")
    message = [{"role": "user", "content": document}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=False))


def _bos(ref: CalibrationRef, tokenizer: Any, documents: list[str]) -> list[int]:
    """The tokens that every sample begins with: BOS or none; none if the chat template already wrote BOS."""
    token = tokenizer.bos_token_id
    if ref.bos == "never" or (ref.bos == "auto" and (token is None or tokenizer("a")["input_ids"][0] != token)):
        return []
    if token is not None and documents and documents[0].startswith(tokenizer.bos_token):
        return []
    if token is None:
        raise UnsupportedError("calibration wants BOS in every sample, and the model's tokenizer has none")
    return [int(token)]


def _padding(tokenizer: Any) -> int:
    """The padding token; padding is masked, so any token works."""
    return next((int(t) for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
