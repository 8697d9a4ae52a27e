"""Content hashes, and the basic types of specs."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""The name of a recipe or a baseline: one plain word, because it becomes a folder."""
RUN_ID = re.compile(r"[0-9a-f]{16}")
"""A run id, as ``digest`` returns it. It becomes a folder too."""

Scalar = str | int | float | bool | None
Stage = Literal["none", "on_load", "offline", "published"]
KvCache = Literal["model", "int8", "int4", "fp8"]
"""How the keys and values of earlier tokens are stored: as the model computes them, or in fewer bits."""
DecodeMode = Literal["eager", "compiled"]
Residency = Literal["resident", "streamed"]
"""Whether a model is in memory as a whole, or read from disk part by part for every pass."""
"""Whether decoding runs layer by layer from Python, or as one compiled graph over a static key-value cache."""


def digest(value: object) -> str:
    """The first 16 hexadecimal digits of the sha256 of the value's canonical JSON."""
    return full_digest(value)[:16]


def full_digest(value: object) -> str:
    """The sha256 of the value's canonical JSON: sorted keys, no spaces, ASCII. Raises ValueError for NaN."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
