"""Gives each expert of a mixture linear layers of its own, which every library quantizes.

transformers 5 fuses the experts of a layer, when it loads them, into two 3-D parameters. ``unfuse`` replaces such a
module by one ``torch.nn.Linear`` per expert and projection; routing, activation, biases and clamping stay those of the
model. The names are those of most published checkpoints: ``experts.7.gate_proj``, ``up_proj`` and ``down_proj``.

The products are the same numbers: each expert multiplies the same rows, in the order in which transformers'
``grouped_mm`` sorts them, and each token's results are summed as there. A matrix product may be computed in another
order for another shape (the fused one multiplies gate and up at once), so results can differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.quantizers.base import HfQuantizer

from harness.models.scope import FUSED, PROJECTIONS, UNFUSED

_INTERFACE = ("num_experts", "has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")
"""What transformers' ``use_experts_implementation`` and the experts themselves declare."""


class Expert(torch.nn.Module):
    """The projections of one expert: ``gate_proj`` (if it has a gate), ``up_proj`` and ``down_proj``."""

    def __init__(self, hidden: int, inner: int, gate: bool, bias: bool, like: torch.Tensor) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": bias, "device": "meta", "dtype": like.dtype}
        self.gate_proj = torch.nn.Linear(hidden, inner, **options) if gate else None
        self.up_proj = torch.nn.Linear(hidden, inner, **options)
        self.down_proj = torch.nn.Linear(inner, hidden, **options)


class UnfusedExperts(torch.nn.Module):
    """The experts of a layer by number, each an ``Expert``; everything else is as in the ``fused`` module.

    They are on the meta device until ``take`` gives them weights.
    """

    config: Any
    num_experts: int
    is_transposed: bool
    is_concatenated: bool
    act_fn: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.apply_gate = type(fused)._apply_gate
        for name, value in vars(fused).items():  # what the gate's function reads: limits, the configuration
            if name not in self.__dict__:
                setattr(self, name, value)
        for name, child in fused.named_children():
            self.add_module(name, child)
        hidden, inner = reversed(fused.down_proj.shape[1:]) if fused.is_transposed else fused.down_proj.shape[1:]
        for number in range(fused.num_experts):
            expert = Expert(hidden, inner, fused.has_gate, fused.has_bias, fused.down_proj)
            self.add_module(str(number), expert)

    @property
    def share(self) -> float:
        """The share of a text's tokens that an expert gets if all get the same."""
        return float(getattr(self.config, "num_experts_per_tok", self.num_experts) / self.num_experts)

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``states`` (tokens, hidden) of tokens that go to the experts ``chosen`` with ``weights`` (tokens, k)."""
        tokens, each = chosen.shape
        order = chosen.reshape(-1).argsort(stable=True)
        counts = torch.bincount(chosen.reshape(-1), minlength=self.num_experts).tolist()
        rows = torch.split(states[order // each], counts)
        found = torch.cat([self._expert(number, part) for number, part in enumerate(rows) if len(part)])
        found = found * weights.reshape(-1)[order].unsqueeze(-1)
        return found[order.argsort()].view(tokens, each, -1).sum(dim=1).to(states.dtype)

    def _expert(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        expert: Any = self.get_submodule(str(number))
        up = expert.up_proj(rows)
        if expert.gate_proj is None:
            return expert.down_proj(self.act_fn(up))  # type: ignore[no-any-return]
        gate = expert.gate_proj(rows)
        joined = torch.cat([gate, up], -1) if self.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
        return expert.down_proj(self.apply_gate(self, joined))  # type: ignore[no-any-return]

    def parts(self, name: str, fused: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The experts' own parameters in a ``fused`` one, such as ``gate_up_proj_bias``, by their names below this."""
        stack, kind = name.removesuffix("_bias"), "bias" if name.endswith("_bias") else "weight"
        if kind == "weight" and self.is_transposed:
            fused = fused.transpose(1, 2)
        owners = UNFUSED[stack]
        for number, own in enumerate(fused):
            if len(owners) == 1:
                halves: tuple[torch.Tensor, ...] = (own,)
            else:
                halves = own.chunk(2) if self.is_concatenated else (own[0::2], own[1::2])
            for owner, half in zip(owners, halves, strict=True):
                yield f"{number}.{owner}.{kind}", half.clone(memory_format=torch.contiguous_format)

    def take(self, fused: torch.nn.Module) -> None:
        """Moves the weights of the ``fused`` module here, matrix by matrix."""
        for name in FUSED:
            held = fused._parameters.pop(name, None)
            for path, tensor in self.parts(name, held.data) if held is not None else ():
                owner, _, kind = path.rpartition(".")
                parameter = torch.nn.Parameter(tensor, requires_grad=held.requires_grad)  # type: ignore[union-attr]
                setattr(self.get_submodule(owner), kind, parameter)


def is_fused(module: torch.nn.Module) -> bool:
    """Whether a module holds the experts of a layer in 3-D parameters, as transformers' interface describes them.

    And in no others, so that what a library has already replaced is left alone.
    """
    own = {name for name, parameter in module._parameters.items() if parameter is not None}
    return "down_proj" in own and own <= set(FUSED) and all(hasattr(module, name) for name in _INTERFACE)


