"""Runs one RunSpec at a site. The sweep depends on this protocol, not on any machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from harness.core.inputs import Input
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import Node, Site


class RunLost(Exception):
    """A run has no outcome because its node, or the connection to it, failed: it is tried once more.

    The message says what happened, without the name of a host, because it becomes part of the record. ``for_good``:
    nothing can run on that node any more.
    """

    def __init__(self, message: str, for_good: bool) -> None:
        super().__init__(message, for_good)  # all of it, so that it may be pickled
        self.for_good = for_good

    def __str__(self) -> str:
        return str(self.args[0])


class Executor(Protocol):
    """Runs specs at one site, each in its own process.

    To add an executor, write a file in this package with a class that has these members, and its own Site, as in
    ``local.py``, and add an entry to ``executors.py``. It starts the worker below ``guard.py``, so that nothing that a
    library started outlives the run. The caller that opens an executor closes it after the sweep.

    An executor of several machines returns one ``Node`` for each from ``nodes``; the sweep's ``Schedule`` decides which
    run executes where, and ``run`` must execute it there. It raises RunLost if the node dies meanwhile. All its nodes
    are of the site's hardware class and have the same versions, also of a stack that several have: the executor checks
    that before the sweep begins, and raises UsageError.
    """

    @property
    def site(self) -> Site: ...

    def nodes(self, device: str) -> Sequence[Node]:
        """The machines to run on, for a recipe's ``device``; at least one, and no two of one name.

        Raises UsageError if the site lacks the device.
        """
        ...

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        """Downloads the hub models, texts and tasks that specs name to the site, because workers run offline.

        It also downloads the kernels that models already there need. Returns True if it fetched a model that planning
        could not read before: what else that model needs is fetched by the next call. Raises SourceError if fetching
        fails.
        """
        ...

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        """Runs a spec on a node to its end; returns its outcome and its log.

        ``inputs`` are the user's files as they were when hashed; a run that reads anything else is ``invalid``.
        Calls ``on_phase`` with the name of each phase when it begins. If a run crashes, hangs or cannot start, its
        outcome says so. Raises only RunLost, and KeyboardInterrupt after ending the run.

        If the site has several GPUs or nodes, several threads call it at once, for runs that together get no more than
        these. Each of these threads lives until the sweep ends.
        """
        ...

    def stop(self) -> None:
        """Ends what executes in other threads, whose ``run`` then returns; nothing begins any more."""
        ...
