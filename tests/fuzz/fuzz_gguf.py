"""A GGUF file: its header, its configuration, the size of each tensor, its tokens, one tensor of it."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from random import Random

from harness.errors import UnsupportedError
from harness.models import tensor
from harness.models.gguf import header, layout, tokens

_NUMBERS = (0, 1, 2, 3, 8, 9, 12, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def read(content: bytes, folder: Path) -> object:
    file = folder / "model.gguf"
    file.write_bytes(content)
    held = header.read_header(file)
    config, ledger = header.configuration(file), layout.ledger(layout.read(file))
    with suppress(UnsupportedError):  # a worker says that of a tokenizer
        tokens.read_tokens(file)
    return held, config, ledger, tensor.read(str(file), "blk.0.ffn_up.weight")


def mutate(content: bytes, random: Random) -> bytes:
    """Replaces an aligned number, mostly one of the lengths and counts, or cuts out or repeats a few bytes."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(min(len(changed), random.choice((24, 400, 65536))))
        kind = random.randrange(6)
        if kind == 0:
            del changed[place : place + random.choice((1, 4, 8, 100))]
        elif kind == 1:
            changed[place:place] = changed[place : place + random.choice((1, 4, 8, 100))]
        elif kind == 2:
            changed[place : place + 4] = struct.pack("<I", random.choice(_NUMBERS) % 2**32)
        elif kind == 3:
            changed[place : place + 8] = struct.pack("<Q", random.choice(_NUMBERS))
        else:
            changed[place] = random.randrange(256)
    return bytes(changed)
