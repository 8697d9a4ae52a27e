"""The memory of a named GPU, or a size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import TypeAdapter, ValidationError

from harness.core.foreign import quoted
from harness.errors import UsageError
from harness.recipe.fields import Bytes

MIB = 2**20
MEMORY_MIB = {
    "A10": 23028,
    "A100-40GB": 40960,
    "A100-80GB": 81920,
    "B200": 183359,
    "H100": 81559,
    "H200": 143771,
    "L4": 23034,
    "L40S": 46068,
    "RTX 3090": 24576,
    "RTX 4090": 24564,
    "RTX 5090": 32607,
    "T4": 15360,
    "V100-32GB": 32768,
}
"""Total memory as ``nvidia-smi`` reports it, without ECC's share; it differs from the "80 GB" in a product name.

From github.com/modal-labs/modal-client/pull/2797 (A10, A100, H100, L4, L40S, T4), the others from published outputs
of nvidia-smi.
"""
NEAR = 3
"""How many similar names to suggest for an unknown one."""


@dataclass(frozen=True)
class Budget:
    """A size in bytes, with a name for tables."""

    name: str
    bytes: int

    @property
    def size(self) -> str:
        """As a recipe takes it: what the user wrote, or a GPU's memory."""
        return f"{self.bytes // MIB}MiB" if _plain(self.name) in map(_plain, MEMORY_MIB) else self.name


def budget(text: str, option: str = "--gpu") -> Budget:
    """Parses ``24GiB`` (2³⁰), ``24GB`` (10⁹) or a GPU's name. Raises UsageError for a zero size or an unknown name."""
    text = text.strip()
    if re.match(r"[-+]?[\d.]", text):
        return Budget(text, size_bytes(text, option))
    known = {_plain(name): name for name in MEMORY_MIB}
    if (name := known.get(_plain(text))) is not None:
        return Budget(name, MEMORY_MIB[name] * MIB)
    begin = [word for word in known if _plain(text) and word.startswith(_plain(text))]
    near = [known[word] for word in begin or get_close_matches(_plain(text), known, n=NEAR, cutoff=0.4)]
    nearest = f"; near: {', '.join(near)}" if near else f"; known: {', '.join(MEMORY_MIB)}"
    raise UsageError(f"{option}: unknown GPU {quoted(text)}{nearest}; or give its memory, such as 24GiB")


def size_bytes(text: str, option: str) -> int:
    """Parses ``24GiB`` (2³⁰) or ``24GB`` (10⁹). Raises UsageError for anything else, and for zero."""
    try:
        return TypeAdapter(Bytes).validate_python(text.strip())
    except ValidationError:
        raise UsageError(
            f"{option}: expected a size above zero such as 24GiB (2^30) or 24GB (10^9), not {quoted(text)}"
        ) from None


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.casefold())
