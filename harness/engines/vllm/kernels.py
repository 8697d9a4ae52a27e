"""What vLLM really runs: the kernel, the arithmetic and the bytes of each layer, by its name in the checkpoint.

vLLM merges layers (q, k and v are one product), chooses a kernel for each by the machine and the environment, and
moves weights into handlers of oneDNN that are no parameters of any module. A kernel is therefore read from the loaded
module: its quantization method, its scheme and the object that multiplies. What no module holds any more, the codes
and scales as published, is read from the checkpoint's headers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.capability import Arithmetic, KernelFamily, Product, Role, StoredTensor
from harness.models.headers import FLOAT_TYPES, Tensor, tensors
from harness.models.scope import HEAD, in_decoder

if TYPE_CHECKING:
    import torch

FP8, INT8 = "float8_e4m3fn", "int8"
Rule = tuple[KernelFamily, str | None, str | None]
"""The family of a kernel, what it rounds inputs to, and what it multiplies in; None is the model's dtype."""
_WEIGHTS_ONLY: Rule = ("packed", None, None)
_EIGHT_BITS: Rule = ("packed", INT8, INT8)
_FLOAT8: Rule = ("packed", FP8, FP8)
AWQ_METHODS = ("AutoAWQLinearMethod", "AWQLinearMethod")
"""AWQ without Marlin, by its names in different versions; a method that multiplies by itself."""
RULES: Mapping[str, Rule] = {
    "CPUInt8ScaledMMLinearKernel": _EIGHT_BITS,
    "Dynamic4bitLinearKernel": _EIGHT_BITS,
    "ZentorchInt8ScaledMMLinearKernel": _EIGHT_BITS,
    "ZentorchWNA16LinearKernel": _WEIGHTS_ONLY,
    "CPUFp8BlockScaledMMKernel": ("packed", None, "bfloat16"),  # unpacks tiles for AMX
    "CPUFp8PerTensorScaledMMLinearKernel": ("packed", None, "bfloat16"),
    **dict.fromkeys(("CPUFP8W8A8ScaledMMLinearKernel", "CPUFp8W8A8BlockScaledMMKernel"), _FLOAT8),
    # for GPUs; read in vLLM's source, not run
    **dict.fromkeys(("CutlassInt8ScaledMMLinearKernel", "TritonInt8ScaledMMLinearKernel"), _EIGHT_BITS),
    **dict.fromkeys(
        (
            *("CutlassFP8ScaledMMLinearKernel", "CutlassFp8BlockScaledMMKernel", "CutlassW4A8LinearKernel"),
            *("FlashInferFP8ScaledMMLinearKernel", "FlashInferFp8DeepGEMMDynamicBlockScaledKernel"),
            *(
                "DeepGemmFp8BlockScaledMMKernel",
                "TritonFp8BlockScaledMMKernel",
                "BlockWiseTorchFP8ScaledMMLinearKernel",
            ),
            *("B12xTensorFP8ScaledMMLinearKernel", "B12xFp8BlockScaledMMKernel"),
        ),
        _FLOAT8,
    ),
    **dict.fromkeys(
        (
            *("MacheteLinearKernel", "MarlinLinearKernel", "MarlinFP8ScaledMMLinearKernel", "ConchLinearKernel"),
            *("ExllamaLinearKernel", "TritonW4A16LinearKernel", *AWQ_METHODS),
        ),
        _WEIGHTS_ONLY,
    ),
}
"""By the kernel's class, where the class alone tells."""
TORCH_FP8 = frozenset(f"{scales}TorchFP8ScaledMMLinearKernel" for scales in ("PerTensor", "ChannelWise", "RowWise"))
"""torch._scaled_mm. On a CPU without AMX it converts both matrices to float32 for every product."""
PLAIN = "Unquantized"
"""What the name of a method begins with that does not quantize."""
_KERNELS = ("kernel", "fp8_linear", "linear_kernel")
"""The attributes in which methods and schemes keep the object that multiplies."""


