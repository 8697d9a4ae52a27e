"""Runs texts through a model one decoder layer at a time: each layer is read once, for all texts.

For every layer the model's own forward pass begins anew, so that the layer gets the masks and positions that the model
makes for it. The layers before it return what the last of them gave, without computing, and the pass ends after it.
That is right for models whose layers hand on nothing but their output. The source check of
``execution/jobs/quantize.py`` refuses all others before they are quantized: it compares the logits of such passes with
those of the main stack. ``forwards`` is for all models; it needs coroutines, which not every stack has.

The states of all texts wait in main memory between two layers, also of a model on a GPU: they may take more than a
layer, and its memory is for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness.core.engine import RESIDENT
from harness.errors import UnsupportedError
from harness.models.streaming.parts import ModelPart, Parts
from harness.models.unfuse import is_fused, unfuse

if TYPE_CHECKING:
    import torch

Watch = Callable[[Any, str], AbstractContextManager[object]]
"""What surrounds the passes through a layer, given its module and its name."""


class _PassEnded(Exception):
    """Ends a forward pass after a layer that gave these states."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__("the pass ends after a layer")
        self.states = states


class LayerPasses:
    """Forward passes over a model's parts, which nothing else may run. The experts of a layer are linear layers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._before: torch.Tensor | None = None  # what the layers that are skipped return
        for part in parts.parts.values():
            if not part.is_layer and not part.stays:
                part.module.register_forward_pre_hook(lambda *_, name=part.name: parts.load(name))

    def run(
        self, texts: Sequence[torch.Tensor], watch: Watch = lambda layer, name: nullcontext()
    ) -> list[torch.Tensor]:
        """The states (1, length, width) of each text (1, length) after the last layer, in main memory.

        The texts are on the model's device. Raises UnsupportedError for a model that cannot be read layer by layer.
        """
        states: list[Any] = [None] * len(texts)
        with ExitStack() as skipped:
            for part in self._layers:
                self._through(part, texts, states, watch)
                skipped.enter_context(self._skipping(part))
        return states

    def logits(self, text: torch.Tensor) -> torch.Tensor:
        """The model's logits (1, length, vocabulary) of a text (1, length)."""
        (states,) = self.run([text])
        self._before = states.to(text.device)
        with ExitStack() as skipped:
            for part in self._layers:
                skipped.enter_context(self._skipping(part))
            return self._parts.model(inputs_embeds=self._before, use_cache=False).logits  # type: ignore[no-any-return]

    @property
    def _layers(self) -> list[ModelPart]:
        return [part for part in self._parts.parts.values() if part.is_layer]

    def _skipping(self, part: ModelPart) -> AbstractContextManager[object]:
        return mock.patch.object(part.module, "forward", self._skip)

    def _skip(self, *given: Any, **options: Any) -> torch.Tensor | None:
        return self._before

    def _through(self, part: ModelPart, texts: Sequence[torch.Tensor], states: list[Any], watch: Watch) -> None:
        """Replaces the states of all texts before a layer, None before the first, by those after it."""
        self._parts.load(part.name)
        fused = {name: each for name, each in part.module.named_modules() if name and is_fused(each)}
        unfuse(part.module)
        hook = part.module.register_forward_hook(_end)
        try:
            with watch(part.module, part.name):
                for index, text in enumerate(texts):
                    states[index] = self._pass(text, states[index]).cpu()
        finally:
            hook.remove()
            for name, each in fused.items():
                part.module.set_submodule(name, each)
            for loaded in list(self._parts.loaded):
                self._parts.free(loaded)

    def _pass(self, text: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        self._before = None if before is None else before.to(text.device)
        given = {"input_ids": text} if before is None else {"inputs_embeds": self._before}
        try:
            self._parts.model.get_decoder()(**given, use_cache=False)
        except _PassEnded as passed:
            return passed.states
        raise AssertionError("a decoder that does not call its layers")


def _end(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
    import torch

    if not isinstance(output, torch.Tensor):
        raise UnsupportedError(
            f"a {type(layer).__name__} returns more than its states, so the model cannot be read layer by layer; "
            f"{RESIDENT}"
        )
    raise _PassEnded(output)
