"""A model's decoder layers on disk, one of them in memory while auto-round works on it.

The library can read layers from disk itself (``AR_DISK_STREAM_MODEL``), but not as this harness needs it: it reads each
tensor in the checkpoint's dtype, whatever the recipe says, by its own rules for names; at the end it brings all layers
back at once, or packs each before its model could be probed; and it writes to the current folder. Its loop over the
layers is used here as it is, and only what reads and keeps them is the harness's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness.core.engine import LoadRequest
from harness.core.method import QuantizeJob
from harness.errors import UnsupportedError
from harness.methods.autoround.driver import WHOLE, refuses_parts
from harness.models.scope import reads_other_inputs
from harness.models.streaming.parts import ModelPart, Parts, stored_tensors
from harness.models.streaming.writing import CheckpointWriter
from harness.models.unfuse import is_fused, unfuse

if TYPE_CHECKING:
    import torch

EXPORTS = ("auto_round.export.export_to_autoround.export", "auto_round.export.export_to_autoround.export_to_fp8")
"""The library's modules that save a model, each of which would take one with empty layers for saved already."""


@dataclass(frozen=True)
class _LayerFile:
    """What a layer holds while its numbers are in ``file``: in which mapping, under which name, on which device."""

    file: Path
    places: list[tuple[dict[str, Any], str, str]]