@dataclass(frozen=True)
class Layer:
    """A layer as vLLM runs it; it may be several of the checkpoint's layers in one.

    ``kernel`` names method or scheme and what multiplies. ``family`` and ``arithmetic`` are None for kernels that the
    harness does not know. ``packed_rows`` is the most rows at once for which codes stay packed; None is no limit.
    ``dtype`` is that of its matrix in memory, ``parameters`` the elements that this represents.
    ``value_bytes`` and ``scale_bytes`` are what it holds in memory, padding included.
    """

    role: Role
    kernel: str
    family: KernelFamily | None
    arithmetic: Arithmetic | None
    dtype: str
    quantized: bool
    parameters: int
    value_bytes: int
    scale_bytes: int
    packed_rows: int | None = None

    def product(self, rows: int) -> Product | None:
        """How the layer multiplies that many rows at once; None if it is not known."""
        if self.family is None or self.arithmetic is None:
            return None
        unpacks = self.family == "packed" and self.packed_rows is not None and rows > self.packed_rows
        return Product("dequantize" if unpacks else self.family, self.arithmetic.products)


@dataclass(frozen=True)
class Description:
    """A loaded model. ``places`` maps modules of the checkpoint to the layers that hold them.

    ``memory_bytes`` are all weights in memory, see the function. ``dtype`` is the model's. ``tied`` names the
    embedding that is the head too; None if the head is a matrix of its own.
    """

    layers: Mapping[str, Layer]
    places: Mapping[str, str]
    memory_bytes: int
    dtype: str
    tied: str | None


def describe(model: torch.nn.Module, modules: Sequence[str], dtype: torch.dtype) -> Description:
    """Looks at the modules that vLLM loaded from a checkpoint with ``modules``; runs where the model is."""
    named = dict(model.named_modules())
    layers = {name: made for name, module in named.items() if (made := _layer(module, dtype)) is not None}
    places = {name: place for name in modules if (place := _place(model, name, layers)) is not None}
    # a head that is the very module of the embedding has a name of its own only among the duplicates
    heads = [each for name, each in model.named_modules(remove_duplicate=False) if _is_head(name)]
    embeddings = (name for name, layer in layers.items() if layer.role == "embedding")
    tied = next((name for name in embeddings if any(_shared(named[name], head) for head in heads)), None)
    return Description(layers, places, memory_bytes(model), _name(dtype), tied)


class CheckpointWeights:
    """The weights of a checkpoint, as vLLM holds and multiplies them."""

    def __init__(self, folder: Path) -> None:
        self._modules: dict[str, list[Tensor]] = defaultdict(list)
        for tensor in tensors(folder):
            self._modules[tensor.name.rpartition(".")[0]].append(tensor)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the checkpoint's modules."""
        return tuple(self._modules)

    def ledger(self, model: Description) -> list[StoredTensor]:
        """Every parameter of the checkpoint, as loaded.

        Codes count as the checkpoint stores them, without the kernels' padding, and so do scales, unless vLLM holds
        less: it casts some to the model's dtype and drops indices. Unquantized matrices count in the dtype that they
        are held in. The bytes of a matrix that vLLM quantized while loading are those in memory.
        """
        words: Counter[str] = Counter()  # of each layer, to share its parameters among those that it merges
        for name, held in self._modules.items():
            if name in model.places:
                words[model.places[name]] += _matrix(held).bytes
        return [
            *(entry for name, held in self._modules.items() for entry in _entries(name, held, model, words)),
            *self._tied_head(model),
        ]

    def kernels(self, model: Description) -> Mapping[str, int]:
        """The number of the decoder's layers by method or scheme and kernel."""
        return dict(Counter(layer.kernel for layer in self._linears(model).values()))

    def products(self, model: Description, rows: int) -> Mapping[str, Product]:
        """By layer of the decoder, and the head's; without those whose kernel is not known."""
        known = {name: layer.product(rows) for name, layer in self._multiplied(model).items()}
        return {name: product for name, product in known.items() if product is not None}

    def arithmetic(self, model: Description) -> Mapping[str, Arithmetic]:
        """By layer of the decoder, and the head's; without those whose kernel is not known."""
        known = self._multiplied(model)
        return {name: layer.arithmetic for name, layer in known.items() if layer.arithmetic is not None}

    def _multiplied(self, model: Description) -> dict[str, Layer]:
        """The decoder's layers and the head."""
        known = self._linears(model)
        for place in model.places.values():
            multiplies = place == model.tied if model.tied else model.layers[place].role == "head"
            if multiplies:
                known[HEAD] = model.layers[place]
        return known

    def _linears(self, model: Description) -> dict[str, Layer]:
        return {name: model.layers[place] for name, place in model.places.items() if in_decoder(f"{name}.weight", 2)}

    def _tied_head(self, model: Description) -> Iterator[StoredTensor]:
        """The head that is the embedding; a checkpoint may have a tensor for it, a copy that vLLM drops."""
        for name, place in model.places.items():
            layer = model.layers[place]
            if place == model.tied:
                count = math.prod(_matrix(self._modules[name]).shape)
                yield StoredTensor(f"{HEAD}.weight", "head", layer.dtype, count, 0, 0, layer.quantized, tied=True)


