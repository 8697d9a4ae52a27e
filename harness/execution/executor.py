"""Runs one RunSpec at a site. The sweep depends on this protocol, not on any machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from harness.core.inputs import Input
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import Site


class Executor(Protocol):
    """Runs specs at one site, each in its own process.

    To add an executor, write a file in this package with a class that has these members, and its own Site, as in
    ``local.py``, and add an entry to ``executors.py``. It starts the worker below ``guard.py``, so that nothing that a
    library started outlives the run. The caller that opens an executor closes it after the sweep.
    """

    @property
    def site(self) -> Site: ...

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        """Downloads the hub models, texts and tasks that specs name to the site, because workers run offline.

        It also downloads the kernels that models already there need. Returns True if it fetched a model that planning
        could not read before: what else that model needs is fetched by the next call. Raises SourceError if fetching
        fails.
        """
        ...

    def run(self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None]) -> tuple[Outcome, bytes]:
        """Runs a spec to its end; returns its outcome and its log.

        ``inputs`` are the user's files as they were when hashed; a run that reads anything else is ``invalid``.
        Calls ``on_phase`` with the name of each phase when it begins. If a run crashes, hangs or cannot start, its
        outcome says so. Raises only KeyboardInterrupt, after ending the run.

        If the site has several GPUs, several threads call it at once, for runs that together get no more than these.
        Each of these threads lives until the sweep ends.
        """
        ...

    def stop(self) -> None:
        """Ends what executes in other threads, whose ``run`` then returns; nothing begins any more."""
        ...
