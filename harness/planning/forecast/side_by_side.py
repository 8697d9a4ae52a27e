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
    name in ``together`` execute on one machine.
    """

    alone: bool = False
    devices: int | None = 1
    turn: int = 0
    needs: frozenset[str] = frozenset()
    together: str | None = None

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


def makespan_s(runs: Mapping[str, TimedRun], lanes: Sequence[int]) -> float:
    """The seconds until the last run ends on machines of which each executes so many runs at once.

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
    machines = _Machines(lanes)
    now_s, running = 0.0, list[tuple[float, int, int, int]]()
    while ready or running:
        for rank, machine, taken in machines.begin(ready, ordered):
            heappush(running, (now_s + ordered[rank].seconds, rank, machine, taken))
        now_s, rank, machine, taken = heappop(running)
        machines.free[machine] += taken
        for other in waiting_for[ids[rank]]:
            missing[other].discard(ids[rank])
            if not missing[other]:
                heappush(ready, other)
    return now_s


class _Machines:
    """The lanes that are free on each machine, and which machine executes the runs that belong together."""

    def __init__(self, lanes: Sequence[int]) -> None:
        self.free = list(lanes)
        self._lanes = lanes
        self._homes: dict[str, int] = {}

    def begin(self, ready: list[int], ordered: Sequence[TimedRun]) -> list[tuple[int, int, int]]:
        """Takes what may begin now out of the heap ``ready``: each run's rank, its machine, the lanes that it takes."""
        begun, stay = [], []
        usable = set(range(len(self._lanes)))  # those that no earlier run waits for
        while ready and usable:
            rank = heappop(ready)
            wants = ordered[rank].constraints
            machine = self._choice(wants, usable)
            if machine is None:
                stay.append(rank)
                continue
            taken = wants.taken(self._lanes[machine])
            if taken > self.free[machine]:
                usable.remove(machine)
                stay.append(rank)
                continue
            self.free[machine] -= taken
            if wants.together is not None:
                self._homes[wants.together] = machine
            begun.append((rank, machine, taken))
        for rank in stay:
            heappush(ready, rank)
        return begun

    def _choice(self, wants: Constraints, usable: set[int]) -> int | None:
        """The least used machine, or that of the runs it belongs to; None if that one is not usable."""
        if wants.together is not None and wants.together in self._homes:
            home = self._homes[wants.together]
            return home if home in usable else None
        homes = list(self._homes.values()) if wants.together is not None else []
        return min(usable, key=lambda each: (homes.count(each), self._lanes[each] - self.free[each], each))
