"""Packs codes of 2, 3, 4 or 8 bits so that they really occupy that many bits.

A code is split into planes whose widths divide a byte (3 = 2 + 1). Each plane is packed with
``8 / width`` codes per byte, the first code in the lowest bits, so packing and unpacking are shifts of
whole tensors on any device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs uint8 codes below 2^bits, of any shape, into a flat uint8 tensor of packed_bytes(count, bits) bytes."""
    import torch

    planes, shift = [], 0
    for width in PLANES[bits]:
        plane = (codes.reshape(-1) >> shift) & (2**width - 1)
        planes.append(_pack_plane(plane, width))
        shift += width
    return torch.cat(planes)


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Reverses ``pack``: the codes as uint8 in the given shape."""
    count = math.prod(shape)
    codes: torch.Tensor | None = None
    start = shift = 0
    for width in PLANES[bits]:
        length = _plane_bytes(count, width)
        plane = _unpack_plane(packed[start : start + length], width)[:count]
        codes = plane if codes is None else codes | (plane << shift)
        start, shift = start + length, shift + width
    assert codes is not None
    return codes.reshape(shape)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``pack`` needs for that many codes."""
    return sum(_plane_bytes(count, width) for width in PLANES[bits])


def _plane_bytes(count: int, width: int) -> int:
    return -(-count * width // 8)


def _pack_plane(plane: torch.Tensor, width: int) -> torch.Tensor:
    import torch

    if width == 8:
        return plane
    per_byte = 8 // width
    padded = torch.nn.functional.pad(plane, (0, -plane.numel() % per_byte)).reshape(-1, per_byte)
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=plane.device)
    return (padded << shifts).sum(dim=1, dtype=torch.uint8)


def _unpack_plane(packed: torch.Tensor, width: int) -> torch.Tensor:
    """Spreads the codes of each byte over the bytes of an integer that has one for each code.

    An integer's parts are halved and moved apart until each is one code (Warren, "Hacker's Delight", section 7-2), in
    passes over contiguous numbers. The integer's lowest byte comes first, as on all little-endian machines.
    """
    import torch

    if width == 8:
        return packed
    per_byte = 8 // width
    spread = packed.to({2: torch.int16, 4: torch.int32, 8: torch.int64}[per_byte])
    part = 4
    while part >= width:
        mask = sum((2**part - 1) << place for place in range(0, 8 * per_byte, part * per_byte))
        spread = (spread | spread << part * (per_byte - 1)) & mask
        part //= 2
    return spread.view(torch.uint8)
