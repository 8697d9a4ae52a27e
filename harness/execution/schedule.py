"""Which runs of a plan execute at the same time: one after another on one device, quality on all GPUs of a machine.

Runs whose figures are of time have the machine for themselves (``BaseJob.alone``). The others share it, each with the
GPUs that its process gets. With one GPU, or none, the order is the plan's.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.run import RunSpec


class Schedule:
    """Hands out the runs of a plan, by their index in it, as soon as each may begin.

    With several GPUs, the runs of each turn that are alone come first: the others then wait for them once.
    """

    def __init__(self, specs: Sequence[RunSpec], gpus: int) -> None:
        self._specs, self._gpus = specs, gpus
        self._waiting = list(range(len(specs)))
        if gpus > 1:
            self._waiting.sort(key=lambda index: (_turn(specs[index]), not specs[index].job.alone, index))
        self._pending = {spec.run_id for spec in specs}
        self._running: set[int] = set()

    @property
    def running(self) -> int:
        """How many runs have begun and not ended."""
        return len(self._running)

    def begin(self) -> int | None:
        """A run that begins now; None if all that are left must wait until another has ended, or none is left."""
        index = self._next()
        if index is not None:
            self._waiting.remove(index)
            self._running.add(index)
        return index

    def end(self, index: int) -> None:
        """Notes that a run has ended."""
        self._running.remove(index)
        self._pending.discard(self._specs[index].run_id)

    def _next(self) -> int | None:
        for place, index in enumerate(self._waiting):
            if self._specs[index].job.alone and (place or self._running):
                break  # nothing overtakes it
            if self._waits(index):
                continue
            if self._has_room(index):
                return index
            break
        return self._waiting[0] if self._waiting and not self._running else None

    def _waits(self, index: int) -> bool:
        """Whether it needs a run that has not ended, or may go on in the process of the one before it in the plan."""
        spec = self._specs[index]
        if not self._pending.isdisjoint(spec.needs.values()):
            return True
        earlier = self._specs[index - 1] if index else None
        return earlier is not None and earlier.run_id in self._pending and spec.may_share_process(earlier)

    def _has_room(self, index: int) -> bool:
        if not self._running:
            return True
        if any(self._specs[each].job.alone for each in self._running):
            return False
        return sum(self._specs[each].job.conditions.gpus for each in (*self._running, index)) <= self._gpus


def _turn(spec: RunSpec) -> int:
    return spec.job.turn + spec.repetition
