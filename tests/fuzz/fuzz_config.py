"""A checkpoint's config.json and, after a zero byte, the index of its weights; both shards are there.

Which sizes transformers makes of a configuration is not asked, since that takes a process; it is taken to hand on
whatever the configuration says.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

from mutations import changed

from harness.models import headers, published, shapes
from harness.models.resolve import KEYS, Resolved

_HEADER = json.dumps(
    {"model.layers.0.mlp.up_proj.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
).encode()
_SHARD = struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(16)


def read(content: bytes, folder: Path) -> object:
    config, _, index = content.partition(b"\0")
    (folder / "config.json").write_bytes(config)
    if index:
        (folder / "model.safetensors.index.json").write_bytes(index)
        (folder / "model-1.safetensors").write_bytes(_SHARD)
    (folder / "model.safetensors").write_bytes(_SHARD)
    header = headers.read_directory(folder)
    held = headers.read_config(folder)
    made = headers.synthetic(held)
    return published.shown(published.quantization_config(folder)), _estimated(held, made or header)


def _estimated(config: dict[str, object], header: headers.Header) -> object:
    text = {key: config[key] for key in KEYS if config.get(key) is not None}
    layers = ("full_attention", "sliding_attention")
    found = Resolved(text, layers, 16, bool(config.get("tie_word_embeddings")), header.shapes, 0, None)
    return shapes.shapes("model", config, header, found)


def mutate(content: bytes, random: Random) -> bytes:
    config, _, index = content.partition(b"\0")
    if index and random.random() < 0.4:
        return config + b"\0" + json.dumps(changed(json.loads(index), random)).encode()
    return json.dumps(changed(json.loads(config), random)).encode() + (b"\0" + index if index else b"")
