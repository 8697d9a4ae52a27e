"""Quantizes a checkpoint from disk to disk, one part in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.core.engine import LoadRequest
from harness.core.method import QuantizeJob
from harness.models.loading import device_map
from harness.models.scope import decoder_linears
from harness.models.streaming.forwards import Forwards
from harness.models.streaming.parts import ModelPart, Parts
from harness.models.streaming.writing import CheckpointWriter
from harness.models.unfuse import is_fused, projections, unfuse

if TYPE_CHECKING:
    import torch

Replace = Callable[[str, "torch.nn.Linear"], "torch.nn.Module"]


def quantize_parts(job: QuantizeJob[Any], replace: Replace, configure: Callable[[Any], None]) -> None:
    """Writes the checkpoint that ``save_pretrained`` would write of the model with its linear layers replaced.

    ``replace`` makes the quantized layer of a linear one, whose weights have numbers, or (on the meta device) only
    shapes: both must have the same tensors. ``configure`` sets the configuration's ``quantization_config``. The job's
    probe is computed in the same pass, by the layers in memory before they are freed.
    """
    parts = Parts(LoadRequest(job.source, job.dtype, job.device, trust_remote_code=job.trust_remote_code))
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


class _Passed:
    """The model as the probe calls it: one pass through all of its parts."""

    def __init__(self, forwards: Forwards, model: Any, device: str) -> None:
        self._forwards, self._model, self.device = forwards, model, device
        self.config = model.config

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        (logits,) = self._forwards.run([lambda: self._model(input_ids=input_ids, use_cache=False).logits])
        return SimpleNamespace(logits=logits)
