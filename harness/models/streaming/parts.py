"""A model without weights, cut into parts that are loaded and freed one by one.

The parts are the decoder's layers and every other module that owns parameters. transformers itself loads each part,
with the function that loads a whole model: its renaming and fusing of tensors, its dtypes, and its quantizers apply
unchanged. A rehearsal of that function on the whole checkpoint, with tensors that have shapes but no numbers, finds
out what is missing before anything is read, and leaves the same empty parameters that real loading would fill.

What a quantizer does to a quantized model after its weights are loaded (repacking codes for a kernel, making them
dense) it does to each part when that is loaded. The part gets its empty form back when it is freed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness.core.engine import RESIDENT, LoadRequest
from harness.core.layers import is_layer, layer_of
from harness.errors import HarnessError, SourceError, UnsupportedError
from harness.host.allocator import returning_freed_memory, trim
from harness.models import native
from harness.models.completeness import last_line, refuse_unfused, refuse_unlike, sources
from harness.models.loading import load_transformers
from harness.models.published import quantization_config
from harness.models.streaming.reading import CheckpointReader, DiskSpeed, TensorReader

if TYPE_CHECKING:
    import torch

SMALL_BYTES, SMALL_SHARE = 2**20, 0.01
"""Parts up to this size and this share of the checkpoint, such as norms, are loaded once and stay."""


@dataclass(frozen=True)
class ModelPart:
    """A module and what it owns.

    ``names`` are its parameters and stored buffers by their names in the model, ``sources`` the checkpoint's tensors
    that they are made from, and ``stays`` whether it is loaded once and never freed. ``holds_others``: it owns
    parameters beside other parts that are its children.
    """

    name: str
    module: Any
    names: tuple[str, ...]
    sources: tuple[str, ...]
    bytes: int
    stays: bool
    is_layer: bool
    holds_others: bool


class Parts:
    """The parts of a checkpoint's model. ``model`` computes with whatever parts are loaded.

    ``loads`` lists the loaded parts that do not stay, in order. ``reader`` reads what is no folder of safetensors
    files, which ``request.read`` begins to load. Raises SourceError for a checkpoint that does not hold what the
    architecture needs, and UnsupportedError for a model that cannot be cut into parts.
    """

    def __init__(self, request: LoadRequest, reader: TensorReader | None = None) -> None:
        import torch

        self._stored = {} if reader else quantization_config(request.path)
        self.reader = reader or CheckpointReader(request.path)
        self.loads: list[str] = []
        with torch.inference_mode(False):  # in which tensors would not know whether they were changed
            self.model, self._config, self._finish = _rehearse(request, self.reader)
        if self._stored.get("quant_method") in native.FORMATS:
            self.model._weight_conversions = None  # else it would be saved as it was stored: packed
        self._conversions = self.model._weight_conversions
        self._empty: dict[str, torch.Tensor] = dict(stored_tensors(self.model))
        self._empty_attributes = {name: dict(vars(tensor)) for name, tensor in self._empty.items()}
        self._versions = {name: tensor._version for name, tensor in self._empty.items()}
        self._tied = tied_tensors(self.model, self._empty)
        self._made_from = sources(self.model, self._config, self.reader.tensors)
        self.parts = {part.name: part for part in self._cut()}
        self._disk = DiskSpeed(self.reader, self.checkpoint_bytes, request.streaming)
        changed = [part for part in self.parts.values() if self._config.hf_quantizer and not part.holds_others]
        self._forms = {part.name: _EmptyForm(part.module) for part in changed}
        self.loaded: set[str] = set()
        self.on_load: Callable[[ModelPart], None] = lambda part: None
        self.on_free: Callable[[ModelPart], None] = lambda part: None
        self._next: tuple[str, Future[dict[str, torch.Tensor]]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        for part in self.parts.values():
            if part.stays:
                self.load(part.name)

    @property
    def largest_bytes(self) -> int:
        """Bytes in the checkpoint of the largest part."""
        return max(part.bytes for part in self.parts.values())

    @property
    def largest_loaded_bytes(self) -> int:
        """Bytes in memory of the part that takes most: as it is stored while it is read, and in the model's dtypes."""

        def loaded(part: ModelPart) -> int:
            return sum(self._empty[name].numel() * self._empty[name].element_size() for name in part.names)

        return max(max(part.bytes, loaded(part)) for part in self.parts.values())

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes in the checkpoint of all that one pass through all parts reads: a tied matrix counts for each part."""
        return sum(part.bytes for part in self.parts.values())

    def part_of(self, module: Any) -> ModelPart | None:
        """The part that a module is, if it is one."""
        return next((part for part in self.parts.values() if part.module is module), None)

    def owner(self, name: str) -> ModelPart | None:
        """The part that a parameter or buffer belongs to by its name; None for what no checkpoint stores."""
        own = module = name.rpartition(".")[0]
        while module not in self.parts and module:
            module = module.rpartition(".")[0]
        part = self.parts.get(module)
        return part if part is not None and (part.is_layer or module == own) else None

    def is_tied(self, name: str) -> bool:
        """Whether a parameter is the same as another, which the checkpoint stores."""
        return name in self._tied

    def held_by(self, part: ModelPart) -> dict[str, torch.Tensor]:
        """What a part stores now, by name; what is tied to another part is stored there."""
        return {name: tensor for name, tensor in self.state_of(part).items() if not self.is_tied(name)}

    def state_of(self, part: ModelPart) -> dict[str, torch.Tensor]:
        """What is a part's own in the model's ``state_dict`` now."""
        found = {}
        for name, tensor in self.model.state_dict().items():
            owner = self.owner(name)
            if owner is not None and owner.name == part.name:
                found[name] = tensor
        return found

    def changed(self) -> str | None:
        """An empty parameter that was computed with in place, if there is one: its numbers have not changed with it."""
        return next((name for name, tensor in self._empty.items() if tensor._version != self._versions[name]), None)

    def prefetch(self, name: str) -> None:
        """Begins to read a part in another thread, unless it is loaded or something is being read already."""
        if name in self.loaded or self._next is not None:
            return
        self._next = (name, self._pool.submit(self._read, self._needed(self.parts[name])))

    def load(self, name: str) -> None:
        """Fills a part's parameters.

        Raises SourceError if the checkpoint has changed since its headers were read, and UnsupportedError if its disk
        is too slow for the time limit of ``request.streaming``.
        """
        if name not in self.loaded:
            with returning_freed_memory():  # a part's memory goes with it, whatever the passes have allocated since
                self._load(self.parts[name])

    def _load(self, part: ModelPart) -> None:
        name = part.name
        self._convert(self._content(part))
        for own, source in ((own, self._tied[own]) for own in part.names if own in self._tied):
            _set(self.model, own, _get(self.model, source))
            if not self._is_loaded(source):
                _set(self.model, source, self._empty[source])
        unfilled = [own for own in part.names if _get(self.model, own).device.type == "meta"]
        if unfilled:
            raise UnsupportedError(
                f"{name} cannot be loaded alone: {unfilled[0]} is made from tensors of other parts; {RESIDENT}"
            )
        if self._finish is not None and name in self._forms:
            with _with_dtype(part.module, self.model.dtype):
                self._finish(part.module)
        self.loaded.add(name)
        if not part.stays:
            self.loads.append(name)
            self._disk.refuse_slow()
        self.on_load(part)

    def free(self, name: str) -> None:
        """Empties a part, unless it stays."""
        part = self.parts[name]
        if part.stays or name not in self.loaded:
            return
        self.on_free(part)
        self.loaded.discard(name)
        self.empty(name)
        trim()

    def empty(self, name: str) -> None:
        """Gives a part that is not loaded its parameters without numbers."""
        if name not in self.loaded:
            if name in self._forms:
                self._forms[name].restore()
            for own in self.parts[name].names:
                attributes = vars(self._empty[own])  # to which bitsandbytes adds the scales that it loads
                attributes.clear()
                attributes.update(self._empty_attributes[own])
                _set(self.model, own, self._empty[own])

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.reader.close()

    def _content(self, part: ModelPart) -> dict[str, torch.Tensor]:
        """The part's tensors in the checkpoint, read ahead if they are; what was read ahead in vain is dropped."""
        ahead, self._next = self._next, None
        if ahead is not None:
            name, future = ahead
            content = future.result()
            if name == part.name:
                return content
        return self._read(self._needed(part))

    def _needed(self, part: ModelPart) -> Sequence[str]:
        """The part's sources, without those of a tied parameter whose other owner is loaded."""
        present = {
            source
            for own in part.names
            if own in self._tied and self._is_loaded(self._tied[own])
            for source in self._made_from.get(self._tied[own], ())
        }
        return [name for name in part.sources if name not in present]

    def _read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        return {name: self.reader.read(name) for name in names}

    def _convert(self, content: dict[str, torch.Tensor]) -> None:
        """Lets transformers put the checkpoint's tensors into the model."""
        if not content:
            return
        with native.whole_blocks(self._stored):
            info = _load(self.model, {name: _Lazy(content, name) for name in list(content)}, self._config)
        self.model._weight_conversions = self._conversions  # a part uses some of them, and saving needs all
        if info.conversion_errors:
            raise SourceError(f"the checkpoint cannot be converted: {last_line(info.conversion_errors)}")

    def _is_loaded(self, name: str) -> bool:
        """Whether the part that owns a parameter is loaded."""
        part = self.owner(name)
        return part is not None and part.name in self.loaded

    def _cut(self) -> Iterator[ModelPart]:
        layers = [name for name, _ in self.model.named_modules() if is_layer(name)]
        if not layers:
            raise UnsupportedError(
                f"no decoder layers were recognized in the names of its modules, so none can be streamed; {RESIDENT}"
            )
        small = min(SMALL_BYTES, SMALL_SHARE * self.reader.size_of(self.reader.tensors))
        for name, module in self.model.named_modules():
            if any(name.startswith(f"{layer}.") for layer in layers):
                continue
            prefix = f"{name}." if name else ""
            whole = name in layers
            names = tuple(
                each for each in self._empty if each.startswith(prefix) and (whole or "." not in each[len(prefix) :])
            )
            if not names:
                continue
            sources = tuple(
                dict.fromkeys(source for own in names for source in self._made_from.get(self._tied.get(own, own), ()))
            )
            size = self.reader.size_of(sources)
            holds_others = not whole and next(module.children(), None) is not None
            stays = size <= small or holds_others
            yield ModelPart(name, module, names, sources, size, stays, whole, holds_others)


