"""Windows of long texts, kept in the artifact cache: all runs of a sweep score the same ones.

An entry is named after the text's file, the tokenizer as it is in memory, how the text is cut, and the versions of what
cuts it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.core.identity import full_digest
from harness.core.metric import Windows
from harness.core.site import WINDOWS
from harness.core.workload import PerplexityWorkload, TextRef, text_identity
from harness.host.machine import installed_version
from harness.storage.cache import Cache
from harness.storage.checksums import file_sha256
from harness.text.kept import MIN_TEXT_BYTES, KeptTexts, packed, tokenizer_sha256, unpacked
from harness.text.windows import VERSION, cut

LAYOUT = 1
"""Increased whenever the content of an entry changes."""


def kept_or_cut(cache: Cache, workload: PerplexityWorkload, tokenizer: Any) -> Windows:
    """The windows of a text as ``cut`` makes them, from the cache if they are there. Raises as ``cut``."""
    content = tokenizer_sha256(tokenizer) if _is_long(workload.text) else None
    if content is None:
        return cut(workload, tokenizer)
    text = file_sha256(Path(str(workload.text.path)))
    key = _key(text, workload, content)
    kept = KeptTexts(cache.disk, cache.root / WINDOWS)
    entry = kept.read(key)
    if entry is not None:
        return Windows(unpacked(entry), entry["firsts"], entry["documents"], entry["protocol"], entry["amounts"])
    windows = cut(workload, tokenizer)
    if file_sha256(Path(str(workload.text.path))) == text:  # it was not edited while it was read
        rest = {name: getattr(windows, name) for name in ("firsts", "documents", "protocol", "amounts")}
        kept.write(key, {**packed(windows.tokens), **rest})
    return windows


def _key(text_sha256: str, workload: PerplexityWorkload, tokenizer: str) -> str:
    """A digest of all that the windows depend on; of the text also its name, which their protocol repeats."""
    versions = [LAYOUT, VERSION, installed_version("transformers"), installed_version("tokenizers")]
    text = [text_sha256, workload.text.id, text_identity(workload.text)[1]]
    return full_digest([versions, text, workload.settings(), tokenizer])


def _is_long(text: TextRef) -> bool:
    """Whether keeping the windows of a text pays. Of a hub data set, whose content has no hash, they are never kept."""
    try:
        return text.path is not None and Path(text.path).stat().st_size >= MIN_TEXT_BYTES
    except OSError:  # ``cut`` says why
        return False
