"""Runs forward passes side by side over a model of which only one part is loaded at a time.

Each pass is the model's own code in a coroutine of its own (a greenlet). Before a part that is not loaded it is
suspended, with everything that it knows in its own local variables: masks, rotary embeddings, states that later layers
read. The scheduler lets every pass run until it waits, loads the part that they wait for, and resumes them one after
the other. The tensors and their shapes are those of a resident model, and so are the results, bit by bit.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from harness.core.engine import RESIDENT, Streaming
from harness.errors import HarnessError, UnsupportedError
from harness.host.allocator import KEPT_BYTES, BoundedHeap
from harness.models.streaming.parts import ModelPart, Parts
from harness.models.streaming.waiting import WaitingStates

if TYPE_CHECKING:
    import torch


class Forwards:
    """Forward passes over a model's parts, whose states may take ``budget_bytes`` of memory while they wait."""

    def __init__(self, parts: Parts, budget_bytes: int) -> None:
        self._parts = parts
        self._budget = budget_bytes
        self._heap = BoundedHeap()
        self._running: greenlet | None = None
        self._trace: list[str] = []
        self.spilled_bytes = 0
        self.passes = 0
        for part in parts.parts.values():
            if not part.stays:
                part.module.register_forward_pre_hook(self._waiting_for(part), prepend=True, with_kwargs=True)

    def run(self, calls: Sequence[Callable[[], torch.Tensor]]) -> Iterator[torch.Tensor]:
        """The result of each call, in order, once all have ended. The parts are read once for all of them.

        Raises UnsupportedError if the model reads or changes parameters without calling the module that owns them, or
        suspends within a setting of torch that the other passes must not see.
        """
        if self._running is not None:
            raise HarnessError("a streamed model runs one group of forward passes at a time; finish the one before")
        self.passes += 1
        waiting = WaitingStates(self._budget)
        suspended: dict[int, greenlet] = {}
        try:
            yield from self._run(calls, waiting, suspended)
        finally:
            for pass_ in suspended.values():
                pass_.throw()  # ends it where it is suspended
            self._running = None
            self.spilled_bytes += waiting.spilled_bytes
            waiting.close()

    def _run(
        self, calls: Sequence[Callable[[], torch.Tensor]], waiting: WaitingStates, suspended: dict[int, greenlet]
    ) -> Iterator[torch.Tensor]:
        results: dict[int, torch.Tensor] = {}
        wanted: dict[int, str] = {}
        self._running = getcurrent()
        self._mode = _modes()
        trace: list[str] = []

        def step(number: int, pass_: greenlet) -> None:
            """Runs a pass until it waits for a part or ends."""
            self._heap.bound()
            outcome = self._switch(pass_)
            if number == first or number not in suspended:  # what the model keeps for later passes is theirs too
                waiting.share(_fixed(self._parts.model))
            if pass_.dead:
                suspended.pop(number, None)
                wanted.pop(number, None)
                if outcome.device.type == "meta":
                    raise UnsupportedError(READS_AROUND)
                results[number] = outcome
                waiting.hold(number, [outcome])
            else:
                suspended[number] = pass_
                wanted[number] = outcome
                waiting.hold(number, _local_tensors(pass_))

        first = 0
        embedding = self._parts.part_of(self._parts.model.get_input_embeddings())
        if embedding is not None:  # Llama 4 asks for its device before it calls it
            self._load(embedding.name, trace)
        for number, call in enumerate(calls):
            pass_ = greenlet(call)
            pass_.gr_context = contextvars.copy_context()
            step(number, pass_)
        if embedding is not None:
            self._parts.free(embedding.name)
        while suspended:
            first = min(suspended)
            name = wanted[first]
            self._load(name, trace)
            for number in [each for each in suspended if wanted[each] == name]:
                waiting.take(number)
                step(number, suspended[number])
            self._parts.free(name)
        if (changed := self._parts.changed()) is not None:
            raise UnsupportedError(
                f"the model changes {changed} in its forward pass while that is not there: it cannot be streamed; "
                f"{RESIDENT}"
            )
        self._trace = trace
        self._running = None
        for number in sorted(results):
            waiting.take(number)
            yield results.pop(number)

    def _load(self, name: str, trace: list[str]) -> None:
        """Loads a part, adds it to the trace, and begins to read the next one."""
        self._parts.load(name)
        trace.append(name)
        following = self._following(trace)
        if following is not None and self._parts.parts[following].is_layer:  # a head may not be needed after all
            self._parts.prefetch(following)

    def _following(self, trace: Sequence[str]) -> str | None:
        """The part that will be needed after those of ``trace``: as in the pass before, or the layer after this one."""
        if list(self._trace[: len(trace)]) == list(trace) and len(self._trace) > len(trace):
            return self._trace[len(trace)]
        stem, _, index = trace[-1].rpartition(".")
        name = f"{stem}.{int(index) + 1}" if index.isdigit() else ""
        return name if name in self._parts.parts else None

    def _switch(self, pass_: greenlet) -> Any:
        try:
            return pass_.switch()
        except (RuntimeError, NotImplementedError) as error:
            if "meta" in str(error):
                raise UnsupportedError(f"{READS_AROUND} ({str(error).splitlines()[0]})") from error
            raise

    def _waiting_for(self, part: ModelPart) -> Callable[..., None]:
        def wait(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            if part.name in self._parts.loaded:
                return
            if _has_empty((positional, named)):  # torch may compute with such tensors, and give any numbers
                raise UnsupportedError(READS_AROUND)
            if self._running is None or getcurrent() is self._running:
                raise HarnessError(f"{part.name} of a streamed model was called outside of its forward passes")
            if _modes() != self._mode:
                raise UnsupportedError(
                    f"the model changes a setting of torch around {part.name}, which other windows would see: it "
                    f"cannot be streamed; {RESIDENT}"
                )
            self._running.switch(part.name)

        return wait


def states_budget(streaming: Streaming, parts: Parts) -> int:
    """The memory that waiting states may take: what ``streaming`` allows them, or what the parts leave of it if less.

    Two parts are there at once, and what one computes takes about as much as a third.
    """
    if streaming.memory_bytes is None:
        return streaming.states_bytes
    beside = KEPT_BYTES + 3 * parts.largest_loaded_bytes
    return max(min(streaming.states_bytes, streaming.memory_bytes - beside), 0)


READS_AROUND = (
    "the model computes with parameters of a module that it does not call, so they are not there when it needs them: "
    f"it cannot be streamed; {RESIDENT}"
)


def _modes() -> tuple[object, ...]:
    """The settings of torch that belong to a thread, and so to all forward passes."""
    import torch
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
        len(_get_current_function_mode_stack()),  # type: ignore[no-untyped-call]
        len(_get_current_dispatch_mode_stack()),
    )


