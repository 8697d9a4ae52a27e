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
from harness.models.scope import PROJECTIONS, UNFUSED, in_decoder, linears, module_name


@dataclass(frozen=True)
class StoredLayer:
    """A layer, or a layer's experts, in a checkpoint: the parameters that it represents, and how many are quantized.

    ``plain`` names its matrices (of experts: each expert's) that are stored as they were.
    """

    name: str
    parameters: int
    quantized: int
    value_bytes: int
    scale_bytes: int
    plain: tuple[str, ...] = ()


def layers(source: Mapping[str, tuple[int, ...]], checkpoint: Path) -> list[StoredLayer]:
    """The source's decoder layers, by the shapes of its header, as a checkpoint made from it stores them.

    A layer is left out if the checkpoint has no tensors under its name.
    """
    expected: dict[str, int] = defaultdict(int)
    matrices: dict[str, int] = defaultdict(int)
    for name, shape in source.items():
        if in_decoder(name, len(shape)):
            expected[layer_of(name)] += math.prod(shape)
            matrices[layer_of(name)] += len(linears(name, shape))
    held: dict[str, list[headers.Tensor]] = defaultdict(list)
    for tensor in headers.tensors(checkpoint):
        layer = layer_of(tensor.name)
        while layer not in expected and "." in layer:
            layer = layer.rpartition(".")[0]
        held[layer].append(tensor)
    return [_stored(name, count, matrices[name], held[name]) for name, count in expected.items() if held[name]]


def layer_of(name: str) -> str:
    """The name of the layer that a parameter belongs to; all experts of a layer count as one."""
    module = module_name(name)
    before, experts, _ = module.partition(".experts.")
    return f"{before}.experts" if experts else module


def _stored(name: str, parameters: int, matrices: int, tensors: Iterable[headers.Tensor]) -> StoredLayer:
    """``matrices`` are those of a layer, 1, or of all its experts; a checkpoint may lack those of some experts."""
    modules: dict[str, list[headers.Tensor]] = defaultdict(list)
    for tensor in tensors:
        if not tensor.name.endswith(("_bias", ".bias")):
            modules[_expert(name, tensor.name)].append(tensor)
    plain: dict[str, int] = {}
    values = scales = 0
    for module, parts in modules.items():
        largest = max(parts, key=lambda part: (part.dtype not in headers.FLOAT_TYPES, part.bytes))
        values += largest.bytes
        scales += sum(part.bytes for part in parts if part is not largest)
        if largest.dtype in headers.FLOAT_TYPES:
            plain[f"{name}.{module}" if module else name] = math.prod(largest.shape)
    single = sum(module[:1].isdigit() for module in modules)
    present = parameters * min(single / matrices, 1.0) if single else parameters
    quantized = max(int(present) - sum(plain.values()), 0)
    return StoredLayer(name, parameters, quantized, values, scales, tuple(plain))


def _expert(layer: str, tensor: str) -> str:
    """Which matrix of which expert, or which stack, a tensor belongs to; those of any other layer belong together."""
    if not layer.endswith(".experts"):
        return ""
    first, *others = tensor.partition(".experts.")[2].split(".")
    if first.isdigit():
        return ".".join([first, *(PROJECTIONS.get(each, each) for each in others[:1])])
    return next((stack for stack in UNFUSED if first.startswith(stack)), first)
