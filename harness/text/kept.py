"""What is kept of texts in the artifact cache because all runs of a sweep would compute the same of them.

An entry is named after the content that it depends on. It is one sealed JSON file. One that is damaged counts as
absent, and is replaced by what is then computed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.foreign import MAX_JSON_VALUES
from harness.core.site import MAX_SEALED_BYTES
from harness.errors import ResultsError
from harness.storage.disk import Disk
from harness.storage.folder_seal import read_sealed_json, with_seal

MIN_TEXT_BYTES = 2**19
"""Less text is tokenized in less time than it takes to know a tokenizer of 128,000 entries by its content, or little
more: docs/measurements/overhead.md."""
MAX_FOLDER_BYTES = 2**29
"""All entries of a folder together; the oldest are deleted."""
TOKEN = np.dtype("<i4")


@dataclass(frozen=True)
class KeptTexts:
    """A folder of the cache with entries by key."""

    disk: Disk
    folder: Path

    def read(self, key: str) -> Mapping[str, Any] | None:
        """The content of an entry; None if there is none, or if it is not as it was written."""
        try:
            kept = read_sealed_json(self._path(key), MAX_SEALED_BYTES)
        except ResultsError:
            return None
        return kept if kept.get("key") == key else None

    def write(self, key: str, content: Mapping[str, Any]) -> None:
        """Writes an entry if it is not too large to be read again, and makes room for it. Does nothing if it cannot."""
        entry = json.dumps(with_seal({"key": key, **content})).encode()
        if len(entry) <= MAX_SEALED_BYTES and entry.count(b",") <= MAX_JSON_VALUES // 2:
            with suppress(OSError):  # then the next run computes it again
                self.disk.write_whole(self._path(key), entry)
                self._evict()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _evict(self) -> None:
        """Deletes the oldest entries until the rest take MAX_FOLDER_BYTES at most."""
        found = ((path, path.stat()) for path in self.folder.glob("*.json"))
        taken = 0
        for path, status in sorted(found, key=lambda each: -each[1].st_mtime_ns):
            taken += status.st_size
            if taken > MAX_FOLDER_BYTES:
                self.disk.remove(path)


def tokenizer_sha256(tokenizer: Any) -> str | None:
    """A hash of all that a tokenizer of transformers does to a text; None for one that runs code of its own."""
    kind = type(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not kind.__module__.startswith("transformers.") or backend is None:
        return None
    try:
        whole = backend.to_str()
    except Exception:  # noqa: BLE001 - it raises just this for a part that is written in Python
        return None
    named = [kind.__qualname__, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens]
    return sha256(json.dumps([named, whole]).encode()).hexdigest()


def packed(rows: Sequence[Sequence[int]]) -> Mapping[str, Any]:
    """Rows of tokens as parts of an entry."""
    flat = np.fromiter(chain.from_iterable(rows), TOKEN)
    return {"lengths": [len(row) for row in rows], "tokens": base64.b64encode(flat.tobytes()).decode()}


def unpacked(entry: Mapping[str, Any]) -> list[list[int]]:
    """The rows of tokens that ``packed`` made a part of an entry."""
    ends = np.cumsum(entry["lengths"]).tolist()
    ids = np.frombuffer(base64.b64decode(entry["tokens"]), TOKEN).tolist()
    return [ids[end - length : end] for end, length in zip(ends, entry["lengths"], strict=True)]