def _local_tensors(pass_: greenlet) -> list[torch.Tensor]:
    """All tensors that a suspended pass has in variables: its part's arguments, and what it keeps for later.

    Most models keep the embeddings until the end, though only the first layer reads them.
    """
    found: list[torch.Tensor] = []
    frame = pass_.gr_frame
    while frame is not None:
        variables = frame.f_locals
        found += _tensors(list(variables.values()))
        if isinstance(variables, dict) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            variables.clear()  # before Python 3.13 the frame would keep this copy, and with it these tensors
        frame = frame.f_back
    return found


def _tensors(values: Any) -> list[torch.Tensor]:
    """All tensors in nested containers whose storage is their own device's, and can be emptied.

    Those of integers are left out: token ids are the caller's, who may give the same to several passes.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    return [
        each
        for each in tree_leaves(values)
        if type(each) is torch.Tensor
        and each.device.type != "meta"
        and (each.is_floating_point() or each.is_complex() or each.dtype is torch.bool)
        and each.untyped_storage().resizable()
    ]


def _has_empty(values: Any) -> bool:
    """Whether there is a tensor without numbers among nested values."""
    import torch
    from torch.utils._pytree import tree_leaves

    return any(isinstance(each, torch.Tensor) and each.device.type == "meta" for each in tree_leaves(values))


def _fixed(model: Any) -> Iterator[torch.Tensor]:
    """What the model itself holds: parameters of loaded parts, buffers, and tensors that its modules have kept."""
    import torch

    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                yield tensor
