"""Which of a model's parameters a method is meant to quantize."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from harness.core.layers import layer_of

if TYPE_CHECKING:
    import torch

HEAD = "lm_head"
LEAST_COVERAGE = 0.99
"""If a smaller fraction of the declared scope is quantized, a variant is not what its name says."""
_ROUTER = re.compile(r"\.(gate|router|ffn_gate_inp)(\.(layer|proj|classifier))?(\.weight)?$")
"""A layer, or a module around one: Gemma 4's is ``router.proj``, that of Granite's checkpoints ``router.layer``."""
UNFUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
"""The 3-D parameters that transformers fuses a layer's experts into, and the projections of one expert in each."""
FUSED = (*UNFUSED, *(f"{name}_bias" for name in UNFUSED))
"""These parameters, and the 2-D ones of their biases."""
_MERGED = re.compile(rf"(.*\.experts)\.({'|'.join(UNFUSED)})")
_TRANSPOSED = frozenset({"gpt_oss"})
"""The types that store them as (experts, inputs, outputs)."""
PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""What checkpoints of Mixtral and its relatives call an expert's matrices, and the layers that they become."""
_NUMBER = re.compile(r"(?<=\.experts\.)(\d+)\.(?=\w+$)")
_BLOCK = (".block_sparse_moe.", ".mlp.")
_SINGLE = re.compile(rf"\.experts\.(\d+)\.({'|'.join(PROJECTIONS)})$")
_MULTIMODAL = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head"), HEAD),
    (re.compile(r"^(?=(vision|visual|video|audio|multi_modal)\w*\.)"), "model."),
    (re.compile(r"(?<=vision_tower\.)vision_model\."), ""),
)
"""Names in checkpoints of multimodal models, and those of transformers' modules."""
_EXPERTS = re.compile(r"(^|\.)experts\.|_exps\.")
_BIAS = re.compile(r"[._]bias$")
_CONVOLUTION = re.compile(r"conv\w*\.")
_OTHER_INPUTS = re.compile(
    r"(^|\.)(vision\w*|visual\w*|video\w*|audio\w*|image\w*|multi_?modal\w*|mm_\w*|embed_(vision|audio|image)"
    r"|speech\w*|\w*projector|\w*resampler\w*|connector|aligner|qformer|language_projection)\."
)

