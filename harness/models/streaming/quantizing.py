"""Quantizes a checkpoint from disk to disk, one part in memory at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness.core.capability import ScaleCheck
from harness.core.engine import LoadRequest
from harness.core.method import QuantizeJob
from harness.models.loading import device_map
from harness.models.scales import check_loaded
from harness.models.scope import decoder_linears
from harness.models.streaming.forwards import Forwards
from harness.models.streaming.parts import ModelPart, Parts
from harness.models.streaming.reading import CheckpointReader
from harness.models.streaming.writing import CheckpointWriter, TensorFile
from harness.models.unfuse import is_fused, projections, unfuse

if TYPE_CHECKING:
    import torch

Replace = Callable[[str, "torch.nn.Linear"], "torch.nn.Module"]
TENSOR_NAMES = "tensor_names"
"""torchao's list of a model's tensors in the metadata of a file, where everything else is of one tensor."""


def quantize_parts(job: QuantizeJob[Any], replace: Replace, configure: Callable[[Any], None]) -> None:
    """Writes the checkpoint that ``save_pretrained`` would write of the model with its linear layers replaced.

    ``replace`` makes the quantized layer of a linear one, whose weights have numbers, or (on the meta device) only
    shapes: both must have the same tensors. ``configure`` sets the configuration's ``quantization_config``. The job's
    probe is computed in the same pass, by the layers in memory before they are freed.
    """
    remote = job.trust_remote_code
    parts = Parts(LoadRequest(job.source, job.dtype, job.device, trust_remote_code=remote, streaming=job.streaming))
    model = parts.model
    swap = _Swap(model, job.untouched, replace)
    replaced = {name: swap.quantize(part) for name, part in parts.parts.items()}
    configure(model)
    with CheckpointWriter(model, job.out) as writer:
        for name, originals in replaced.items():
            swap.restore(originals)
            parts.empty(name)
        written: set[str] = set()

        def quantize(part: ModelPart) -> None:
            replaced[part.name] = swap.quantize(part)
            if part.name not in written:
                written.add(part.name)
                writer.write(parts.held_by(part))

        parts.on_load, parts.on_free = quantize, lambda part: swap.restore(replaced[part.name])
        for name in sorted(parts.loaded):
            quantize(parts.parts[name])
        job.probe(_Passed(Forwards(parts, STATES_BYTES), model, device_map(job.device)))
        for name in parts.parts:
            if name not in written:  # the probe did not need it
                parts.load(name)
                parts.free(name)
    parts.close()


STATES_BYTES = 2**28
"""Of the probe's few tokens, which never take so much."""


class _Swap:
    """Replaces the linear layers of a part by quantized ones, its experts' too, and puts the originals back."""

    def __init__(self, model: Any, untouched: Collection[str], replace: Replace) -> None:
        self._model, self._untouched, self._replace = model, untouched, replace

    def quantize(self, part: ModelPart) -> dict[str, torch.nn.Module]:
        """Returns the replaced modules by name."""
        if not part.is_layer:
            return {}
        fused = {name: module for name, module in self._below(part) if is_fused(module)}
        if not all(f"{name}.{each}" in self._untouched for name in fused for each in projections(fused[name])):
            unfuse(part.module)
        own = {id(module) for _, module in self._below(part)}
        linears = [each for each in decoder_linears(self._model, self._untouched) if id(each[1]) in own]
        for name, linear in linears:
            self._model.set_submodule(name, self._replace(name, linear))
        plain = {name: linear for name, linear in linears if not any(name.startswith(f"{of}.") for of in fused)}
        return {**fused, **plain}

    def restore(self, originals: dict[str, torch.nn.Module]) -> None:
        for name, module in originals.items():
            self._model.set_submodule(name, module)

    def _below(self, part: ModelPart) -> list[tuple[str, torch.nn.Module]]:
        return [(f"{part.name}.{name}", module) for name, module in part.module.named_modules() if name]


