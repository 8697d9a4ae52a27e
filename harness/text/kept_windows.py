"""Windows of long texts, kept in the artifact cache: all runs of a sweep score the same ones.

An entry is named after the content that it depends on: the text's file, the tokenizer as it is in memory, how the text
is cut, and the versions of what cuts it. It is one sealed JSON file. One that is damaged counts as absent, and is
replaced by the windows that are then cut.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.foreign import MAX_JSON_VALUES
from harness.core.identity import full_digest
from harness.core.metric import Windows
from harness.core.site import MAX_SEALED_BYTES, WINDOWS
from harness.core.workload import PerplexityWorkload, TextRef, text_identity
from harness.errors import ResultsError
from harness.host.machine import installed_version
from harness.storage.cache import Cache
from harness.storage.checksums import file_sha256
from harness.storage.disk import Disk
from harness.storage.folder_seal import read_sealed_json, with_seal
from harness.text.windows import VERSION, cut

LAYOUT = 1
"""Increased whenever the content of an entry changes."""
MIN_TEXT_BYTES = 2**19
"""A shorter text is cut in less time than it takes to know a tokenizer of 128,000 entries by its content, or little
more: docs/measurements/overhead.md."""
MAX_FOLDER_BYTES = 2**29
"""All entries together; the oldest are deleted."""
TOKEN = np.dtype("<i4")


def kept_or_cut(cache: Cache, workload: PerplexityWorkload, tokenizer: Any) -> Windows:
    """The windows of a text as ``cut`` makes them, from the cache if they are there. Raises as ``cut``."""
    content = _tokenizer_sha256(tokenizer) if _is_long(workload.text) else None
    if content is None:
        return cut(workload, tokenizer)
    text = file_sha256(Path(str(workload.text.path)))
    key = _key(text, workload, content)
    path = cache.root / WINDOWS / f"{key}.json"
    windows = _read(path, key)
    if windows is None:
        windows = cut(workload, tokenizer)
        if file_sha256(Path(str(workload.text.path))) == text:  # it was not edited while it was read
            with suppress(OSError):  # then the next run cuts them again
                _keep(cache.disk, path, key, windows)
    return windows


def _key(text_sha256: str, workload: PerplexityWorkload, tokenizer_sha256: str) -> str:
    """A digest of all that the windows depend on; of the text also its name, which their protocol repeats."""
    versions = [LAYOUT, VERSION, installed_version("transformers"), installed_version("tokenizers")]
    text = [text_sha256, workload.text.id, text_identity(workload.text)[1]]
    return full_digest([versions, text, workload.settings(), tokenizer_sha256])


def _is_long(text: TextRef) -> bool:
    """Whether keeping the windows of a text pays. Of a hub data set, whose content has no hash, they are never kept."""
    try:
        return text.path is not None and Path(text.path).stat().st_size >= MIN_TEXT_BYTES
    except OSError:  # ``cut`` says why
        return False


def _tokenizer_sha256(tokenizer: Any) -> str | None:
    """A hash of all that a tokenizer of transformers does to a text; None for one that runs code of its own."""
    kind = type(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not kind.__module__.startswith("transformers.") or backend is None:
        return None
    try:
        whole = backend.to_str()
    except Exception:  # noqa: BLE001 - it raises just this for a part that is written in Python
        return None
    named = [kind.__qualname__, tokenizer.bos_token_id, tokenizer.eos_token_id]
    return sha256(json.dumps([named, whole]).encode()).hexdigest()


def _read(path: Path, key: str) -> Windows | None:
    """The windows of an entry; None if there is none, or if it is not as it was written."""
    try:
        kept = read_sealed_json(path, MAX_SEALED_BYTES)
    except ResultsError:
        return None
    if kept.get("key") != key:
        return None
    ends = np.cumsum(kept["lengths"]).tolist()
    ids = np.frombuffer(base64.b64decode(kept["tokens"]), TOKEN).tolist()
    tokens = [ids[end - length : end] for end, length in zip(ends, kept["lengths"], strict=True)]
    return Windows(tokens, kept["firsts"], kept["documents"], kept["protocol"], kept["amounts"])


def _keep(disk: Disk, path: Path, key: str, windows: Windows) -> None:
    """Writes an entry if it is not too large to be read again, and makes room for it."""
    entry = {
        "key": key,
        "lengths": [len(window) for window in windows.tokens],
        "tokens": base64.b64encode(_flat(windows.tokens).tobytes()).decode(),
        "firsts": windows.firsts,
        "documents": windows.documents,
        "protocol": windows.protocol,
        "amounts": windows.amounts,
    }
    content = json.dumps(with_seal(entry)).encode()
    if len(content) <= MAX_SEALED_BYTES and content.count(b",") <= MAX_JSON_VALUES // 2:
        disk.write_whole(path, content)
        _evict(disk, path.parent)


def _flat(rows: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array([token for row in rows for token in row], TOKEN)


def _evict(disk: Disk, folder: Path) -> None:
    """Deletes the oldest entries until the rest take MAX_FOLDER_BYTES at most."""
    entries = sorted(((path, path.stat()) for path in folder.glob("*.json")), key=lambda each: -each[1].st_mtime_ns)
    taken = 0
    for path, status in entries:
        taken += status.st_size
        if taken > MAX_FOLDER_BYTES:
            disk.remove(path)
