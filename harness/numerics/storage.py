"""The bytes that a model's parameters really occupy, whichever library stores them.

``numel * element_size`` is wrong for most quantized tensors: torchao's report the unquantized
shape and dtype, and bitsandbytes keeps scales outside the parameter. This module finds the storages
themselves and counts each once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.core.capability import Role, StoredTensor

if TYPE_CHECKING:
    import torch


@runtime_checkable
class PackedModule(Protocol):
    """A module that stores its matrix in its own packed buffers."""

    def packed_weight(self) -> tuple[tuple[int, ...], list[torch.Tensor], list[torch.Tensor]]:
        """The logical shape of the matrix, the tensors of its codes, and the tensors of its scales and zero points."""
        ...


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
        for name, shape, values, scales, storage in _stored(module):
            value_bytes = sum(_new_bytes(tensor, seen) for tensor in values)
            scale_bytes = sum(_new_bytes(tensor, seen) for tensor in scales)
            entries.append(
                StoredTensor(
                    name=f"{place}.{name}" if place else name,
                    role=role or ("linear" if len(shape) >= 2 else "other"),
                    storage=storage,
                    parameters=math.prod(shape),
                    value_bytes=value_bytes,
                    scale_bytes=scale_bytes,
                    quantized=bool(scales) or (len(shape) >= 2 and all(t.element_size() == 1 for t in values)),
                    tied=value_bytes == 0 and math.prod(shape) > 0,
                )
            )
    return entries


_Stored = tuple[str, tuple[int, ...], list["torch.Tensor"], list["torch.Tensor"], str]


def _stored(module: torch.nn.Module) -> Iterator[_Stored]:
    if type(module).__module__.startswith("quark.") and type(module).__name__.endswith("Quantizer"):
        return  # its layer already reported the tensors
    own: set[int] = set()
    if isinstance(module, PackedModule):
        shape, values, scales = module.packed_weight()
        own = {id(tensor) for tensor in (*values, *scales)}
        yield "weight", shape, values, scales, type(module).__name__
    elif (held := _words(module) or _beside(module) or _scaled(module)) is not None:
        shape, values, scales = held
        own = {id(tensor) for tensor in (*values, *scales)}
        yield "weight", shape, values, scales, type(module).__name__
    for stack in _stacks(module):
        own |= {id(tensor) for tensor in (*stack[2], *stack[3])}
        yield stack
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    buffers = module.named_buffers(recurse=False, remove_duplicate=False)
    for name, tensor in chain[tuple[str, "torch.Tensor"]](parameters, buffers):
        if id(tensor) not in own:
            shape, values, scales, storage = _parts(module, tensor)
            yield name, shape, values, scales, storage


def _words(module: torch.nn.Module) -> tuple[tuple[int, ...], list[torch.Tensor], list[torch.Tensor]] | None:
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
    others = [tensor for name, tensor in named.items() if name != "bias" and tensor is not codes]
    return sizes, [codes], others  # type: ignore[return-value]


def _size(module: torch.nn.Module, side: str) -> int | None:
    """``out_features``, or ``outfeatures`` in auto-round's spelling."""
    size: int | None = getattr(module, f"{side}_features", getattr(module, f"{side}features", None))
    return size


def _beside(module: torch.nn.Module) -> tuple[tuple[int, ...], list[torch.Tensor], list[torch.Tensor]] | None:
    """The matrix of an HQQLinear, which keeps scales and zero points in a dictionary; None for any other layer."""
    if type(module).__name__ != "HQQLinear":
        return None
    meta: Any = module.meta
    return tuple(meta["shape"]), [module.W_q], [meta["scale"], meta["zero"]]  # type: ignore[list-item]


def _scaled(module: torch.nn.Module) -> tuple[tuple[int, ...], list[torch.Tensor], list[torch.Tensor]] | None:
    """The matrix of auto-round's float8 layer, which stores its codes in bfloat16, of transformers', or of Quark's.

    Quark's layer keeps scales and zero points in submodules. None for any other layer.
    """
    held: Any = module
    kind = type(module).__name__
    if kind == "WeightFP8ActFP8StaticQuantLinear":
        return tuple(held.weight.shape), [held.weight], [held.weight_scale, held.input_scale]
    if kind in ("FP8Linear", "FP8GroupedLinear", "CompressedTensorsFP8Linear") and held.weight.element_size() == 1:
        names = ("weight_scale_inv", "weight_scale", "activation_scale")
        return tuple(held.weight.shape), [held.weight], _tensors(module, names)
    if kind != "QParamsLinear":
        return None
    quantizers = [child for name, child in module.named_modules() if name]
    scales = [tensor for child in quantizers for tensor in chain(child.parameters(False), child.buffers(False))]
    return (held.out_features, held.in_features), [held.weight], scales


def _stacks(module: torch.nn.Module) -> Iterator[_Stored]:
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
            yield name, shape, [matrix], _tensors(module, (f"{name}_scale_inv", f"{name}_activation_scale")), kind
        if kind == "Mxfp4GptOssExperts" and matrix is not None and not isinstance(matrix, torch.Tensor):
            scale = getattr(held, f"{name}_precision_config").weight_scale
            yield name, tuple(matrix.shape), [matrix.storage.data], [scale.storage.data], kind


def _tensors(module: torch.nn.Module, names: Sequence[str]) -> list[torch.Tensor]:
    """Those of a module's attributes that are tensors."""
    import torch

    held = (getattr(module, name, None) for name in names)
    return [each for each in held if isinstance(each, torch.Tensor)]


def _parts(
    module: torch.nn.Module, tensor: torch.Tensor
) -> tuple[tuple[int, ...], list[torch.Tensor], list[torch.Tensor], str]:
    """The logical shape of a parameter, its code tensors, its scale tensors and the name of its storage."""
    kind = type(tensor).__name__
    state = getattr(tensor, "quant_state", None)
    if state is not None:  # bitsandbytes 4 bit
        nested = getattr(state, "state2", None)  # absent once bitsandbytes has repacked the weight for a CPU kernel
        scales = [state.absmax, state.code, getattr(state, "offset", None)]
        scales += [nested.absmax, nested.code] if nested is not None else []
        return tuple(state.shape), [tensor.data], [scale for scale in scales if scale is not None], kind
    if kind == "Int8Params":  # bitsandbytes 8 bit: the first forward moves codes and scales to the module
        held: Any = tensor if getattr(tensor, "SCB", None) is not None else module.state
        return tuple(tensor.shape), [tensor.data], [held.SCB], kind
    leaves = list(_leaves(tensor))
    if len(leaves) > 1 or leaves[0] is not tensor:  # torchao, quanto: a tensor subclass that wraps several tensors
        values = max(leaves, key=lambda leaf: leaf.nbytes)
        return tuple(tensor.shape), [values], [leaf for leaf in leaves if leaf is not values], kind
    return tuple(tensor.shape), [tensor], [], str(tensor.dtype).removeprefix("torch.")


def _leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors inside a tensor subclass, through ``__tensor_flatten__``."""
    import torch

    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        part = getattr(tensor, name)
        if isinstance(part, torch.Tensor):
            yield from _leaves(part)


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
