"""Which GPUs run the code that a CUDA library was built for (CUDA C++ Programming Guide, "Compute Capabilities")."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
_TEGRA = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)})
"""Integrated GPUs, whose binaries and those of the others are not compatible (torch.cuda.DEVICE_REQUIREMENT)."""


def runs_on(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether one of torch's architectures (``sm_90``, ``compute_90``) has code for a GPU of this capability.

    A binary runs on GPUs of its major version with the same minor version or a higher one. PTX (``compute_…``) is
    compiled for any GPU of its capability or a higher one. The suffix ``a`` restricts both to exactly that capability,
    ``f`` to the family: the same major version. Unknown names count for nothing.
    """
    return any(_runs(name, capability) for name in architectures)


def _runs(name: str, capability: tuple[int, int]) -> bool:
    parts = _NAME.fullmatch(name)
    if parts is None:
        return False
    kind, built, suffix = parts[1], (int(parts[2]), int(parts[3])), parts[4]
    if suffix == "a" or built == capability:
        return built == capability
    if kind == "compute" and not suffix:
        return built <= capability
    if kind == "sm" and {built, capability} & _TEGRA:
        return False
    return built[0] == capability[0] and built <= capability