def unfuse(root: torch.nn.Module, untouched: Collection[str] = ()) -> int:
    """Replaces all fused experts below ``root``, a model or one layer, and returns how many modules it replaced.

    Parameters on the meta device stay there, so a skeleton becomes the skeleton of the unfused model. If all experts
    are ``untouched`` (names of the linear layers that they would become), they stay fused.
    """
    fused = [(name, module) for name, module in root.named_modules() if name and is_fused(module)]
    left = set(untouched)
    if left and all(f"{path}.{each}" in left for path, module in fused for each in projections(module)):
        return 0
    for name, module in fused:
        own = UnfusedExperts(module).train(module.training)
        own.take(module)
        root.set_submodule(name, own)
    return len(fused)


def unfuse_named(model: torch.nn.Module, layers: Collection[str]) -> None:
    """Unfuses the experts of a model whose checkpoint has ``layers``, if some of these are an expert's."""
    if any(".experts." in name for name in layers):
        unfuse(model)


def projections(fused: Any) -> Iterator[str]:
    """The names of the linear layers that fused experts become, below them."""
    for number in range(fused.num_experts):
        for stack in fused._parameters.keys() & UNFUSED.keys():
            yield from (f"{number}.{part}" for part in UNFUSED[stack])


class Unfusing(WeightConverter):  # type: ignore[misc]
    """A step of loading: a fused parameter, after what transformers does to make it, becomes the experts' own.

    Each matrix is quantized by itself, as far as the quantizer wants it.
    """

    def __init__(self, stack: str, made_by: WeightConverter | None = None) -> None:
        before, _, name = stack.rpartition(".")
        self.stack, self.made_by = name, made_by
        first = f"{before}.0.{UNFUSED[name.removesuffix('_bias')][0]}.{'bias' if name.endswith('_bias') else 'weight'}"
        sources = made_by._original_source_patterns if made_by else [rf"\.experts\.{name}$"]
        super().__init__(list(sources), [first], made_by.operations if made_by else [_AsItIs()])

    def convert(
        self, layer_name: str, model: Any = None, config: Any = None, hf_quantizer: Any = None, **options: Any
    ) -> dict[str, torch.Tensor]:
        held = self.materialize_tensors()
        for operation in self.operations:
            held = operation.convert(
                held,
                source_patterns=self.source_patterns,
                target_patterns=self.made_by.target_patterns if self.made_by else [self.stack],
                full_layer_name=layer_name,
                model=model,
                config=config,
            )
        [fused] = held.values()
        path = layer_name.partition(".experts.")[0] + ".experts"
        made: dict[str, torch.Tensor] = {}
        for name, tensor in model.get_submodule(path).parts(self.stack, fused[0] if isinstance(fused, list) else fused):
            made |= self._quantized(f"{path}.{name}", tensor, model, config, hf_quantizer, **options)
        return made

    def reverse_transform(self) -> _AsItIs:
        """Experts are saved one by one, as they are then."""
        return _AsItIs()

    def _quantized(
        self, name: str, tensor: torch.Tensor, model: Any, config: Any, hf_quantizer: Any, loading_info: Any = None
    ) -> dict[str, torch.Tensor]:
        if hf_quantizer is None or hf_quantizer.pre_quantized or not hf_quantizer.param_needs_quantization(model, name):
            return {name: tensor}
        missing = loading_info.missing_keys if loading_info else None
        return hf_quantizer.get_quantize_ops().convert(  # type: ignore[no-any-return]
            {name: tensor}, full_layer_name=name, model=model, config=config, missing_keys=missing
        )


class _AsItIs:
    """The step of a checkpoint that stores experts fused, and of saving experts that are not."""

    def convert(self, tensors: dict[str, Any], **options: Any) -> dict[str, Any]:
        return tensors


def conversions(known: list[Any], quantized: bool) -> list[Any]:
    """transformers' steps of loading for unfused experts.

    Of a ``quantized`` checkpoint, whose experts are stored one by one, renaming takes the place of those that fuse. Of
    any other checkpoint, those and fused parameters are followed by unfusing.
    """
    if quantized:
        names = [(rf"\.experts\.(\d+)\.{stored}\.", rf".experts.\1.{own}.") for stored, own in PROJECTIONS.items()]
        return [*(each for each in known if not _stack(each)), *(WeightRenaming(*each) for each in names)]
    kept = [Unfusing(stack, each) if (stack := _stack(each)) else each for each in known]
    return kept + [Unfusing(f".experts.{name}") for name in FUSED]


def _stack(step: Any) -> str:
    """The fused parameter that a step of loading makes; empty for any other step."""
    target = step.target_patterns[0] if isinstance(step, WeightConverter) else ""
    before, _, name = target.rpartition(".")
    return target if name in FUSED and before.endswith("experts") else ""


@contextmanager
def unfused(untouched: Collection[str] = ()) -> Iterator[None]:
    """Within this context, models that transformers loads with a quantizer have unfused experts.

    The quantizer sees linear layers. The experts of an unquantized checkpoint are unfused as they are read. If all
    experts are ``untouched``, they stay fused.
    """
    changed: list[Any] = []
    preprocess = HfQuantizer.preprocess_model

    def prepared(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        if unfuse(model, untouched):
            update = self.update_weight_conversions  # its own: that of compressed-tensors unpacks before it fuses
            self.update_weight_conversions = lambda known: update(conversions(known, self.pre_quantized))
            changed.append(self)
        return preprocess(self, model, *arguments, **options)

    HfQuantizer.preprocess_model = prepared
    try:
        yield
    finally:
        HfQuantizer.preprocess_model = preprocess
        for quantizer in changed:
            del quantizer.update_weight_conversions
