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
LEAST_COVERAGE = 0.99
"""If a smaller fraction of the declared scope is quantized, a variant is not what its name says."""
_DECODER = re.compile(r"(^|\.)(layers|h|blocks|blk)\.\d+\.")
_ROUTER = re.compile(r"\.(gate|router|ffn_gate_inp)(\.weight)?$")
_EXPERTS = re.compile(r"(^|\.)experts\.|_exps\.")
_BIAS = re.compile(r"[._]bias$")
_CONVOLUTION = re.compile(r"conv\w*\.")


def in_decoder(name: str, dimensions: int) -> bool:
    """Whether a parameter is in the ``decoder`` scope: a matrix (or a stack of experts' matrices) of a layer.

    A mixture's router is excluded, as in every method: it is small and critical. So are biases; a stack of experts has
    one bias vector per expert.
    """
    if dimensions < 2 or _BIAS.search(name):
        return False
    return _DECODER.search(name) is not None and _ROUTER.search(name) is None


def holds_experts(name: str, dimensions: int) -> bool:
    """Whether a matrix of the decoder belongs to a mixture's experts, by its name in a checkpoint.

    transformers holds the experts of a layer in one 3-D parameter, and not as layers, even if a checkpoint (or
    llama.cpp) stores them one by one. Experts that process every token ("shared") are ordinary layers.
    """
    stacked = dimensions >= 3 and not _CONVOLUTION.search(name)
    return in_decoder(name, dimensions) and (stacked or _EXPERTS.search(name) is not None)


def experts_module(name: str) -> str:
    """transformers' name for the experts of a GGUF file's layer, which patterns of ``skip`` match; other names stay."""
    found = re.fullmatch(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight", name)
    if found is None:
        return name
    return f"model.layers.{found[1]}.mlp.experts.{'down_proj' if found[2] == 'down' else 'gate_up_proj'}"


@dataclass(frozen=True)
class Modules:
    """Names of modules: ``scope`` will be quantized, ``untouched`` are all others that have a matrix."""

    scope: tuple[str, ...]
    untouched: tuple[str, ...]


def modules(shapes: Mapping[str, tuple[int, ...]], skip: Sequence[str] = ()) -> Modules:
    """Sorts a checkpoint's modules by its header; modules that match a pattern of ``skip`` are not in scope."""
    matrices = {name.removesuffix(".weight"): (name, shape) for name, shape in shapes.items() if len(shape) >= 2}
    scope = [
        module
        for module, (name, shape) in matrices.items()
        if in_decoder(name, len(shape)) and not matching(module, skip)
    ]
    left = dict.fromkeys([*matrices, HEAD])  # a tied head has no tensor of its own
    return Modules(tuple(scope), tuple(module for module in left if module not in set(scope)))


def matching(module: str, patterns: Iterable[str]) -> list[str]:
    """The patterns (of ``*``, ``?`` and ``[…]``) that match a module's whole name."""
    return [pattern for pattern in patterns if fnmatchcase(module, pattern)]


def decoder_linears(model: Any, untouched: Collection[str] = ()) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers of the decoder, by name, except those in ``untouched``."""
    import torch

    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and in_decoder(f"{name}.weight", 2) and name not in untouched:
            yield name, module
