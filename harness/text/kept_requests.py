"""Tokens of a task's requests, kept in the artifact cache: all variants of a model answer the same questions.

An entry is named after the texts, the tokenizer as it is in memory, and the versions of what tokenizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from harness.core.capability import Encode
from harness.core.identity import full_digest
from harness.core.site import REQUESTS
from harness.host.machine import installed_version
from harness.storage.cache import Cache
from harness.text.kept import MIN_TEXT_BYTES, KeptTexts, packed, tokenizer_sha256, unpacked

LAYOUT = 1
"""Increased whenever the content of an entry changes."""
SEPARATOR = b"\xff"
"""Stands in no UTF-8 text."""


def keeping(cache: Cache, encode: Encode) -> Encode:
    """The same tokens as by ``encode``, which is asked only once for many texts, whichever runs need them."""
    kept = KeptTexts(cache.disk, cache.root / REQUESTS)

    def kept_or_encoded(tokenizer: Any, texts: Sequence[str], special: bool) -> Sequence[Sequence[int]]:
        joined = SEPARATOR.join(text.encode("utf-8", "surrogatepass") for text in texts)
        content = tokenizer_sha256(tokenizer) if len(joined) >= MIN_TEXT_BYTES else None
        if content is None:
            return encode(tokenizer, texts, special)
        versions = [LAYOUT, installed_version("transformers"), installed_version("tokenizers")]
        key = full_digest([versions, sha256(joined).hexdigest(), special, content])
        entry = kept.read(key)
        if entry is not None:
            return unpacked(entry)
        rows = encode(tokenizer, texts, special)
        kept.write(key, packed(rows))
        return rows

    return kept_or_encoded
