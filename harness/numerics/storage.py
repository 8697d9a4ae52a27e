"""The tensors that really hold a model's parameters, whichever library stores them: codes, and scales beside them.

``numel * element_size`` is wrong for most quantized tensors: torchao's report the unquantized
shape and dtype, and bitsandbytes keeps scales outside the parameter. This module finds the storages
themselves, counts the bytes of each once, and names what stands beside codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.core.capability import Role, StoredTensor

if TYPE_CHECKING:
    import torch


_PAIRS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"scale_and_zero": ("scale", "zero_point"), "_scale_shift": ("_scale", "_shift")}
)
"""Tensors of torchao's and quanto's 4-bit kernels that hold two of each group along their last dimension."""


@runtime_checkable
class PackedModule(Protocol):
    """A module that stores its matrix in its own packed buffers."""

    def packed_weight(self) -> tuple[tuple[int, ...], list[torch.Tensor], Mapping[str, torch.Tensor]]:
        """The logical shape of the matrix, the tensors of its codes, and those of its scales and zero points by name.

        A name is that of the tensor within the module. Those of scales end in ``scale``.
        """
        ...


@dataclass(frozen=True)
class _Held:
    """A parameter or buffer of a module: its logical shape, the tensors of its values, and those beside them.

    The latter are scales, zero points and tables, by their names within the module.
    """

    name: str
    shape: tuple[int, ...]
    values: Sequence[torch.Tensor]
    beside: Mapping[str, torch.Tensor]
    storage: str

    def holds(self, tensor: torch.Tensor) -> bool:
        return any(tensor is each for each in (*self.values, *self.beside.values()))


def ledger(
    model: torch.nn.Module, embedding: torch.nn.Module | None, head: torch.nn.Module | None, prefix: str = ""
) -> list[StoredTensor]:
    """Every stored parameter and buffer of a model, in the order of its modules.

    ``prefix`` is the name of a module that is a part of a model.
    """
    seen: set[int] = set()
    entries: list[StoredTensor] = []
    for place, module in model.named_modules(prefix=prefix):
        role: Role | None = "embedding" if module is embedding else "head" if module is head else None
        for stored in _stored(module):
            matrix = len(stored.shape) >= 2
            value_bytes = sum(_new_bytes(tensor, seen) for tensor in stored.values)
            scale_bytes = sum(_new_bytes(tensor, seen) for tensor in stored.beside.values())
            entries.append(
                StoredTensor(
                    name=f"{place}.{stored.name}" if place else stored.name,
                    role=role or ("linear" if matrix else "other"),
                    storage=stored.storage,
                    parameters=math.prod(stored.shape),
                    value_bytes=value_bytes,
                    scale_bytes=scale_bytes,
                    quantized=bool(stored.beside) or (matrix and all(t.element_size() == 1 for t in stored.values)),
                    tied=value_bytes == 0 and math.prod(stored.shape) > 0,
                )
            )
    return entries


def beside_codes(modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """The scales, zero points and tables of the quantized matrices in some modules, each by its name in the model.

    torchao keeps scales of microscaled formats in tiles, filled up with zeros: these are left out.
    """
    for place, module in modules.items():
        for stored in _stored(module):
            owner: Any = getattr(module, stored.name, None)
            for name, tensor in stored.beside.items():
                in_tiles = getattr(owner, "is_swizzled_scales", False) and tensor is owner.scale
                yield f"{place}.{name}" if place else name, _in_rows(owner, tensor) if in_tiles else tensor


def _in_rows(owner: Any, scale: torch.Tensor) -> torch.Tensor:
    from torchao.prototype.mx_formats.utils import from_blocked

    *rows, columns = owner.shape
    in_rows: torch.Tensor = from_blocked(scale, math.prod(rows), columns // owner.block_size)
    return in_rows


def _stored(module: torch.nn.Module) -> Iterator[_Held]:
    if type(module).__module__.startswith("quark.") and type(module).__name__.endswith("Quantizer"):
        return  # its layer already reported the tensors
    held = list(_matrices(module))
    yield from held
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    buffers = module.named_buffers(recurse=False, remove_duplicate=False)
    for name, tensor in chain[tuple[str, "torch.Tensor"]](parameters, buffers):
        if not any(each.holds(tensor) for each in held):
            yield _parts(module, name, tensor)


def _matrices(module: torch.nn.Module) -> Iterator[_Held]:
    """The matrices that a module keeps in several tensors of its own."""
    held = module.packed_weight() if isinstance(module, PackedModule) else None
    held = held or _words(module) or _hqq(module) or _scaled(module)
    if held is not None:
        yield _Held("weight", *held, type(module).__name__)
    yield from _stacks(module)


_Packed = tuple[tuple[int, ...], list["torch.Tensor"], Mapping[str, "torch.Tensor"]]


def _words(module: torch.nn.Module) -> _Packed | None:
    """The matrix of a GPTQ or AWQ layer, whose codes are packed into words called ``qweight``.

    gptqmodel, auto-round and INC have such layers. Everything else in them except the bias is for unpacking: scales,
    zero points, group indices, shifts. Some of it (a kernel's own copy of the scales) is in plain attributes. None for
    any other layer.
    """
    import torch

    codes = getattr(module, "qweight", None)
    sizes = _size(module, "out"), _size(module, "in")
    if not isinstance(codes, torch.Tensor) or not all(isinstance(size, int) for size in sizes):
        return None
    if type(codes) not in (torch.Tensor, torch.nn.Parameter):  # quanto has a ``qweight`` too: a tensor subclass
        return None
    named = {**dict(module.named_buffers(recurse=False)), **dict(module.named_parameters(recurse=False))}
    named |= {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
    others = {name: tensor for name, tensor in named.items() if name != "bias" and tensor is not codes}
    return sizes, [codes], others  # type: ignore[return-value]


def _size(module: torch.nn.Module, side: str) -> int | None:
    """``out_features``, or ``outfeatures`` in auto-round's spelling."""
    size: int | None = getattr(module, f"{side}_features", getattr(module, f"{side}features", None))
    return size


def _hqq(module: torch.nn.Module) -> _Packed | None:
    """The matrix of an HQQLinear, which keeps scales and zero points in a dictionary; None for any other layer."""
    if type(module).__name__ != "HQQLinear":
        return None
    meta: Any = module.meta
    return tuple(meta["shape"]), [module.W_q], {name: meta[name] for name in ("scale", "zero")}  # type: ignore[list-item]


def _scaled(module: torch.nn.Module) -> _Packed | None:
    """The matrix of auto-round's float8 layer, which stores its codes in bfloat16, of transformers', or of Quark's.

    Quark's layer keeps scales and zero points in submodules. None for any other layer.
    """
    held: Any = module
    kind = type(module).__name__
    if kind == "WeightFP8ActFP8StaticQuantLinear":
        return tuple(held.weight.shape), [held.weight], _tensors(module, ("weight_scale", "input_scale"))
    if kind in ("FP8Linear", "FP8GroupedLinear", "CompressedTensorsFP8Linear") and held.weight.element_size() == 1:
        names = ("weight_scale_inv", "weight_scale", "activation_scale")
        return tuple(held.weight.shape), [held.weight], _tensors(module, names)
    if kind != "QParamsLinear":
        return None
    scales = {
        f"{place}.{name}": tensor
        for place, child in module.named_modules()
        for name, tensor in chain(child.named_parameters(recurse=False), child.named_buffers(recurse=False))
        if place
    }
    return (held.out_features, held.in_features), [held.weight], scales


def _stacks(module: torch.nn.Module) -> Iterator[_Held]:
    """The matrices of transformers' experts in FP8 (or FP4 in pairs) and MXFP4, which a GPU multiplies as they are.

    MXFP4's are tensors of OpenAI's Triton kernels, which are no parameters. Nothing for any other module.
    """
    import torch

    held: Any = module
    kind = type(module).__name__
    for name in ("gate_up_proj", "up_proj", "down_proj"):
        matrix = getattr(held, name, None)
        if kind == "FP8Experts" and isinstance(matrix, torch.Tensor) and matrix.element_size() == 1:
            *outer, width = matrix.shape
            shape = (*outer, width * (2 if matrix.dtype == torch.int8 else 1))
            scales = _tensors(module, (f"{name}_scale_inv", f"{name}_activation_scale"))
            yield _Held(name, shape, [matrix], scales, kind)
        if kind == "Mxfp4GptOssExperts" and matrix is not None and not isinstance(matrix, torch.Tensor):
            scale = getattr(held, f"{name}_precision_config").weight_scale
            scales = {f"{name}_scale": scale.storage.data}
            yield _Held(name, tuple(matrix.shape), [matrix.storage.data], scales, kind)


def _tensors(module: torch.nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Those of a module's attributes that are tensors."""
    import torch

    held = {name: getattr(module, name, None) for name in names}
    return {name: each for name, each in held.items() if isinstance(each, torch.Tensor)}


def _parts(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> _Held:
    """A parameter or buffer, with the tensors that its library keeps in it."""
    kind = type(tensor).__name__
    state = getattr(tensor, "quant_state", None)
    if state is not None:  # bitsandbytes 4 bit, in its names of what it saves
        nested = getattr(state, "state2", None)  # absent once bitsandbytes has repacked the weight for a CPU kernel
        beside = {"absmax": state.absmax, "quant_map": state.code, "nested_offset": getattr(state, "offset", None)}
        beside |= {"nested_absmax": nested.absmax, "nested_quant_map": nested.code} if nested is not None else {}
        present = {f"{name}.{own}": part for own, part in beside.items() if part is not None}
        return _Held(name, tuple(state.shape), [tensor.data], present, kind)
    if kind == "Int8Params":  # bitsandbytes 8 bit: the first forward moves codes and scales to the module
        held: Any = tensor if getattr(tensor, "SCB", None) is not None else module.state
        return _Held(name, tuple(tensor.shape), [tensor.data], {"SCB": held.SCB}, kind)
    leaves = dict(_leaves(name, tensor))
    codes = max(leaves, key=lambda own: leaves[own].nbytes)
    values = leaves.pop(codes)
    if values is tensor:
        kind = str(tensor.dtype).removeprefix("torch.")
    return _Held(name, tuple(tensor.shape), [values], leaves, kind)  # torchao, quanto: a subclass of several tensors


def _leaves(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors inside a tensor subclass by name, through ``__tensor_flatten__``."""
    import torch

    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for own in tensor.__tensor_flatten__()[0]:
        part = getattr(tensor, own)
        if own in _PAIRS:
            yield from ((f"{name}.{each}", part[..., place]) for place, each in enumerate(_PAIRS[own]))
        elif isinstance(part, torch.Tensor):
            yield from _leaves(f"{name}.{own}", part)


def _new_bytes(tensor: torch.Tensor, seen: set[int]) -> int:
    """The bytes of the tensor's storage, or 0 if another tensor with the same storage was already counted.

    One without numbers takes none: auto-round's layers make their table of shifts in their first product.
    """
    if tensor.device.type == "meta":
        return 0
    storage = tensor.untyped_storage()
    if storage.data_ptr() in seen:
        return 0
    seen.add(storage.data_ptr())
    return int(storage.nbytes())
