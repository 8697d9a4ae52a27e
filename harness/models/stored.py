"""What a checkpoint stores for each decoder matrix, read only from its headers.

Libraries choose their own tensor names (qweight, weight_packed, absmax), but all put them below the name of the layer
that they represent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.models import headers
from harness.models.scope import in_decoder


@dataclass(frozen=True)
class StoredLayer:
    """A layer, or a layer's experts, in a checkpoint: the parameters that it represents, and how many are quantized."""

    name: str
    parameters: int
    quantized: int
    value_bytes: int
    scale_bytes: int


def layers(source: Mapping[str, tuple[int, ...]], checkpoint: Path) -> list[StoredLayer]:
    """The source's decoder layers, by the shapes of its header, as a checkpoint made from it stores them.

    A layer is left out if the checkpoint has no tensors under its name.
    """
    expected: dict[str, int] = defaultdict(int)
    single: dict[str, int] = defaultdict(int)  # experts' matrices that the source stores one by one
    for name, shape in source.items():
        if in_decoder(name, len(shape)):
            expected[layer_of(name)] += math.prod(shape)
            single[layer_of(name)] += ".experts." in name and len(shape) == 2
    held: dict[str, list[headers.Tensor]] = defaultdict(list)
    for tensor in headers.tensors(checkpoint):
        layer = layer_of(tensor.name)
        while layer not in expected and "." in layer:
            layer = layer.rpartition(".")[0]
        held[layer].append(tensor)
    return [_stored(name, count, single[name], held[name]) for name, count in expected.items() if held[name]]


def layer_of(name: str) -> str:
    """The name of the layer that a parameter belongs to; all experts of a layer count as one."""
    before, experts, _ = name.partition(".experts.")
    return f"{before}.experts" if experts else name.removesuffix(".weight")


def _stored(name: str, parameters: int, single: int, tensors: Iterable[headers.Tensor]) -> StoredLayer:
    """``single`` counts the separate matrices of the layer's experts in the source, 0 if they are stored together."""
    modules: dict[str, list[headers.Tensor]] = defaultdict(list)
    for tensor in tensors:
        if not tensor.name.endswith(".bias"):
            modules[_expert(name, tensor.name)].append(tensor)
    plain = values = scales = 0
    for parts in modules.values():
        largest = max(parts, key=lambda part: (part.dtype not in headers.FLOAT_TYPES, part.bytes))
        values += largest.bytes
        scales += sum(part.bytes for part in parts if part is not largest)
        plain += math.prod(largest.shape) if largest.dtype in headers.FLOAT_TYPES else 0
    present = parameters * min(len(modules) / single, 1.0) if single else parameters
    return StoredLayer(name, parameters, max(int(present) - plain, 0), values, scales)


def _expert(layer: str, tensor: str) -> str:
    """Which matrix of which expert a tensor belongs to; all tensors of any other layer belong together."""
    if not layer.endswith(".experts"):
        return ""
    parts = tensor.removeprefix(f"{layer}.").split(".")
    return ".".join(parts[:2] if parts[0].isdigit() else parts[:1])
