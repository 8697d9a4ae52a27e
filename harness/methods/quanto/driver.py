"""optimum-quanto without its compiler: unpacking by the tensor operations that its C++ extension is made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes of packed bytes, those of the lowest bits first, along the first dimension."""
    import torch

    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def avoid_compiling() -> None:
    """Has int4 and int2 on a CPU unpacked by ``unpack``.

    quanto compiles the same operations as C++ at the first forward pass, for minutes, into its own package's folder.
    """
    from optimum.quanto.library.extensions.cpp import ext

    ext._lib = SimpleNamespace(unpack=unpack)
