"""What the checks of one machine share: the recipes that they run, their records, and the time that is left."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.analysis.tradeoff import tradeoff
from harness.core.inputs import Input
from harness.core.job import MeasureMachine
from harness.core.record import Failure, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.site import Machine, Node, Site
from harness.errors import UsageError
from harness.execution.events import Event, PhaseBegan, Started
from harness.execution.executor import Executor
from harness.execution.local import LocalExecutor, LocalSite, local_site
from harness.execution.sweep import sweep
from harness.figures.table import VariantRow
from harness.host.gpu import identifying
from harness.host.preflight import Preflight
from harness.planning.plan import PlannedRun, plan
from harness.recipe import Recipe
from harness.storage.anonymizer import Anonymizer
from harness.storage.store import Store

PLAN = "plan"
"""The phase in which a sweep refuses a run that this machine does not support."""
START = "start"
"""The phase of a run that no time was left for."""
Verdict = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True)
class CheckResult:
    """What a check found about one thing, and why that passes, fails or could not be checked here."""

    about: str
    verdict: Verdict
    reason: str


def passed(about: str, reason: str) -> CheckResult:
    return CheckResult(about, "PASS", reason)


def failed(about: str, reason: str) -> CheckResult:
    return CheckResult(about, "FAIL", reason)


def skipped(about: str, reason: str) -> CheckResult:
    return CheckResult(about, "SKIP", reason)


def judged(about: str, good: bool, reason: str) -> CheckResult:
    return (passed if good else failed)(about, reason)


@dataclass(frozen=True)
class Timed:
    """An executor whose runs end at a moment of ``time.monotonic``, wherever they are then."""

    within: Executor
    ends_s: float

    @property
    def site(self) -> Site:
        return self.within.site

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return self.within.fetch(specs)

    def nodes(self, device: str) -> Sequence[Node]:
        return self.within.nodes(device)

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        left_s = self.ends_s - time.monotonic()
        if left_s <= 0:
            return Outcome("timeout", Failure(START, "TimeLimit", "the check had no time left to start it")), b""
        own_s = spec.limits.time_s or left_s
        limits = replace(spec.limits, time_s=round(min(own_s, left_s), 1) or 0.1)
        return self.within.run(replace(spec, limits=limits), inputs, on_phase, node)

    def stop(self) -> None:
        self.within.stop()


@dataclass
class Bench:
    """One machine under test: its processor, or with ``on_gpu`` its GPU, of which torch says ``preflight``.

    ``chosen`` is None if the GPU cannot be used. ``folder`` is a temporary one for results, artifacts and models.
    ``report`` is called with each run that begins. On the clock of ``time.monotonic``, the current check's time ends at
    ``ends_s``, and that of all checks at ``over_s``.
    """

    folder: Path
    on_gpu: bool
    chosen: Machine | None
    preflight: Preflight | None
    report: Callable[[str], None]
    ends_s: float = math.inf
    over_s: float = math.inf
    records: list[RunRecord] = field(default_factory=list)
    _moments: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        """Raises UsageError if the GPU cannot be used."""
        if self.chosen is None:
            raise UsageError("the GPU cannot be used")
        return self.chosen

    @property
    def left_s(self) -> float:
        """The seconds until the current check's time is over."""
        return self.ends_s - time.monotonic()

    def fault(self, about: str, record: RunRecord) -> CheckResult:
        """What a run that did not succeed means: a failure, or that this machine lacks what it needs, or the time.

        A run that is cut short by its check's end may hang, so it failed. One that had no time to begin shows nothing.
        A run that lacks another one did not succeed for that one's reason.
        """
        latest = {each.spec.run_id: each for each in self.records}
        needed = [latest[run_id] for run_id in record.spec.needs.values() if run_id in latest]
        cause = next((each for each in needed if each.status != "ok"), record)
        reason = why(record)
        if time.monotonic() >= self.over_s:
            return skipped(about, f"the time was over: {reason}; give it more with --minutes")
        if cause.status == "timeout":
            reason += "; if this machine is only slow, give it more with --minutes"
        phase = cause.outcome.failure.phase if cause.outcome.failure is not None else None
        shows_nothing = (cause.status, phase) in (("unsupported", PLAN), ("timeout", START))
        return (skipped if shows_nothing else failed)(about, reason)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @cached_property
    def site(self) -> LocalSite:
        return replace(local_site(self.folder / "cache"), hardware=self.machine)

    @cached_property
    def anonymizer(self) -> Anonymizer:
        """For everything that is kept: also without the numbers that identify a GPU."""
        whole = Anonymizer.here(self.folder)
        numbers = identifying()
        bare = {uuid.partition("-")[2] for uuid in numbers if uuid.startswith(("GPU-", "MIG-"))}  # as torch names them
        return replace(whole, secrets={**(whole.secrets or {}), **dict.fromkeys(numbers | bare, "$GPU")})

    def measure(
        self,
        recipe: Mapping[str, Any],
        adapt: Callable[[PlannedRun], PlannedRun] = lambda run: run,
    ) -> tuple[RunRecord, ...]:
        """Runs a recipe on the machine until the check's time is over; ``adapt`` may change each planned run.

        Raises what ``sweep`` raises. A run that fails is a record.
        """
        chosen = Recipe.model_validate_json(json.dumps({"device": self.machine.device, **recipe}))
        planned = [adapt(run) for run in plan(chosen, self.site) if not self._knows(run)]
        store = Store(self.results, self.anonymizer)
        with closing(LocalExecutor(self.site)) as executor:
            made = sweep(planned, store, Timed(executor, self.ends_s), self._show)
        self.records += made
        return made

    def began_s(self, record: RunRecord, phase: str) -> float | None:
        """When a run of this process began a phase, on the clock of ``time.monotonic``; None if it never did."""
        return self._moments.get((record.spec.run_id, phase))

    def rows(self) -> Iterator[VariantRow]:
        """The rows of the tables of everything that was measured so far."""
        for table in tradeoff(self.records):
            yield from table.rows

    @property
    def own_speeds(self) -> RunRecord | None:
        """The run that measured the machine's own speeds last, however it ended."""
        return next((each for each in reversed(self.records) if isinstance(each.spec.job, MeasureMachine)), None)

    def _knows(self, planned: PlannedRun) -> bool:
        """Whether a run would only measure the machine again. A disturbed measurement is repeated once."""
        if not isinstance(planned.spec.job, MeasureMachine):
            return False
        known = [each for each in self.records if isinstance(each.spec.job, MeasureMachine) and each.status == "ok"]
        return len(known) > 1 or any(suspicion(each) is None for each in known)

    def _show(self, event: Event) -> None:
        if isinstance(event, Started):
            self.report(f"{event.spec.recipe}: {event.spec.title}")
        elif isinstance(event, PhaseBegan):
            self._moments[event.spec.run_id, event.name] = time.monotonic()


def why(record: RunRecord) -> str:
    """The first line of a failure's message, with its phase."""
    failure = record.outcome.failure
    if failure is None:
        return record.status
    lines = failure.message.strip().splitlines() or [failure.type]
    return f"in {failure.phase}: {lines[0]}"


def suspicion(*records: RunRecord | None) -> str | None:
    """Why the times of any of these runs are suspect; None if they are not."""
    labels = [label for record in records if record for label in record.outcome.suspicions]
    return "; ".join(dict.fromkeys(label.sentence for label in labels)) or None
