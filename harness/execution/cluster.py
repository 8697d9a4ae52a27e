"""Several nodes as one site: what each of them reports, whether they are alike enough for one sweep, and which files
of the user each of them sees.

The nodes share artifacts with the machine that plans. Planning sees one machine: the hardware and the versions of all
nodes, and the stacks that this machine and some node have. The schedule knows which.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import distributions
from pathlib import Path

from harness.core.foreign import shown
from harness.core.run import RunSpec
from harness.core.site import MAIN, Artifacts, Machine, Node, Speeds
from harness.errors import UsageError, reason_of
from harness.execution.local import LocalSite
from harness.host.speeds import TYPICAL
from harness.stacks import stack_names

HERE_NAME = "this machine"
"""What messages call the machine that plans."""
PACKAGE = "qharness"


@dataclass(frozen=True)
class StackReport:
    """Why a stack cannot run anything on a node, None if it can; and its packages' versions by name."""

    obstacle: str | None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeReport:
    """What a machine says of itself before a sweep: its hardware for the recipe's device, what the schedule needs to
    know, and its stacks by name.

    ``problem`` says why it has no such device; then there is no ``machine`` and no ``node``, which has no name yet.
    """

    machine: Machine | None
    node: Node | None
    problem: str | None
    stacks: Mapping[str, StackReport]


def report_node(site: LocalSite) -> NodeReport:
    """The report of this machine, for the device that its stacks were chosen for."""
    installed = list(distributions())[::-1]  # of two copies Python imports the first
    versions = {_listed(each.name): each.version for each in installed if each.name and each.version}
    stacks = {MAIN: StackReport(None, versions)}
    for name in stack_names():
        stacks[name] = _stack_report(site, name)
    try:
        machine = site.machine(site.stacks.device)
        (node,) = site.nodes(machine.device)
    except UsageError as error:
        return NodeReport(None, None, str(error), stacks)
    return NodeReport(machine, node, None, stacks)


def _stack_report(site: LocalSite, name: str) -> StackReport:
    try:
        stack = site.stacks.find(name)
        obstacle = stack.find_obstacle()
        return StackReport(obstacle, {} if obstacle else stack.read_versions())
    except UsageError as error:
        return StackReport(str(error))


@dataclass(frozen=True)
class ClusterSite:
    """Alike nodes that share artifacts with this machine, whose site is ``here``.

    ``reports`` are those of the nodes by name. Where a stack is ready here and on no node, it may have been created
    since: then those that ``ask_anew`` returns take their place. ``time_node`` has a node time itself; None if it does
    not answer.
    """

    here: LocalSite
    reports: dict[str, NodeReport]
    ask_anew: Callable[[], Mapping[str, NodeReport]] = field(repr=False, compare=False)
    time_node: Callable[[], Speeds | None] = field(repr=False, compare=False)

    @property
    def artifacts(self) -> Artifacts:
        return self.here.artifacts

    def nodes(self) -> tuple[Node, ...]:
        """The nodes with their names.

        Raises UsageError if one lacks the recipe's device, if their hardware or their GPU drivers differ, or if a node
        runs another version of the harness than this machine.
        """
        hardware, drivers, nodes = dict[str, str](), dict[str, str](), list[Node]()
        for name, report in self.reports.items():
            if report.machine is None or report.node is None:
                raise UsageError(f"{name}: {report.problem}")
            hardware[name] = report.machine.hardware
            drivers[name] = report.machine.driver or "unknown"
            nodes.append(replace(report.node, name=name, stacks=_ready(report)))
        _refuse_unlike("hardware", hardware, "choose alike nodes")
        _refuse_unlike("the GPU driver", drivers, "give all of them one version")
        self.version(PACKAGE)
        return tuple(nodes)

    def machine(self, device: str) -> Machine:
        """A machine that has what every node has: the least memory, the fewest GPUs. Raises as ``nodes`` does."""
        self.nodes()
        machines = [report.machine for report in self.reports.values() if report.machine is not None]
        first = machines[0]
        if device not in ("auto", first.device):
            raise UsageError(f"device: {device}, but the nodes run on {first.device}")
        return replace(
            first,
            uuids=min((each.uuids for each in machines), key=len),
            memory_bytes=min((each.memory_bytes for each in machines if each.memory_bytes), default=0),
            instructions=frozenset.intersection(*(each.instructions for each in machines)),
            gpu_problem=next((each.gpu_problem for each in machines if each.gpu_problem), None),
            absent_compilers=tuple(dict.fromkeys(name for each in machines for name in each.absent_compilers)),
        )

    def speeds(self, device: str) -> Speeds:
        """Those of one node, which stands for all of them. This machine may be another, as login nodes are."""
        self.machine(device)
        return self.time_node() or TYPICAL

    def version(self, package: str, stack: str = MAIN) -> str | None:
        """The version of a distribution, the same on this machine and on every node that has the stack.

        Raises UsageError if one has another.
        """
        found = {HERE_NAME: self.here.version(package, stack)}
        for name, report in self.reports.items():
            if stack not in _ready(report):
                continue
            found[name] = report.stacks[stack].versions.get(_listed(package))
        way = "give all of them one environment" if stack == MAIN else f"create stack {stack!r} anew"
        _refuse_unlike(package, {name: version or "absent" for name, version in found.items()}, way)
        return found[HERE_NAME]

    def obstacle(self, stack: str) -> str | None:
        """Why this machine cannot run a stack. Raises UsageError if it can and no node can."""
        why = self.here.obstacle(stack)
        if why is not None or self._is_on_some(stack):
            return why
        self.reports.update(self.ask_anew())
        if not self._is_on_some(stack):
            name, report = next(iter(self.reports.items()))
            reason = report.stacks[stack].obstacle
            raise UsageError(f"stack {stack!r} is ready on this machine and on no node; {name}: {reason}")
        return None

    def _is_on_some(self, stack: str) -> bool:
        return any(stack in _ready(report) for report in self.reports.values())


