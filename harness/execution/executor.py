"""What runs one RunSpec at a site. The sweep knows this protocol, and no machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from harness.core.inputs import Input
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import Site


class Executor(Protocol):
    """Runs specs at one site, each in a process of its own.

    A new executor is one file in this room: a class with these members and its own Site, as ``local.py`` has them.
    ``qharness run`` needs one option then, which decides what ``api/run.py`` builds in place of LocalExecutor.
    Whoever builds an executor that holds connections or jobs closes it when the sweep has ended.
    """

    @property
    def site(self) -> Site: ...

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        """Brings the models, texts and tasks that specs name on a hub to the site, for workers run offline.

        True where a model came that planning could not read before. Raises SourceError for what cannot be fetched.
        """
        ...

    def run(self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None]) -> tuple[Outcome, bytes]:
        """Runs a spec to its end; returns its outcome and its log.

        ``inputs`` are the user's files as they were when they were hashed; a run that reads anything else is
        ``invalid``. ``on_phase`` is called with the name of each phase as it begins. A run that crashes, hangs or
        cannot start has an outcome that says so: nothing is raised but KeyboardInterrupt, after the run was ended.
        """
        ...
