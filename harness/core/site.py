"""The place where the runs of a sweep are made: its hardware, its libraries, and what earlier runs left there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from harness.core.record import Outcome
from harness.core.run import RunSpec

MAIN = "main"
"""The stack that every site has: the environment in which the harness itself is installed."""


@dataclass(frozen=True)
class Machine:
    """What planning must know of a site's hardware: the device that runs, and the class that figures belong to.

    ``capability`` is the GPU's compute capability; None on a CPU.
    """

    device: str
    hardware: str
    capability: tuple[int, int] | None = None


class Artifacts(Protocol):
    """What runs left at a site for other runs to use."""

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """The outcome of the run that made the spec's artifact; None where there is no such artifact."""
        ...

    def remove(self, spec: RunSpec) -> None:
        """Deletes what a run left; does nothing where it left nothing."""
        ...


class Site(Protocol):
    """Where a sweep runs. Planning asks this, and never the process that it happens to be in."""

    @property
    def artifacts(self) -> Artifacts: ...

    def machine(self, device: str) -> Machine:
        """The hardware that runs a recipe's ``device``: cpu, cuda or auto.

        Raises UsageError for a GPU that the site lacks or cannot use.
        """
        ...

    def version(self, package: str, stack: str = MAIN) -> str | None:
        """The version of a distribution in a stack, by its name on PyPI; None where it is not installed."""
        ...

    def obstacle(self, stack: str) -> str | None:
        """Why nothing can run in a stack, and what to do about that; None where it is ready.

        Raises UsageError for a stack that nobody knows.
        """
        ...
