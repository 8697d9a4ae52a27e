"""Which of a model's parameters a method is meant to quantize."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DECODER = re.compile(r"(^|\.)(layers|h|blocks|blk)\.\d+\.")
_ROUTER = re.compile(r"\.(gate|router|ffn_gate_inp)(\.weight)?$")


def in_decoder(name: str, dimensions: int) -> bool:
    """Whether the ``decoder`` scope holds a parameter: a matrix (or a stack of experts' matrices) of a layer.

    A mixture's router is left out, as every method leaves it: it is small and decides everything.
    """
    return dimensions >= 2 and _DECODER.search(name) is not None and _ROUTER.search(name) is None


def decoder_linears(model: Any) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers of the decoder, by name."""
    import torch

    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and in_decoder(f"{name}.weight", 2):
            yield name, module
