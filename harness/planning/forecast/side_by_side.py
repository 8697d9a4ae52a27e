"""How long runs take side by side: each begins as soon as its inputs are made and a machine has room for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(frozen=True)
class Constraints:
    """When and where a run may execute, besides others.

    A run that is ``alone`` has its machine for itself, and comes first in its turn; another takes ``devices`` of it, or
    if that is None all. Earlier turns go first. ``needs`` are the ids of runs that must have ended. Runs with the same
    name in ``together`` execute on one machine. ``memory_bytes`` is what it may need of memory that others use too.
    """

    alone: bool = False
    devices: int | None = 1
    turn: int = 0
    needs: frozenset[str] = frozenset()
    together: str | None = None
    memory_bytes: int = 0

    def share(self, lanes: Sequence[int]) -> float:
        """The part of all machines that it takes."""
        return 1 / len(lanes) if self.alone or self.devices is None else self.devices / sum(lanes)

    def taken(self, lanes: int) -> int:
        """How many lanes it takes of a machine that has so many."""
        return lanes if self.alone or self.devices is None else min(self.devices, lanes)


@dataclass(frozen=True)
class TimedRun:
    """A run that takes so many seconds."""

    seconds: float
    constraints: Constraints


def makespan_s(
    runs: Mapping[str, TimedRun], lanes: Sequence[int], memory_bytes: Sequence[int | None] | None = None
) -> float:
    """The seconds until the last run ends on machines of which each executes so many runs at once.

    ``memory_bytes`` is what runs on each machine share; None where they share none, or enough for all.
    Follows the rules of a sweep's schedule (``harness.execution.schedule``): runs begin in the order of their turns, in
    each turn those that are alone first, and none overtakes a run that waits for a machine there.
    """
    ids = list(runs)
    if sum(lanes) == 1:
        return sum(run.seconds for run in runs.values())
    ids.sort(key=lambda run_id: (runs[run_id].constraints.turn, not runs[run_id].constraints.alone))
    ordered = [runs[run_id] for run_id in ids]
    missing = [{need for need in run.constraints.needs if need in runs} for run in ordered]
    waiting_for: dict[str, list[int]] = defaultdict(list)
    for rank, needs in enumerate(missing):
        for need in needs:
            waiting_for[need].append(rank)
    ready = [rank for rank, needs in enumerate(missing) if not needs]
    heapify(ready)
    machines = _Machines(lanes, memory_bytes or [None] * len(lanes))
    now_s, running = 0.0, list[tuple[float, int, int]]()
    while ready or running:
        for rank, machine in machines.begin(ready, ordered):
            heappush(running, (now_s + ordered[rank].seconds, rank, machine))
        now_s, rank, machine = heappop(running)
        machines.end(ordered[rank].constraints, machine)
        for other in waiting_for[ids[rank]]:
            missing[other].discard(ids[rank])
            if not missing[other]:
                heappush(ready, other)
    return now_s


class _Machines:
    """The lanes and the memory that are free on each machine, and where the runs that belong together execute."""

    def __init__(self, lanes: Sequence[int], memory_bytes: Sequence[int | None]) -> None:
        self._lanes, self._free = lanes, list(lanes)
        self._memory, self._needed = memory_bytes, [0] * len(lanes)
        self._homes: dict[str, int] = {}

    def begin(self, ready: list[int], ordered: Sequence[TimedRun]) -> list[tuple[int, int]]:
        """Takes what may begin now out of the heap ``ready``: each run's rank, and its machine."""
        begun, stay = [], []
        usable = set(range(len(self._lanes)))  # those that no earlier run waits for
        while ready and usable:
            rank = heappop(ready)
            wants = ordered[rank].constraints
            machine = self._choice(wants, usable)
            if machine is None:
                stay.append(rank)
                continue
            if not self._has_room(wants, machine):
                usable.remove(machine)
                stay.append(rank)
                continue
            self._free[machine] -= wants.taken(self._lanes[machine])
            self._needed[machine] += wants.memory_bytes
            if wants.together is not None:
                self._homes[wants.together] = machine
            begun.append((rank, machine))
        for rank in stay:
            heappush(ready, rank)
        return begun

    def end(self, run: Constraints, machine: int) -> None:
        """Gives back what a run took."""
        self._free[machine] += run.taken(self._lanes[machine])
        self._needed[machine] -= run.memory_bytes

    def _has_room(self, wants: Constraints, machine: int) -> bool:
        """A run that nothing runs beside may need more memory than there is: the sweep tries it."""
        if wants.taken(self._lanes[machine]) > self._free[machine]:
            return False
        memory = self._memory[machine]
        is_idle = self._free[machine] == self._lanes[machine]
        return memory is None or is_idle or self._needed[machine] + wants.memory_bytes <= memory

    def _choice(self, wants: Constraints, usable: set[int]) -> int | None:
        """The least used machine, or that of the runs it belongs to; None if that one is not usable."""
        if wants.together is not None and wants.together in self._homes:
            home = self._homes[wants.together]
            return home if home in usable else None
        homes = list(self._homes.values()) if wants.together is not None else []
        return min(usable, key=lambda each: (homes.count(each), self._lanes[each] - self._free[each], each))
