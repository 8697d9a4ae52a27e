"""The executors that a user may choose, and which options each of them takes. No other module lists them.

To add one, write a file in this package as ``executor.py`` says, with a function that opens it from a choice, this
machine's site and a function that takes messages, and add its entry to ``EXECUTORS``. An option that no executor had
before is a field of ``ExecutorChoice`` and an option of ``qharness run`` and ``qharness plan``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from types import MappingProxyType
from typing import Protocol

from harness.core.run import RunSpec
from harness.errors import UsageError, refuse_unknown
from harness.execution.executor import Executor
from harness.execution.local import LocalSite
from harness.stacks import Stacks


@dataclass(frozen=True)
class ExecutorChoice:
    """An executor's name and the options that a user gives it; None or empty leaves an option to the executor.

    ``address`` is that of a running cluster. ``nodes`` is how many machines to use. ``slurm`` has options of sbatch as
    ``key=value``.
    """

    name: str = "local"
    nodes: int | None = None
    slurm: tuple[str, ...] = ()
    address: str | None = None


THIS_MACHINE = ExecutorChoice()


class OpenExecutor(Executor, Protocol):
    """An executor with the processes, connections or jobs that it started, and the stacks that its runs use."""

    @property
    def stacks(self) -> Stacks: ...

    def refuse_unseen(self, specs: Sequence[RunSpec]) -> None:
        """Raises UsageError, with the node and the file, if a node lacks something that these specs read from disk."""
        ...

    def device_of(self, spec: RunSpec) -> str:
        """On which of several GPUs or cores a run executes now, as people name them; empty if that is unknown."""
        ...

    def close(self) -> None:
        """Ends them; no run executes meanwhile."""
        ...


@dataclass(frozen=True)
class _Entry:
    """``opener`` names a function as ``module:function``, which is imported when it is used.

    ``options`` are the fields of ``ExecutorChoice`` that it reads.
    """

    opener: str
    options: tuple[str, ...] = ()


EXECUTORS: Mapping[str, _Entry] = MappingProxyType(
    {
        "local": _Entry("harness.execution.local:open_local"),
        "ray": _Entry("harness.execution.ray_cluster:open_ray", ("address",)),
        "slurm": _Entry("harness.execution.slurm:open_slurm", ("nodes", "slurm")),
    }
)


def open_executor(
    choice: ExecutorChoice, site: LocalSite, report: Callable[[str], None] = lambda message: None
) -> OpenExecutor:
    """The chosen executor, ready to run specs. ``report`` receives what a user who waits for it wants to know.

    Raises UsageError for an unknown one, for an option that it does not take, and if it cannot reach its nodes.
    """
    entry = EXECUTORS.get(choice.name)
    if entry is None:
        refuse_unknown("executor", choice.name, EXECUTORS)
    for name in (each.name for each in fields(choice) if each.name != "name"):
        if getattr(choice, name) not in (None, ()) and name not in entry.options:
            takers = ", ".join(f"--executor {other}" for other, each in EXECUTORS.items() if name in each.options)
            raise UsageError(f"--{name}: --executor {choice.name} has no such option, but {takers} has")
    module, _, function = entry.opener.partition(":")
    opener: Callable[[ExecutorChoice, LocalSite, Callable[[str], None]], OpenExecutor]
    opener = getattr(import_module(module), function)
    return opener(choice, site, report)