@contextmanager
def writing_to(cache: Path) -> Iterator[None]:
    """Raises UsageError if the cache folder of a cluster takes no files: a quota is used up, it is read-only …"""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--cache {shown(cache)}: takes no files ({reason_of(error)}); make room there, or name another folder "
            "that all nodes share"
        ) from None


def paths_read(specs: Sequence[RunSpec], shared_downloads: bool) -> tuple[str, ...]:
    """The user's files and folders that runs read; with ``shared_downloads`` also the models fetched from a hub."""
    return tuple(sorted({path for spec in specs for path in _paths(spec, shared_downloads)}))


def _paths(spec: RunSpec, shared_downloads: bool) -> Iterator[str]:
    yield from (model.path for model in spec.job.models if model.path and (shared_downloads or not model.on_hub))
    yield from (text.path for text in spec.job.texts if text.path and not text.hub)
    yield from (task.definition for task in spec.job.tasks if task.own is not None)


def find_absent(paths: Sequence[str]) -> tuple[str, ...]:
    """Those of the paths that lead nowhere on this machine."""
    return tuple(path for path in paths if not os.path.exists(path))  # noqa: PTH110 - Path.exists raises if forbidden


def refuse_absent(absent: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError, with the first node and its first file, if any node lacks one."""
    for name, paths in absent.items():
        if paths:
            raise UsageError(f"{name} does not see {paths[0]}: put it into a folder that all nodes share")


def refuse_unreadable(problems: Mapping[str, str]) -> None:
    """Raises UsageError, with the first node, if any has a problem with the data sets that were fetched from a hub."""
    for name, problem in problems.items():
        if problem:
            raise UsageError(
                f"{name} cannot read a data set of the hub, and nodes download nothing: {problem}; put the hub's cache "
                "($HF_HOME) into a folder that all nodes share"
            )


def _ready(report: NodeReport) -> frozenset[str]:
    """The stacks that can run something on a node."""
    return frozenset(name for name, stack in report.stacks.items() if stack.obstacle is None)


def _refuse_unlike(what: str, found: Mapping[str, str], way: str) -> None:
    """Raises UsageError, with the first that differ, unless all have the same."""
    first = next(iter(found))
    other = next((name for name, value in found.items() if value != found[first]), None)
    if other is not None:
        raise UsageError(
            f"the nodes are unlike, so their figures could not be compared: {what} is {found[first]} on {first} and "
            f"{found[other]} on {other}; {way}"
        )


def _listed(name: str) -> str:
    """A distribution's name as the manifests of stacks have it."""
    return name.lower().replace("_", "-")