class _Lazy:
    """A tensor that transformers reads when it needs it, and that nothing else holds from then on."""

    def __init__(self, content: dict[str, torch.Tensor], name: str) -> None:
        self._content, self._name = content, name

    def __getitem__(self, _: object) -> torch.Tensor:
        return self._content.pop(self._name)

    def is_floating_point(self) -> bool:
        return self._content[self._name].is_floating_point()


@contextmanager
def _with_dtype(part: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within this context a part has a dtype, as a model has one, for which auto-round asks."""
    if hasattr(part, "dtype"):
        yield
        return
    with mock.patch.object(part, "dtype", dtype, create=True):
        yield


class _EmptyForm:
    """The form of a part before a library fills and finishes it, to which it returns so that it can be loaded again.

    What is kept are the attributes that a library may change: all of a module without children, the children of others.
    A library may also keep weights in an object of its own there (bitsandbytes' state of 8-bit products).
    """

    def __init__(self, part: torch.nn.Module) -> None:
        self._leaves = [(module, _attributes(module)) for module in part.modules() if not module._modules]
        self._children = [(module, dict(module._modules)) for module in part.modules() if module._modules]

    def restore(self) -> None:
        for module, children in self._children:
            module._modules = dict(children)
        for module, kept in self._leaves:
            own = vars(module)
            for name in _attributes(module):
                del own[name]
            own.update({name: _copied(value) for name, value in kept.items()})


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """A module's attributes but for its hooks, which do not belong to its form."""
    return {name: _copied(value) for name, value in vars(module).items() if "_hooks" not in name}


def _copied(value: Any) -> Any:
    return copy(value) if isinstance(value, dict | set | list) or is_dataclass(value) else value


def refuse_incomplete(request: LoadRequest) -> None:
    """Raises SourceError for a checkpoint that does not hold what its architecture needs. Reads no weights."""
    _rehearse(request, CheckpointReader(request.path))


Finish = Callable[[Any], Any]


def _rehearse(request: LoadRequest, reader: TensorReader) -> tuple[Any, Any, Finish | None]:
    """The model as loading leaves it, but with empty parameters; how transformers would load it; and what finishes it.

    The last is what the quantizer of a quantized checkpoint does to a model, or a part of one, whose weights are there.
    """
    from transformers.modeling_utils import PreTrainedModel

    configs: list[Any] = []
    finish: Finish | None = None

    def rehearse(model: Any, state_dict: Any, files: Any, config: Any, expected: Any = None) -> Any:
        nonlocal finish
        configs.append(config)
        quantizer = config.hf_quantizer
        if quantizer is not None and quantizer.pre_quantized:
            finish = quantizer._process_model_after_weight_loading
            quantizer._process_model_after_weight_loading = lambda model, **_: model  # nothing is there to finish
        quantized = _to_quantize(model, quantizer)
        empty = {name: reader.meta(name) for name in reader.tensors}
        stored = quantizer if finish is not None else None
        with _codes_left_alone() if stored is not None else nullcontext():  # it imports libraries that take seconds
            info = _load(model, empty, replace(config, device_map={"": "meta"}, hf_quantizer=stored))
        refuse_unfused(model, config, info, reader.tensors)
        _refuse_unlike(model, info)
        for name, own in quantized.items():  # it says how to quantize, which an ordinary empty parameter does not
            _set(model, name, own)
        return info, None

    with mock.patch.object(PreTrainedModel, "_load_pretrained_model", staticmethod(rehearse)):
        model = (request.read or load_transformers)(request).eval()
    if not configs and request.read is not None:
        raise UnsupportedError(f"its own library loads it whole, so it cannot be streamed; {RESIDENT}")
    if not configs:
        raise HarnessError(
            "this version of transformers loads models in a way that cannot be streamed; use 5.10 to 5.17"
        )
    return model, configs[0], finish


@contextmanager
def _codes_left_alone() -> Iterator[None]:
    """Within this context no quantized parameter is made of its stored codes and scales, whose numbers that would take.

    It stays as empty as it is before it is loaded for the first time.
    """
    from transformers.integrations import bitsandbytes, torchao

    def leave(
        self: Any, tensors: dict[str, Any], *_: Any, model: Any, full_layer_name: str, missing_keys: set[str], **__: Any
    ) -> dict[str, Any]:
        if len(tensors) == 1:  # a parameter that is not quantized
            return tensors
        missing_keys.discard(full_layer_name)
        model.get_submodule(full_layer_name.rpartition(".")[0])._is_hf_initialized = True
        return {}

    with (
        mock.patch.object(bitsandbytes.Bnb4bitDeserialize, "convert", leave),
        mock.patch.object(bitsandbytes.Bnb8bitDeserialize, "convert", leave),
        mock.patch.object(torchao.TorchAoDeserialize, "convert", leave),
    ):
        yield


def part_name(name: str) -> str:
    """The decoder layer that a parameter is in, or else the module that owns it."""
    return layer_of(name) or name.rpartition(".")[0]


def _to_quantize(model: Any, quantizer: Any | None) -> dict[str, torch.Tensor]:
    """The empty parameters that a quantizer quantizes while loading, as it has prepared them."""
    if quantizer is None or quantizer.pre_quantized:
        return {}
    found = model.named_parameters()
    return {name: own for name, own in found if quantizer.param_needs_quantization(model, name)}


def _load(model: Any, tensors: Mapping[str, Any], config: Any) -> Any:
    """transformers' own loading of some tensors; returns what it says of them. One after the other, in this thread."""
    from transformers.core_model_loading import convert_and_load_state_dict_in_model

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # stays set: a thread may be reading ahead
    with _no_progress_bar():
        info, _ = convert_and_load_state_dict_in_model(model, dict(tensors), config)
    return info


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _refuse_unlike(model: Any, info: Any) -> None:
    """Raises SourceError for a checkpoint that does not hold what the architecture needs, or more layers than that."""
    known = replace(info, missing_keys=set(info.missing_keys), unexpected_keys=set(info.unexpected_keys))
    model._adjust_missing_and_unexpected_keys(known)
    refuse_unlike(known.missing_keys - set(model.all_tied_weights_keys), known.unexpected_keys)


def stored_tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that a checkpoint stores of a model, by name; a tied parameter under each of its names."""
    yield from model.state_dict(keep_vars=True).items()


def tied_tensors(model: Any, stored: Mapping[str, Any]) -> dict[str, str]:
    """Parameters that are the same object as another, each with the name of the one that the checkpoint stores."""
    declared: Mapping[str, str] = model.all_tied_weights_keys
    return {name: source for name, source in declared.items() if stored[name] is stored[source]}


def _get(model: Any, name: str) -> torch.Tensor:
    module, _, own = name.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(module), own)
    return tensor


def _set(model: Any, name: str, tensor: torch.Tensor) -> None:
    module_name, _, own = name.rpartition(".")
    module = model.get_submodule(module_name)
    holder = module._buffers if own in module._buffers else module._parameters
    holder[own] = tensor