UNFUSES = frozenset({"deepseek_v2", "deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""The types of mixtures (``model_type``) whose experts can become linear layers: a test compares what these compute."""
TRIED = frozenset({"deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe"})
"""Those of them on which every method is tried: pipelines of libraries treat architectures differently."""


def in_decoder(name: str, dimensions: int) -> bool:
    """Whether a parameter is in the ``decoder`` scope: a matrix (or a stack of experts' matrices) of a layer.

    A mixture's router is excluded, as in every method: it is small and critical. So are biases (a stack of experts has
    one bias vector per expert), the short convolutions beside linear attention, and what reads other inputs than text.
    """
    if dimensions < 2 or _BIAS.search(name) or reads_other_inputs(name):
        return False
    if dimensions == 3 and _CONVOLUTION.search(name):
        return False
    return layer_of(name) is not None and _ROUTER.search(name) is None


def reads_other_inputs(name: str) -> bool:
    """Whether a parameter of a multimodal checkpoint is a part of its vision or audio model: out of every scope."""
    return _OTHER_INPUTS.search(name) is not None


def holds_experts(name: str, dimensions: int) -> bool:
    """Whether a matrix of the decoder belongs to a mixture's experts, by its name in a checkpoint.

    transformers holds the experts of a layer in one 3-D parameter, and not as layers, even if a checkpoint (or
    llama.cpp) stores them one by one. Experts that process every token ("shared") are ordinary layers.
    """
    return in_decoder(name, dimensions) and (dimensions >= 3 or _EXPERTS.search(name) is not None)


def experts_module(name: str) -> str:
    """transformers' name for the experts of a GGUF file's layer, which patterns of ``skip`` match; other names stay."""
    found = re.fullmatch(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight", name)
    if found is None:
        return name
    return f"model.layers.{found[1]}.mlp.experts.{'down_proj' if found[2] == 'down' else 'gate_up_proj'}"


def transformers_name(name: str) -> str:
    """The name in transformers' model of what a checkpoint calls otherwise, apart from what is fused."""
    for pattern, here in _MULTIMODAL:
        name = pattern.sub(here, name)
    return name.replace(*_BLOCK)


def module_name(name: str) -> str:
    """transformers' name of the module that a checkpoint's parameter belongs to, with unfused experts."""
    module = transformers_name(name).removesuffix(".weight")
    return _SINGLE.sub(lambda found: f".experts.{found[1]}.{PROJECTIONS[found[2]]}", module)


def stack_of(module: str) -> tuple[str, int | None]:
    """What llama.cpp's stack of the same matrix of all experts is called here, and the number of this module's expert.

    Of any other module, its own name and None.
    """
    found = _NUMBER.search(module)
    return (module, None) if found is None else (_NUMBER.sub("", module), int(found[1]))


def divided_stack(method: str, skipped: Mapping[str, Iterable[bool]]) -> str | None:
    """Why single experts cannot be skipped in a format that has the same matrix of all experts in one tensor; or None.

    ``skipped`` says of each such stack, and of each expert in it, whether the recipe skips it.
    """
    for stack, each in skipped.items():
        if len(set(each)) > 1:
            return (
                f"{method} quantizes all experts of a layer together, and the recipe skips some of them in {stack}; "
                "skip all or none"
            )
    return None


def linears(name: str, shape: tuple[int, ...]) -> dict[str, int]:
    """The modules whose matrices a checkpoint's parameter holds, and their sizes: several for a stack of experts.

    Names are those of transformers' modules with unfused experts; see ``harness.models.unfuse``.
    """
    stack = _MERGED.fullmatch(module_name(name))
    if stack is None or len(shape) != 3:
        return {module_name(name): math.prod(shape)}
    parts = UNFUSED[stack[2]]
    size = math.prod(shape) // shape[0] // len(parts)
    return {f"{stack[1]}.{number}.{part}": size for number in range(shape[0]) for part in parts}


def shape_of(name: str, shape: tuple[int, ...], model_type: str | None) -> tuple[int, ...]:
    """A matrix, or a stack of them, with (outputs, inputs) last, which some types of mixtures store the other way."""
    stored_transposed = model_type in _TRANSPOSED and len(shape) == 3 and _MERGED.fullmatch(name) is not None
    return (shape[0], shape[2], shape[1]) if stored_transposed else shape


@dataclass(frozen=True)
class Modules:
    """Names of modules: ``scope`` will be quantized, ``untouched`` are all others that have a matrix.

    ``sizes`` are the elements of the matrices in scope, and ``names`` what each is called in the checkpoint.
    """

    scope: tuple[str, ...]
    untouched: tuple[str, ...]
    sizes: Mapping[str, int]
    names: Mapping[str, str]

    def matching(self, module: str, patterns: Iterable[str]) -> list[str]:
        """The patterns that match a module in scope by its own name or by the checkpoint's."""
        return [each for each in patterns if matching(module, [each]) or matching(self.names[module], [each])]


def modules(shapes: Mapping[str, tuple[int, ...]], skip: Sequence[str] = ()) -> Modules:
    """Sorts a checkpoint's modules by its header; modules that match a pattern of ``skip`` are not in scope.

    What is called otherwise in the checkpoint and is left whole is in ``untouched`` by both names.
    """
    sizes: dict[str, int] = {}
    names: dict[str, str] = {}
    left: dict[str, None] = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        stored, inside = name.removesuffix(".weight"), in_decoder(name, len(shape))
        own = linears(name, shape)
        skipped = [module for module in own if not inside or matching(stored, skip) or matching(module, skip)]
        left |= dict.fromkeys([stored, *skipped] if len(skipped) == len(own) else skipped)
        for module in own.keys() - set(skipped) if skipped else own:
            sizes[module], names[module] = own[module], stored
    left[HEAD] = None  # a tied head has no tensor of its own
    return Modules(tuple(sizes), tuple(left), sizes, names)


def matching(module: str, patterns: Iterable[str]) -> list[str]:
    """The patterns (of ``*``, ``?`` and ``[…]``) that match a module's whole name."""
    return [pattern for pattern in patterns if fnmatchcase(module, pattern)]


def decoder_linears(model: Any, untouched: Collection[str] = ()) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers of the decoder, by name, except those in ``untouched``."""
    import torch

    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and in_decoder(f"{name}.weight", 2) and name not in untouched:
            yield name, module
