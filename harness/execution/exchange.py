"""A node's part where artifacts are shared at a URL: it fetches what a run needs, and sends what the run makes.

Each node has a cache folder of its own. A folder in it counts only while it is the one at the URL, so that all nodes of
a sweep measure the same artifacts, and a node does not use again what was removed there because its figures are void.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.core.record import Failure, Outcome
from harness.core.run import RunSpec
from harness.errors import DamagedError, HarnessError, ResultsError, reason_of
from harness.execution.executor import RunLost
from harness.storage.cache import Cache


@dataclass(frozen=True)
class Exchange:
    """What a node does around its runs. Nothing, if its cache is a folder that it shares with the other nodes."""

    artifacts: Cache
    _fetching: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def find_problem(self) -> str | None:
        """Why the node can fetch nothing from the URL, or send nothing there; None if it can."""
        try:
            if self.artifacts.shared is not None:
                self.artifacts.shared.refuse_unreachable(to_write=True)
        except HarnessError as error:
            return str(error)
        return None

    def around(self, spec: RunSpec, run: Callable[[], tuple[Outcome, bytes]]) -> tuple[Outcome, bytes]:
        """What ``run`` returns, with what it needs fetched before it, and what it made sent after it.

        Raises RunLost if the URL cannot be reached, or the disk is full: another node may do better.
        """
        if self.artifacts.shared is None:
            return run()
        try:
            with self._fetching:  # of runs that begin together one fetches what all need
                self.artifacts.pull(spec)
            self.artifacts.discard(spec)  # the sweep has it made anew, so what is here does not count
        except DamagedError as error:
            return Outcome("failed", Failure("fetch", type(error).__name__, str(error))), b""
        except OSError as error:
            raise RunLost(f"it could not fetch what the run needs: {reason_of(error)}", for_good=False) from error
        outcome, log = run()
        if outcome.status == "ok":
            try:
                self.artifacts.share(spec)
            except (OSError, ResultsError) as error:
                raise RunLost(f"it could not send what the run made: {reason_of(error)}", for_good=False) from error
        return outcome, log
