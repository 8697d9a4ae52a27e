"""The names of a model's layers: ``model.layers.3``, ``transformer.h.3``, ``model.blocks.3``, and ``blk.3`` in GGUF."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d+)(?=\.|$)")


def layer_of(name: str) -> str | None:
    """The layer that a module or a tensor is in, or is: the outermost one. None outside of all layers.

    Those of a vision or audio part count too.
    """
    found = _LAYER.search(name)
    return name[: found.end()] if found else None


def layer_number(name: str) -> int | None:
    """The number of that layer in its list."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def name_from_layers(name: str) -> str | None:
    """The name without what comes before the list of layers, such as ``layers.3.mlp``; None outside of all layers."""
    found = _LAYER.search(name)
    return name[found.start() :].removeprefix(".") if found else None


def is_layer(module: str) -> bool:
    """Whether a module's name is that of a layer that is in no other."""
    return layer_of(module) == module