def save_parts(job: QuantizeJob[Any], config: object) -> ScaleCheck:
    """Writes the checkpoint that ``save_pretrained`` would write of the model that its library quantizes while loading.

    ``config`` is what ``from_pretrained`` takes as ``quantization_config``. The job's probe is computed in the same
    pass, by the layers in memory before they are freed. Returns what was seen of their scales.
    """
    request = LoadRequest(
        job.source,
        job.dtype,
        job.device,
        quantization=config,
        trust_remote_code=job.trust_remote_code,
        untouched=job.untouched,
        streaming=job.streaming,
    )
    parts = Parts(request)
    job.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=job.out) as folder:
        saved = _SavedParts(parts, Path(folder))
        parts.on_load = saved.keep
        for name in sorted(parts.loaded):
            saved.keep(parts.parts[name])
        job.probe(_Passed(Forwards(parts, STATES_BYTES), parts.model, device_map(job.device)))
        for name in parts.parts:
            if name not in saved.kept:  # the probe did not need it
                parts.load(name)
                parts.free(name)
        saved.write(job.out)
    parts.close()
    return sum((each.scales for each in saved.kept.values()), ScaleCheck())


@dataclass(frozen=True)
class _SavedPart:
    """A part as its library saves it: the folder of its tensors, what the library says of them, and its scales."""

    folder: Path
    metadata: Mapping[str, str]
    scales: ScaleCheck


class _SavedParts:
    """The quantized parts of a model, which wait on disk until all are there.

    What a library stores of a part, and the sizes, are known only when it is quantized (bitsandbytes writes numbers as
    text), and a checkpoint begins with the places of all tensors.
    """

    def __init__(self, parts: Parts, folder: Path) -> None:
        self._parts, self._folder = parts, folder
        self.kept: dict[str, _SavedPart] = {}

    def keep(self, part: ModelPart) -> None:
        """Saves a part that is loaded, the first time."""
        import torch

        if part.name in self.kept:
            return
        folder = self._folder / str(len(self.kept))
        folder.mkdir()
        own = self._parts.state_of(part)
        quantizer = self._parts.model.hf_quantizer
        flat, metadata = quantizer.get_state_dict_and_metadata(SimpleNamespace(state_dict=lambda: own))
        tensors = {
            name: tensor.as_subclass(torch.Tensor)
            for name, tensor in (own if flat is None else flat).items()
            if not self._parts.is_tied(name)
        }
        file = TensorFile(folder / "model.safetensors", tensors, {})
        for name, tensor in tensors.items():
            file.write(name, tensor)
        file.close()
        modules = dict(part.module.named_modules(prefix=part.name)) if part.is_layer else {part.name: part.module}
        self.kept[part.name] = _SavedPart(folder, metadata, check_loaded(modules))

    def write(self, out: Path) -> None:
        """Writes the checkpoint, with one part in memory at a time."""
        readers = {name: CheckpointReader(self.kept[name].folder) for name in self._parts.parts}
        shapes = {name: reader.meta(name) for reader in readers.values() for name in reader.tensors}
        with CheckpointWriter(self._parts.model, out, lambda: self._save_pretrained(out, shapes)) as writer:
            for reader in readers.values():
                writer.write({name: reader.read(name) for name in reader.tensors})
                reader.close()

    def _save_pretrained(self, out: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """transformers' own saving, of these in place of the model's tensors; those that are tied are left out."""
        model = self._parts.model
        stored = dict(tensors), self._metadata()
        with (
            mock.patch.object(model.hf_quantizer, "get_state_dict_and_metadata", return_value=stored),
            mock.patch("transformers.modeling_utils.remove_tied_weights_from_state_dict", lambda state, _: state),
        ):
            model.save_pretrained(out)

    def _metadata(self) -> dict[str, str]:
        found = [self.kept[name].metadata for name in self._parts.parts]
        merged = {name: value for each in found for name, value in each.items()}
        if TENSOR_NAMES in merged:
            merged[TENSOR_NAMES] = json.dumps([name for each in found for name in json.loads(each[TENSOR_NAMES])])
        return merged


class _Passed:
    """The model as the probe calls it: one pass through all of its parts."""

    def __init__(self, forwards: Forwards, model: Any, device: str) -> None:
        self._forwards, self._model, self.device = forwards, model, device
        self.config = model.config

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        (logits,) = self._forwards.run([lambda: self._model(input_ids=input_ids, use_cache=False).logits])
        return SimpleNamespace(logits=logits)
