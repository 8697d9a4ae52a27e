"""Draws the random weights of a model layer by layer: those that transformers draws for the whole model.

transformers constructs a model and initializes it module by module, and both draw from one generator. Here empty
tensors get no numbers while the model is constructed, and each module is initialized twice. The first time only
advances the generator, whose state is kept. The second time, when all modules have names, the numbers are written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from harness.core.model import ModelRef
from harness.errors import UnsupportedError
from harness.host.allocator import return_freed_memory
from harness.models.loading import auto_class
from harness.models.streaming.parts import part_name, stored_tensors, tied_tensors
from harness.models.streaming.writing import CheckpointWriter


def draw(ref: ModelRef, out: Path) -> None:
    """Writes the checkpoint of a synthetic model. Raises UnsupportedError if transformers knows no such model.

    If the rules of its architecture initialize other weights than those of the module at hand, it is drawn whole.
    """
    return_freed_memory()
    try:
        model, drawn = _rehearse(ref)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        _construct(ref).save_pretrained(out)
        return
    stored = dict(stored_tensors(model))
    own = {name: tensor for name, tensor in stored.items() if name not in tied_tensors(model, stored)}
    layers: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in own.items():
        layers[part_name(name)][name] = tensor
    names = {id(module): name for name, module in model.named_modules()}
    with CheckpointWriter(model, out) as writer:

        def write_whole(layer: str) -> None:
            if all(tensor.device.type != "meta" for tensor in layers[layer].values()):
                writer.write(layers.pop(layer))

        for layer in list(layers):
            write_whole(layer)
        for each in drawn:
            prefix = f"{name}." if (name := names[id(each.module)]) else ""
            made = {f"{prefix}{own_name}": tensor for own_name, tensor in each.again(ref.dtype).items()}
            for name in made.keys() & own.keys():
                layers[part_name(name)][name] = made[name]
            for layer in {part_name(name) for name in made.keys() & own.keys()}:
                write_whole(layer)


@dataclass(frozen=True)
class _Initialized:
    """A module that was initialized, by which rules, and with which state of the generator."""

    module: torch.nn.Module
    initialize: Callable[[torch.nn.Module], None]
    state: torch.Tensor

    def again(self, dtype: str) -> dict[str, torch.Tensor]:
        """What was drawn, by its names in the module."""
        torch.set_rng_state(self.state)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            with torch.no_grad(), guard_torch_init_functions(), _numbers(self.module) as made:
                self.initialize(self.module)
        finally:
            torch.set_default_dtype(before)
        return made


def _construct(ref: ModelRef) -> Any:
    settings = dict(ref.config)
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (ValueError, KeyError) as error:
        raise UnsupportedError(f"transformers knows no such model: {error}") from None
    torch.manual_seed(ref.seed)
    return auto_class(type(config)).from_config(config, dtype=ref.dtype)


def _rehearse(ref: ModelRef) -> tuple[Any, list[_Initialized]]:
    """The model without numbers where tensors were empty, and what was drawn for it, in order.

    Raises RuntimeError, which names torch's device ``meta``, if it computes with numbers that are not there.
    """
    drawn: list[_Initialized] = []
    empty = _EmptyTensors()  # type: ignore[no-untyped-call]

    def initialize(model: Any, module: torch.nn.Module, is_custom_code: bool = False) -> None:
        if getattr(module, "_is_hf_initialized", False):
            return
        state = torch.get_rng_state()
        with _numbers(module) as made:
            empty.in_rules = True
            model._init_weights(module)
            empty.in_rules = False
        if any(tensor._version == 0 for tensor in made.values()):
            raise RuntimeError("the rules leave weights on the meta device as they were constructed")
        if made:
            drawn.append(_Initialized(module, model._init_weights, state))
        module._is_hf_initialized = True  # type: ignore[assignment]

    with mock.patch.object(PreTrainedModel, "_initialize_weights", initialize), empty:
        return _construct(ref), drawn


class _EmptyTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes empty tensors without numbers. What fills them with random numbers advances the generator all the same.

    ``in_rules``: the numbers of the module at hand are there, and those of others must not be needed.
    """

    in_rules = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lacking = any(isinstance(each, torch.Tensor) and each.is_meta for each in tree_leaves((args, kwargs)))
        if self.in_rules:
            if lacking:
                raise RuntimeError("the rules of one module need the weights of another on the meta device")
        elif func is torch.ops.aten.empty.memory_format:
            kwargs = kwargs | {"device": "meta"}
        elif lacking and torch.Tag.nondeterministic_seeded in func.tags:
            drawn_into, *others = args
            func(torch.empty(drawn_into.shape, dtype=drawn_into.dtype), *others, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def _numbers(module: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Gives a module's own parameters and buffers memory, those that have none, and takes it back at the end."""
    made: dict[str, torch.Tensor] = {}
    holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    lacking = [
        (holder, name, tensor)
        for holder in holders
        for name, tensor in holder.items()
        if tensor is not None and tensor.is_meta
    ]
    for holder, name, tensor in lacking:
        made[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
        holder[name] = torch.nn.Parameter(made[name]) if isinstance(tensor, torch.nn.Parameter) else made[name]
    yield made
    for holder, name, tensor in lacking:
        holder[name] = tensor
