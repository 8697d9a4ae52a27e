"""Which of a model's parameters a method is meant to quantize."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HEAD = "lm_head"
_DECODER = re.compile(r"(^|\.)(layers|h|blocks|blk)\.\d+\.")
_ROUTER = re.compile(r"\.(gate|router|ffn_gate_inp)(\.weight)?$")


def in_decoder(name: str, dimensions: int) -> bool:
    """Whether the ``decoder`` scope holds a parameter: a matrix (or a stack of experts' matrices) of a layer.

    A mixture's router is left out, as every method leaves it: it is small and decides everything.
    """
    return dimensions >= 2 and _DECODER.search(name) is not None and _ROUTER.search(name) is None


@dataclass(frozen=True)
class Modules:
    """Names of modules: ``scope`` is to be quantized, ``untouched`` are all others that have a matrix."""

    scope: tuple[str, ...]
    untouched: tuple[str, ...]


def modules(shapes: Mapping[str, tuple[int, ...]], skip: Sequence[str] = ()) -> Modules:
    """Sorts a checkpoint's modules by its header, less what the patterns of ``skip`` match."""
    matrices = {name.removesuffix(".weight"): (name, shape) for name, shape in shapes.items() if len(shape) >= 2}
    scope = [
        module
        for module, (name, shape) in matrices.items()
        if in_decoder(name, len(shape)) and not matching(module, skip)
    ]
    left = dict.fromkeys([*matrices, HEAD])  # a tied head has no tensor of its own
    return Modules(tuple(scope), tuple(module for module in left if module not in set(scope)))


def matching(module: str, patterns: Iterable[str]) -> list[str]:
    """The patterns (of ``*``, ``?`` and ``[…]``) that a module's whole name matches."""
    return [pattern for pattern in patterns if fnmatchcase(module, pattern)]


def decoder_linears(model: Any, untouched: Collection[str] = ()) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers of the decoder, by name, less those that must stay as they are."""
    import torch

    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and in_decoder(f"{name}.weight", 2) and name not in untouched:
            yield name, module