class LayersOnDisk:
    """Takes the place of the library's ``OffloadManager``, in the methods that its loop over the layers calls.

    ``reload`` fills a layer from the checkpoint, exactly as loading the whole model does. Called with a layer's name,
    the object keeps in ``folder`` what the library has made of the layer: quantized weights, their scales and all else.
    The embedding, the head and other parts outside the layers are in memory all the time.
    Raises UnsupportedError for a model that can only be quantized whole.
    """

    enabled = True

    def __init__(self, job: QuantizeJob[Any], folder: Path, finish: Callable[[torch.nn.Module], None]) -> None:
        """``finish`` is called with each layer that the library is done with, before it is kept."""
        remote, streaming = job.trust_remote_code, job.streaming
        request = LoadRequest(job.source, job.dtype, job.device, trust_remote_code=remote, streaming=streaming)
        self._parts = Parts(replace(request, read=lambda _: job.load()))
        self.model = self._parts.model
        self._folder, self._finish = folder, finish
        self._kept: dict[str, _LayerFile] = {}
        multimodal = any(reads_other_inputs(name) for name, _ in self.model.named_parameters())
        if reason := refuses_parts(job.params, self.model.config.model_type, multimodal):
            raise UnsupportedError(reason)
        self._loaded_as = {name: tensor.dtype for name, tensor in stored_tensors(self.model)}
        for part in self._parts.parts.values():
            if not part.is_layer:
                self._parts.load(part.name)
        self._fused = self._unfused(job.untouched)

    @property
    def names(self) -> list[str]:
        return [part.name for part in self._parts.parts.values() if part.is_layer]

    @contextmanager
    def looks_whole(self) -> Iterator[None]:
        """Within this context the library takes ``model`` although its layers are empty."""
        with mock.patch("auto_round.context.model.unsupported_meta_device", return_value=False):
            yield

    def enter(self, rounding: Any) -> None:
        """Has a library's AutoRound of ``model`` work on these layers."""
        rounding._offloader = self
        rounding.model_context._disk_stream_index = self  # without one it would ask for no layer

    def reset(self) -> None:
        """The library begins; nothing is kept yet."""

    def reload(self, model: Any, name: str | None = None) -> None:
        """Fills a layer from the checkpoint. Without a name, at the end, the library asks for all: they stay away."""
        if name is None:
            return
        if name not in self._parts.parts:
            raise UnsupportedError(
                f"{name} is no decoder layer that can be read alone: auto-round quantizes this model {WHOLE}"
            )
        part = self._parts.parts[name]
        fused = {path: module for path, module in self._fused.items() if path.startswith(f"{name}.")}
        unfused = {path: self.model.get_submodule(path) for path in fused}
        for path, module in fused.items():
            self.model.set_submodule(path, module)
        self._parts.empty(name)
        self._parts.load(name)
        self._cast(part)
        for path, module in fused.items():
            unfused[path].take(module)
            self.model.set_submodule(path, unfused[path])
        part.module.requires_grad_(False)

    def __call__(self, model: Any, name: str, overwrite: bool = False) -> None:
        """The library is done with a layer."""
        self._finish(self._parts.parts[name].module)
        self._keep(name)

    def _keep(self, name: str) -> None:
        """Writes all that a layer holds to disk, and empties it."""
        from safetensors.torch import save_file

        held = list(_tensors(self._parts.parts[name].module))
        content: dict[str, torch.Tensor] = {}
        storages: set[int] = set()
        for number, (_, _, tensor) in enumerate(held):
            stored = tensor.detach().cpu().contiguous()
            shared = stored.untyped_storage().data_ptr() in storages  # safetensors refuses to write it twice
            content[str(number)] = stored.clone() if shared else stored
            storages.add(stored.untyped_storage().data_ptr())
        previous = self._kept.get(name)
        file = self._folder / f"{name}.{0 if previous is None else 1}.safetensors"  # never one that is still mapped
        save_file(content, file)
        self._kept[name] = _LayerFile(file, [(mapping, key, str(tensor.device)) for mapping, key, tensor in held])
        if previous is not None:
            previous.file.unlink()
        self.free(name)

    def load(self, name: str) -> None:
        """Brings back what is kept of a layer."""
        import torch
        from safetensors.torch import load_file

        content = load_file(self._kept[name].file)
        for number, (mapping, key, device) in enumerate(self._kept[name].places):
            tensor = content.pop(str(number)).to(device)
            is_parameter = isinstance(mapping[key], torch.nn.Parameter)
            mapping[key] = torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor

    def free(self, name: str) -> None:
        """Empties a layer that is kept."""
        import torch

        for mapping, key, _ in self._kept[name].places:
            empty = mapping[key].detach().to("meta")
            is_parameter = isinstance(mapping[key], torch.nn.Parameter)
            mapping[key] = torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty

    def load_when_called(self) -> None:
        """From now on each layer has its numbers while it computes."""
        for name in self.names:
            module = self._parts.parts[name].module
            module.register_forward_pre_hook(lambda *_, name=name: self.load(name))
            module.register_forward_hook(lambda *_, name=name: self.free(name))

    def save(self, rounding: Any, folder: Path) -> None:
        """Packs layer by layer and writes the files that the library writes of the whole model."""
        from auto_round.utils.device_manager import device_manager

        [output] = rounding.formats
        for name in self.names:
            self.load(name)
            for path in [path for path in rounding.layer_config if path.startswith(f"{name}.")]:
                output.pack_layer(path, self.model, device=device_manager.device)
            self._keep(name)
        with CheckpointWriter(self.model, folder, lambda: _save(rounding, folder)) as writer:
            stored = dict(stored_tensors(self.model))
            inside = tuple(f"{name}." for name in self.names)
            writer.write({n: t for n, t in stored.items() if not n.startswith(inside) and not self._parts.is_tied(n)})
            for name in self.names:
                self.load(name)
                writer.write({f"{name}.{own}": t for own, t in stored_tensors(self._parts.parts[name].module)})
                self.free(name)

    def close(self) -> None:
        self._parts.close()

    def _cast(self, part: ModelPart) -> None:
        """To the dtype that the whole model is loaded in, and then to that of the empty one, as the library cast it."""
        for own, tensor in stored_tensors(part.module):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(self._loaded_as[f"{part.name}.{own}"]).to(self.model.dtype)

    def _unfused(self, untouched: tuple[str, ...]) -> dict[str, Any]:
        """Unfuses the empty model's experts. Returns the modules that they were fused in, to load them into."""
        fused = {name: module for name, module in self.model.named_modules() if name and is_fused(module)}
        return fused if unfuse(self.model, untouched) else {}


def _save(rounding: Any, folder: Path) -> None:
    with ExitStack() as patches:
        for module in EXPORTS:
            patches.enter_context(mock.patch(f"{module}.is_immediate_saving_mode", return_value=False))
        rounding.save_quantized(str(folder), inplace=True)


def _tensors(layer: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """All that has numbers below a layer: parameters, buffers and attributes, each with the mapping that holds it."""
    import torch

    for module in layer.modules():
        for mapping in (module._parameters, module._buffers, vars(module)):
            for key, value in mapping.items():
                if isinstance(value, torch.Tensor):
                    yield mapping, key, value
