"""A safetensors file in a checkpoint's folder: its header, what it stores per layer, one tensor of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

from mutations import changed

from harness.models import headers, stored, tensor

NAME = "model.layers.0.mlp.up_proj.weight"


def read(content: bytes, folder: Path) -> object:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(content)
    header = headers.read_directory(folder)
    return stored.layers(header.shapes, folder), tensor.read(str(folder), NAME)


def mutate(content: bytes, random: Random) -> bytes:
    """Changes something in the header, and mostly makes its length fit again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(changed(json.loads(content[8 : 8 + length]), random)).encode()
    stated = len(header) if random.random() < 0.9 else random.choice([0, 1, len(header) + 8, 2**31, 2**63, 2**64 - 1])
    return struct.pack("<Q", stated) + header + content[8 + length :]