def memory_bytes(model: torch.nn.Module) -> int:
    """The bytes of all weights in memory, each storage once: parameters, buffers, and what the kernels keep.

    A handler of oneDNN has its own copy of a matrix, counted without padding, which it does not tell.
    """
    storages: dict[int, int] = {}
    handlers: dict[int, int] = {}
    for module in model.modules():
        kept, keepers = _kept(module)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False), *kept]
        storages |= {each.untyped_storage().data_ptr(): int(each.untyped_storage().nbytes()) for each in own}
        handlers |= {id(handler): handler.k * handler.n * size for handler, size in keepers}
    return sum(storages.values()) + sum(handlers.values())


def held_beside_codes(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the quantized layers by name. Scales in plain bytes are powers of two, as MXFP8 and MXFP4 have."""
    import torch

    for place, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if _role(module) and method is not None and not type(method).__name__.startswith(PLAIN):
            for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                is_power = tensor.dtype == torch.uint8 and "scale" in name
                yield f"{place}.{name}", tensor.view(torch.float8_e8m0fnu) if is_power else tensor


def _layer(module: Any, dtype: torch.dtype) -> Layer | None:
    """A module with a matrix that a method of vLLM multiplies or gathers; None for any other."""
    method = getattr(module, "quant_method", None)
    role = _role(module)
    if method is None or role is None:
        return None
    scheme = getattr(module, "scheme", None)
    kernel = next(
        (held for owner in (scheme, method) for name in _KERNELS if (held := getattr(owner, name, None))), None
    )
    values, scales, stored, single = _held(module, kernel, dtype)
    quantized = not type(method).__name__.startswith(PLAIN)
    running = _plain_kernel(module) if kernel is None and not quantized else type(kernel or method).__name__
    rule = _rule(module, running, quantized, dtype) if single else None
    packed_rows = _packed_rows(running, kernel)
    arithmetic = Arithmetic(rule[1] or _name(dtype), rule[2] or _multiplied(dtype, module)) if rule else None
    if hint := getattr(module, "isa_hint", None):
        running += f" ({hint})"
    shown = running if kernel is None and quantized else f"{type(scheme or method).__name__} on {running}"
    return Layer(
        role,
        shown,
        rule[0] if rule else None,
        arithmetic,
        stored,
        quantized,
        _parameters(module),
        values,
        scales,
        packed_rows,
    )


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] == HEAD


def _shared(embedding: Any, head: Any) -> bool:
    own = getattr(head, "weight", None)
    return head is embedding or (own is not None and own is getattr(embedding, "weight", None))


def _role(module: Any) -> Role | None:
    names = {each.__name__ for each in type(module).__mro__}
    if "ParallelLMHead" in names:
        return "head"
    if "VocabParallelEmbedding" in names:
        return "embedding"
    return "linear" if names & {"LinearBase", "RoutedExperts", "FusedMoE"} else None


def _parameters(module: Any) -> int:
    """The elements that a module's matrix represents, over all GPUs; 0 for experts, which the checkpoint counts."""
    if hasattr(module, "org_vocab_size"):
        return int(module.org_vocab_size * module.embedding_dim)
    if hasattr(module, "input_size"):
        return int(module.input_size * sum(getattr(module, "output_sizes", None) or [module.output_size]))
    return 0


def _packed_rows(running: str, kernel: Any) -> int | None:
    """The most rows at once for which a kernel for GPUs keeps codes packed; None is no limit."""
    if running in AWQ_METHODS:
        return 255
    if running == "ExllamaLinearKernel":
        return 24 if kernel.config.weight_type.size_bits == 8 else 50
    return None


def _rule(module: Any, kernel: str, quantized: bool, dtype: torch.dtype) -> Rule | None:
    """How a kernel multiplies here; None if that is not known."""
    if not quantized:
        return "plain", None, None
    if kernel == "CPUWNA16LinearKernel":
        if module.use_w4a8:  # with AMX, unless VLLM_CPU_INT4_W4A8=0
            return _EIGHT_BITS
        return ("packed", None, None if module.isa_hint == "amx" else "float32")
    if kernel in TORCH_FP8:
        emulated = module.weight.device.type == "cpu" and not _capabilities().get("amx_int8", False)
        return ("dequantize", FP8, "float32") if emulated else _FLOAT8
    return RULES.get(kernel)


def _multiplied(dtype: torch.dtype, module: Any) -> str:
    """The dtype in which a dense product of ``dtype`` is computed: a CPU without its instructions widens to float32."""
    import torch

    own = next(module.parameters(recurse=False), None)
    if own is not None and own.device.type != "cpu":
        return _name(dtype)
    able = _capabilities()
    instructions = {
        torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
        torch.float16: ("avx512_fp16", "amx_fp16", "fp16"),
    }
    native = dtype not in instructions or any(able.get(name, False) for name in instructions[dtype])
    return _name(dtype) if native else "float32"


def _capabilities() -> Mapping[str, Any]:
    """The processor's instructions, by torch's names; bf16 and fp16 are those of Arm."""
    import torch

    found: Mapping[str, Any] = torch.cpu.get_capabilities()
    return found


def _plain_kernel(module: Any) -> str:
    """What multiplies an unquantized matrix. On a CPU it is a closure over what it multiplies with."""
    multiply = getattr(module, "cpu_linear", None)
    names = getattr(getattr(multiply, "__code__", None), "co_freevars", ())
    library = {"handler": "oneDNN", "packed_weight": "sgl-kernel", "zen_weight": "zentorch"}
    return next((library[name] for name in names if name in library), "torch")


def _held(module: Any, kernel: Any | None, dtype: torch.dtype) -> tuple[int, int, str, bool]:
    """Bytes of a module's matrix, of its scales and zero points, the matrix's dtype, and whether it is a single one.

    A layer of two handlers or without a matrix multiplies in a way that the harness does not know.
    """
    kept, handlers = _kept(module)
    own = {name: each for name, each in module.named_parameters(recurse=False) if "bias" not in name}
    matrices = [*(each for each in own.values() if each.dim() >= 2), *kept]
    codes = [each for each in matrices if each.dtype.itemsize == 1 or not each.is_floating_point()]
    if handlers:
        values = sum(handler.k * handler.n * size for handler, size in handlers)
        scales = sum(each.nbytes for each in own.values() if each.dim() < 2 or kernel)
        stored = _name(module.weight.dtype) if getattr(module, "weight", None) is not None else INT8
        return values, scales, stored, len(handlers) == 1
    largest = max(codes or matrices or own.values(), key=lambda each: each.nbytes, default=None)
    if largest is None:
        return 0, 0, _name(dtype), False
    scales = sum(each.nbytes for each in own.values() if each is not largest)
    return largest.nbytes, scales, _name(largest.dtype), bool(matrices)


def _kept(module: Any) -> tuple[list[torch.Tensor], list[tuple[Any, int]]]:
    """Tensors and handlers (with the bytes of an element) that a module's kernel keeps outside its parameters."""
    import torch

    cells = [cell.cell_contents for cell in getattr(getattr(module, "cpu_linear", None), "__closure__", None) or ()]
    kept = [cell for cell in cells if isinstance(cell, torch.Tensor)]
    handlers = [(cell, module.weight.dtype.itemsize) for cell in cells if hasattr(cell, "handler_tensor")]
    for owner in (getattr(module, "scheme", None), getattr(module, "quant_method", None)):
        handler = getattr(getattr(owner, "kernel", None), "dnnl_handler", None)
        handlers += [(handler, 1)] if handler is not None else []
    return kept, handlers


def _place(model: Any, name: str, layers: Mapping[str, Layer]) -> str | None:
    """The layer that holds a module of the checkpoint; for an expert's matrix its experts'. None for others."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    mapped = mapper.map_name(f"{name}.weight") if mapper is not None else f"{name}.weight"
    candidate = (mapped or "").removesuffix(".weight")
    before, _, last = candidate.rpartition(".")
    merged = [whole for whole, parts in getattr(model, "packed_modules_mapping", {}).items() if last in parts]
    experts = candidate.partition(".experts")[0] + ".experts" if ".experts" in candidate else ""
    guesses = [candidate, *(f"{before}.{whole}" for whole in merged), experts, f"{experts}.routed_experts"]
    return next((guess for guess in guesses if guess in layers), None)


def _entries(name: str, held: Sequence[Tensor], model: Description, words: Mapping[str, int]) -> Iterator[StoredTensor]:
    """The ledger's entries of a module of the checkpoint."""
    if model.tied and _is_head(name):
        yield from (_other(tensor, model.dtype) for tensor in held if tensor.name.endswith("bias"))
        return
    place = model.places.get(name)
    if place is None:
        yield from (_other(tensor, model.dtype) for tensor in held)
        return
    layer, matrix = model.layers[place], _matrix(held)
    beside = [tensor for tensor in held if tensor is not matrix and not tensor.name.endswith("bias")]
    plain = matrix.dtype in FLOAT_TYPES
    words_of = words[place] or 1
    count = math.prod(matrix.shape) if plain or matrix.bytes == math.prod(matrix.shape) else None
    parameters = count if count is not None else round(layer.parameters * matrix.bytes / words_of)
    if not layer.quantized:
        values, scales = parameters * _itemsize(layer.dtype), 0
    else:
        values, scales = (round(size * matrix.bytes / words_of) for size in (layer.value_bytes, layer.scale_bytes))
        if not plain:  # quantized before it was loaded
            values, scales = matrix.bytes, min(scales, sum(tensor.bytes for tensor in beside))
    storage = layer.kernel if layer.quantized else layer.dtype
    yield StoredTensor(f"{name}.weight", layer.role, storage, parameters, values, scales, layer.quantized)
    yield from (_other(tensor, model.dtype) for tensor in held if tensor.name.endswith("bias"))


def _matrix(held: Sequence[Tensor]) -> Tensor:
    """The codes of a module, or its only matrix."""
    return max(held, key=lambda tensor: (tensor.dtype not in FLOAT_TYPES, tensor.bytes))


def _other(tensor: Tensor, dtype: str) -> StoredTensor:
    """A norm, a bias, or another tensor that no layer multiplies; vLLM holds floats in the model's dtype."""
    count, floats = math.prod(tensor.shape), tensor.dtype in FLOAT_TYPES
    size = count * _itemsize(dtype) if floats else tensor.bytes
    return StoredTensor(tensor.name, "other", dtype if floats else tensor.dtype, count, size, 0, False)


def _itemsize(dtype: str) -> int:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    return kind.itemsize


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
