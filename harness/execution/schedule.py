"""Which runs of a plan execute at the same time, and on which node: quality on all GPUs and nodes, speed alone.

Runs whose figures are of time have their node for themselves (``BaseJob.alone``). The others share it, each with the
GPUs that its process gets, or on a CPU with its own cores if the recipe says how many threads a run has. All speeds of
one model are measured on one node, because they are compared only there. A run begins only where its stacks are, and a
speed only where those of all speeds of its model are. With one node and one GPU, or none, and without a number of
threads, the order is the plan's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.core.run import RunSpec, compared_within, turn_of
from harness.core.site import MAIN, Node
from harness.errors import UsageError
from harness.planning.plan import PlannedRun


@dataclass(frozen=True)
class Placement:
    """The run with this index in the plan begins on ``node``."""

    index: int
    node: Node


class Schedule:
    """Hands out the runs of a plan as soon as each may begin, with the node to execute on.

    ``width`` is how many may execute at once. If it is several, the runs of each turn that are alone come first: the
    others then wait for them once.
    """

    @classmethod
    def of(cls, planned: Sequence[PlannedRun], nodes: Sequence[Node]) -> Schedule:
        """The schedule of a plan, with what each run needs of a node. Raises UsageError as ``__init__`` does."""
        needed_bytes, needed_stacks = [run.needed_bytes for run in planned], list(map(stacks_needed, planned))
        return cls([run.spec for run in planned], nodes, needed_bytes, needed_stacks)

    def __init__(
        self,
        specs: Sequence[RunSpec],
        nodes: Sequence[Node],
        needed_bytes: Sequence[int] = (),
        needed_stacks: Sequence[frozenset[str]] = (),
    ) -> None:
        """``needed_bytes`` is the memory that each run may need where runs share a CPU; without it there is enough.

        ``needed_stacks`` are those that each run needs; without it every node has them. Raises UsageError if no node
        has all that a run, or that the speeds of a model, need.
        """
        self.nodes = list(nodes)
        self.width = width(specs, nodes)
        self._specs = specs
        self._needed_bytes = needed_bytes or [0] * len(specs)
        self._waiting = list(range(len(specs)))
        self._parallel = self.width > 1
        self._sort()
        self._groups = [compared_within(spec) if spec.job.repeated else None for spec in specs]
        self._stacks = _together(needed_stacks or [frozenset()] * len(specs), self._groups)
        self._refuse_stacks_apart()
        self._pending = {spec.run_id for spec in specs}
        self._running: dict[int, Node] = {}
        self._last: dict[int, Node] = {}
        self._avoided: dict[int, set[Node]] = {}
        self._homes: dict[str, Node] = {}  # by what speeds are compared within: the node that measures them

    @property
    def running(self) -> int:
        """How many runs have begun and not ended."""
        return len(self._running)

    @property
    def waiting(self) -> tuple[int, ...]:
        """The runs that have not begun. When nothing is running, no node is left that has their stacks."""
        return tuple(self._waiting)

    def begin(self) -> Placement | None:
        """A run that begins now; None if all that are left must wait until another has ended, or none is left."""
        placed = self._next()
        if placed is not None:
            index, node = placed.index, placed.node
            self._waiting.remove(index)
            self._running[index] = self._last[index] = node
            if (group := self._groups[index]) is not None:
                self._homes.setdefault(group, node)
        return placed

    def end(self, index: int) -> None:
        """Notes that a run has ended."""
        del self._running[index]
        self._pending.discard(self._specs[index].run_id)

    def retry(self, index: int) -> None:
        """Puts back a run that was lost; it begins on another node if it can, a speed on that of its model."""
        self._avoided.setdefault(index, set()).add(self._running.pop(index))
        self._put_back(index)

    def repeat(self, index: int) -> None:
        """Puts a run that has ended back."""
        self._pending.add(self._specs[index].run_id)
        self._put_back(index)

    def remove(self, node: Node) -> None:
        """Begins nothing more on a node that is lost for good. Speeds that it measured are left to another node."""
        if node in self.nodes:
            self.nodes.remove(node)
        self._homes = {group: home for group, home in self._homes.items() if home != node}

    def _put_back(self, index: int) -> None:
        self._waiting.append(index)
        self._sort()

    def _sort(self) -> None:
        if self._parallel:
            self._waiting.sort(key=lambda index: (turn_of(self._specs[index]), not self._specs[index].job.alone, index))
        else:
            self._waiting.sort()

    def _next(self) -> Placement | None:
        if not self.nodes or not self._waiting:
            return None
        free = list(self.nodes)  # those that no earlier run of the order waits for
        for index in self._waiting:
            waits = self._waits(index)
            if waits and not (self._specs[index].job.alone and len(self.nodes) == 1):
                continue
            choice = self._choice(index, free)
            if choice is None or choice not in free:
                continue
            if not waits and self._has_room(index, choice):
                return Placement(index, choice)
            free.remove(choice)  # nothing overtakes the run there
            if not free:
                break
        if self._running:
            return None
        for index in self._waiting:
            if not self._waits(index) and (choice := self._choice(index, self.nodes)) is not None:
                return Placement(index, choice)
        return None

    def _choice(self, index: int, free: Sequence[Node]) -> Node | None:
        """The node for a run, of those that are free: where it has to be, or else where it may begin first.

        None if none of them has its stacks.
        """
        spec, group = self._specs[index], self._groups[index]
        if group is not None and group in self._homes:
            return self._homes[group]
        earlier = self._last.get(index - 1)
        shared = earlier if earlier is not None and spec.may_share_process(self._specs[index - 1]) else None
        avoided = self._avoided.get(index, set())
        measuring, busy = list(self._homes.values()), list(self._running.values())
        return min(
            (node for node in free if node.has(self._stacks[index])),
            default=None,
            key=lambda node: (
                node in avoided,
                not self._has_room(index, node),
                node != shared,
                0 if group is None else measuring.count(node),
                busy.count(node),
            ),
        )

    def _refuse_stacks_apart(self) -> None:
        for spec, needed in zip(self._specs, self._stacks, strict=True):
            if not any(node.has(needed) for node in self.nodes):
                beside = ", and what it is compared with on one node," if spec.job.repeated else ""
                named = " and ".join(sorted(needed - {MAIN}))
                raise UsageError(f"no node has the stacks that {spec.title}{beside} needs: {named}; create them on one")

    def _waits(self, index: int) -> bool:
        """Whether it needs a run that has not ended, or may go on in the process of the one before it in the plan."""
        spec = self._specs[index]
        if not self._pending.isdisjoint(spec.needs.values()):
            return True
        earlier = self._specs[index - 1] if index else None
        return earlier is not None and earlier.run_id in self._pending and spec.may_share_process(earlier)

    def _has_room(self, index: int, node: Node) -> bool:
        together = [index, *(each for each, where in self._running.items() if where == node)]
        if len(together) == 1:
            return True
        if any(self._specs[each].job.alone for each in together):
            return False
        if node.cores:
            cores = sum(self._specs[each].cores or node.cores for each in together)
            return cores <= node.cores and sum(self._needed_bytes[each] for each in together) <= node.memory_bytes
        return sum(self._specs[each].job.conditions.gpus for each in together) <= node.gpus


def _together(needed: Sequence[frozenset[str]], groups: Sequence[str | None]) -> list[frozenset[str]]:
    """The stacks that a node must have for each run: its own, and of speeds those of all that are compared with it."""
    of_group: dict[str | None, frozenset[str]] = {}
    for group, stacks in zip(groups, needed, strict=True):
        of_group[group] = of_group.get(group, frozenset()) | stacks
    return [stacks if group is None else of_group[group] for group, stacks in zip(groups, needed, strict=True)]


def width(specs: Sequence[RunSpec], nodes: Sequence[Node]) -> int:
    """How many of these runs may execute at once on the nodes."""
    fewest = min((spec.cores for spec in specs if spec.cores), default=0)
    return sum(max(node.cores // fewest, 1) if node.cores and fewest else node.gpus for node in nodes)


def stacks_needed(run: PlannedRun) -> frozenset[str]:
    """The stacks that a node must have to execute a run; none if it will not execute."""
    return frozenset() if run.unsupported else frozenset((run.spec.stack, *run.spec.job.stacks))
