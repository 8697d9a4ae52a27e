"""The sweep: executes every planned run, skips finished ones, and records each result at once.

The main thread does everything but waiting for executing runs: with several GPUs or nodes, threads do that
(``_Lanes``). The executor says which nodes there are: nothing here assumes this machine. A run that is lost with its
node is made once more, on another node if there is one. Runs must read exactly what the planner hashed: workers check
sizes and times, and at the end of the sweep every file is hashed once more. A run that read something else is
``invalid``.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

from harness.core.inputs import Input
from harness.core.label import Fact
from harness.core.record import Failure, Outcome, RunRecord
from harness.core.run import RunSpec, compared_within
from harness.core.site import HERE, Artifacts, Node
from harness.errors import ResultsError, reason_of
from harness.execution.events import (
    ArtifactDamaged,
    DamageFound,
    Ended,
    Event,
    Expected,
    Forecasted,
    Lost,
    NotFetched,
    NotShared,
    PhaseBegan,
    ReadingResults,
    Remaining,
    Started,
    TakenIn,
    Verifying,
    Waiting,
    Withdrawn,
)
from harness.execution.executor import Executor, RunLost
from harness.execution.interrupt import uninterrupted
from harness.execution.resume import done, left, needed, reusable
from harness.execution.schedule import Schedule
from harness.planning.forecast.forecast import NOTHING, SweepForecast
from harness.planning.forecast.pace import remaining
from harness.planning.plan import PlannedRun
from harness.storage.checksums import compare_content, compare_stat, find_difference
from harness.storage.disk import TAKES_NOTHING
from harness.storage.pack import PACK
from harness.storage.spill import Saver
from harness.storage.store import Store

CHANGED = "an input changed during the sweep: {}"
LOOK_AGAIN_S = 0.5
"""How often a sweep looks whether another one has measured what it waits for."""


Expect = Callable[[Sequence[PlannedRun], Sequence[RunRecord]], SweepForecast]
"""Forecasts the runs that are left of a plan, from earlier records."""


@dataclass(frozen=True)
class _Sweep:
    """What all runs of a sweep share."""

    store: Store
    saver: Saver
    executor: Executor
    session: str
    on_event: Callable[[Event], None]
    paranoid: bool
    _intact: set[str] = field(default_factory=set)
    _out_of_reach: set[str] = field(default_factory=set)

    @property
    def artifacts(self) -> Artifacts:
        return self.executor.site.artifacts

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """The outcome of the run that made an artifact, all of which is hashed, once per sweep; None if there is none.

        Discards a damaged copy here, and then takes the one that other machines share, if that is whole.
        """
        while True:
            kept, damage = self._look(spec)
            if damage is None:
                return kept
            self.on_event(ArtifactDamaged(spec, damage))
            if not self._removed(spec, self.artifacts.discard):
                return None

    def reusable(self, spec: RunSpec) -> Outcome | None:
        """The outcome of an artifact, unless its run is to be made again because a sweep was ended meanwhile.

        That happens once: it is noted first, so one that is ended at the same point again is then used as it is. If
        another sweep still measures the last of it, its outcome is waited for.
        """
        kept = self.outcome(spec)
        if kept is not None and kept.is_interrupted:
            self._wait_for_maker(spec)
            kept = self.outcome(spec)
        if kept is None or reusable(kept) is not None:
            return kept
        try:
            self.artifacts.amend(spec, kept.cut_short("its sweep was ended"))
        except (OSError, ResultsError):  # without the note it would be made again each time
            return kept
        return None

    def _wait_for_maker(self, spec: RunSpec) -> None:
        """Waits while another process measures the last of an artifact, or may do so."""
        if self.artifacts.maker(spec) is None:
            return
        self.on_event(Waiting(f"waiting for another sweep, which still measures the last of {spec.title}"))
        while self.artifacts.maker(spec) is not None:
            time.sleep(LOOK_AGAIN_S)

    def _look(self, spec: RunSpec) -> tuple[Outcome | None, str | None]:
        """The outcome, and what is wrong with the artifact; neither of one that cannot be fetched.

        If that is because this machine's disk takes nothing, the sweep ends: it would not take a new one either.
        """
        if spec.run_id in self._out_of_reach:  # what it needs may have been made again by now
            return None, None
        damage = self.artifacts.damage(spec, read_data=False)
        try:
            kept = self.artifacts.outcome(spec) if damage is None else None
            if kept is not None and spec.run_id not in self._intact:
                self.on_event(Verifying(spec))
                damage = self.artifacts.damage(spec, read_data=True)
                if damage is None:
                    self._intact.add(spec.run_id)
        except OSError as error:
            self._out_of_reach.add(spec.run_id)
            self.on_event(NotFetched(spec, reason_of(error)))
            if error.errno in TAKES_NOTHING:
                self.saver.report(
                    f"the artifact of {spec.title} cannot be fetched, since this machine's cache takes nothing", error
                )
            return None, None
        return kept, damage

    def known(self, spec: RunSpec) -> Outcome | None:
        """The outcome of an artifact for a forecast, unchecked; None also if it cannot be read now."""
        with suppress(OSError):
            return self.artifacts.outcome(spec)
        return None

    def share(self, spec: RunSpec) -> None:
        """Sends what a run made to where other machines find it; the sweep goes on if that fails."""
        try:
            self.artifacts.share(spec)
        except (OSError, ResultsError) as error:
            self.on_event(NotShared(spec, reason_of(error)))

    def remove(self, spec: RunSpec) -> None:
        """Removes an artifact that must not be used anywhere; if it cannot be removed, the sweep ends."""
        self._removed(spec, self.artifacts.remove)

    def _removed(self, spec: RunSpec, remove: Callable[[RunSpec], bool]) -> bool:
        try:
            return remove(spec)
        except OSError as error:
            self.saver.report(f"the artifact of {spec.title} must not be used, and cannot be removed", error)
            return False


def sweep(
    planned: Sequence[PlannedRun],
    store: Store,
    executor: Executor,
    on_event: Callable[[Event], None],
    paranoid: bool = False,
    spill_roots: Sequence[Path] = (),
    expect: Expect | None = None,
) -> tuple[RunRecord, ...]:
    """Executes every run that is not done and returns one record per planned run that is ``needed``, in order.

    With several GPUs or nodes, ``Schedule`` decides which runs execute at the same time, and where. Each record is
    saved as soon as its run has ended. Inputs are hashed again at the end; with ``paranoid`` also after each run. A
    damaged attempt is moved away, and its run made again. Artifacts of earlier sweeps are hashed before they are used;
    damaged ones are made again. ``on_event`` is called by one thread at a time. If something is left to run, ``expect``
    forecasts it; records then say what was expected.

    Raises ResultsError if another sweep is writing to the same results, and StorageError once a record could not be
    written to them: it is then in the first of ``spill_roots`` that works, from where the next sweep takes it in. Runs
    that execute then end first. UsageError if the executor's site lacks the planned device.
    """
    on_event = _one_at_a_time(on_event)
    nodes = executor.nodes(planned[0].spec.device)
    recipe = planned[0].spec.recipe
    session = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    saver = Saver(store, spill_roots)
    under_way = _Sweep(store, saver, executor, session, on_event, paranoid)
    with store.locked(recipe):
        on_event(ReadingResults(recipe))
        for damaged in saver.damaged(recipe):
            on_event(DamageFound(damaged, None))
        for taken in saver.take_in(recipe):
            on_event(TakenIn(taken))
        contents = store.read(recipe)
        for damaged in contents.damaged:
            stays = damaged.log_only or damaged.path.name == PACK  # other attempts are in the pack
            on_event(DamageFound(damaged, None if stays else store.set_aside(recipe, damaged)))
        planned = needed(planned, contents.records)
        progress = _Progress(under_way, planned, contents.records, expect)
        records = progress.records
        through = False
        try:
            schedule = Schedule.of(planned, nodes)
            with _Lanes(executor, schedule.width, progress.keep) as lanes:
                progress.follow(schedule, lanes)
            if saver.trouble is not None:
                raise saver.trouble
            progress.compare_with_forecast()
            through = True
        finally:  # an interrupt must not wait until everything is hashed
            try:
                records |= _withdrawn(progress.made, records, under_way, touched_alone=not through)
            except KeyboardInterrupt:
                with uninterrupted():
                    _withdrawn(progress.made, records, under_way, touched_alone=True)
                raise
        if saver.trouble is not None:
            raise saver.trouble
    return tuple(records[run.spec.run_id] for run in planned)


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a planned run on a node, when it began: a date, and this process's clock."""

    index: int
    planned: PlannedRun
    node: Node
    started_at: str
    began_s: float


@dataclass(frozen=True)
class _Execution:
    """What an executor made of an attempt, in how many seconds."""

    attempt: _Attempt
    outcome: Outcome
    log: bytes | None
    wall_s: float


@dataclass(frozen=True)
class _Loss:
    """An attempt of which nothing is known, because its node failed after so many seconds."""

    attempt: _Attempt
    error: RunLost
    wall_s: float

    @property
    def fact(self) -> Fact:
        return Fact("node_lost", {"node": self.attempt.node.name, "reason": str(self.error)})


class _Progress:
    """What became of each planned run so far. ``made`` are those that were executed."""

    def __init__(
        self,
        sweep: _Sweep,
        planned: Sequence[PlannedRun],
        earlier: Sequence[RunRecord],
        expect: Expect | None,
    ) -> None:
        self.records: dict[str, RunRecord] = {}
        self.made: list[PlannedRun] = []
        self._sweep, self._planned = sweep, planned
        self._latest = {record.spec.run_id: record for record in earlier}
        self._finished = done(planned, earlier, sweep.outcome)
        self._losses: dict[int, _Loss] = {}
        todo = left(planned, self._finished, sweep.known) if expect else ()
        self._forecast = expect(todo, earlier) if expect and todo else NOTHING
        self._running: dict[str, float] = {}  # when each that executes began
        if self._forecast.runs:
            sweep.on_event(Expected(self._forecast))
            self._show_remaining()

    def follow(self, schedule: Schedule, lanes: _Lanes) -> None:
        """Gets a record of every planned run. Once one cannot be saved, begins no more."""
        while True:
            while self._sweep.saver.trouble is None and (placed := schedule.begin()) is not None:
                attempt = self._begin(placed.index, placed.node)
                if attempt is None:
                    schedule.end(placed.index)
                else:
                    lanes.execute(partial(self._execute, attempt))
            if not schedule.running:
                break
            ended = lanes.wait()
            index = ended.attempt.index
            if isinstance(ended, _Loss) and self._note(ended, schedule):
                continue
            self.keep(ended)
            schedule.end(index)
            self._show(index, reused=False)
            self._show_remaining()
        lost = "every node that has its stack was lost" if schedule.nodes else "every node of the sweep was lost"
        for index in schedule.waiting if self._sweep.saver.trouble is None else ():  # no node is left for it
            if self._is_measured(index):  # a baseline that was to be measured once more keeps its figures
                continue
            attempt = self._begin(index, HERE)
            if attempt is not None:
                failure = Failure("start", "NodeLost", f"{lost}; run the recipe again")
                self._record(attempt, Outcome("failed", failure), None, 0.0)
                self._show(index, reused=False)

    def _is_measured(self, index: int) -> bool:
        """Whether this sweep has measured a run well."""
        record = self.records.get(self._planned[index].spec.run_id)
        return record is not None and record.status == "ok" and record.session == self._sweep.session

    def _note(self, loss: _Loss, schedule: Schedule) -> bool:
        """Notes that a run was lost with its node; returns whether it is made once more.

        If the node is lost for good, the rest of a model's speeds are measured on another one, and so the baseline that
        they are compared with is measured there again.
        """
        index, node = loss.attempt.index, loss.attempt.node
        again = index not in self._losses
        reason = self._sweep.store.anonymizer.message(str(loss.error))
        self._sweep.on_event(Lost(loss.attempt.planned.spec, node.name, reason, loss.error.for_good, again))
        if loss.error.for_good and node in schedule.nodes:
            schedule.remove(node)
            for number, run in enumerate(self._planned):
                record = self.records.get(run.spec.run_id)
                measured = record is not None and record.node == node.name and record.session == self._sweep.session
                if measured and _must_repeat(run.spec, self._planned, self.records, self.records):
                    schedule.repeat(number)
        if again:
            self._losses[index] = loss
            schedule.retry(index)
        return again

    def keep(self, ended: _Execution | _Loss) -> None:
        """Saves the record of a run that was executed, or that was lost with two nodes."""
        self.made.append(ended.attempt.planned)  # an interrupt may come when the record is saved
        if isinstance(ended, _Execution):
            self._record(ended.attempt, ended.outcome, ended.log, ended.wall_s)
        else:
            index, node = ended.attempt.index, ended.attempt.node
            message = (
                f"it was lost on {node.name}, and before on {self._losses[index].attempt.node.name}: {ended.error}"
            )
            self._record(ended.attempt, Outcome("failed", Failure("node", "NodeLost", message)), None, ended.wall_s)

    def _begin(self, index: int, node: Node) -> _Attempt | None:
        """An attempt at a run that must execute; None if the run has a record without that."""
        sweep, planned = self._sweep, self._planned[index]
        spec = planned.spec
        sweep.on_event(Started(spec, index + 1, len(self._planned), node.name))
        repeat = _must_repeat(spec, self._planned, self._finished, self.records)
        record = None if repeat else self._finished.get(spec.run_id)
        refusal = planned.unsupported or _unmet(spec, self.records)
        refusal = refusal and sweep.store.anonymizer.message(refusal)
        if record is None and refusal:
            record = _refused(self._latest.get(spec.run_id), refusal)
        elif record is not None and record.spec.readers != spec.readers:
            record = _restated(record, spec, sweep.saver)
        if record is not None:
            self.records[spec.run_id] = record
            self._show(index, reused=True)
            return None
        kept = None if refusal else sweep.reusable(spec)  # which may wait for another sweep
        attempt = _Attempt(index, planned, node, datetime.now(UTC).isoformat(), time.perf_counter())
        if sweep.saver.trouble is not None:  # no new artifact can be kept either
            return None
        if kept is None and not refusal:
            self._running[spec.run_id] = attempt.began_s
            return attempt
        outcome = kept or Outcome("unsupported", Failure("plan", "Unsupported", refusal or ""))
        self._record(attempt, outcome, None, 0.0)  # nothing was measured; hashing an artifact may take minutes
        self._show(index, reused=kept is not None)
        return None

    def _show_remaining(self) -> None:
        """Says how long the rest will take. What cannot be made, or needs not be made after all, takes no time."""
        rest = {
            run_id: run
            for run_id, run in self._forecast.runs.items()
            if run_id in self._taken_s or run_id not in self.records
        }
        if rest:
            now = time.perf_counter()
            running_s = {run_id: now - began_s for run_id, began_s in self._running.items()}
            span = remaining(replace(self._forecast, runs=rest), self._taken_s, running_s)
            self._sweep.on_event(Remaining(span))

    @property
    def _taken_s(self) -> Mapping[str, float]:
        """The seconds of the runs that were made and succeeded."""
        made = (self.records[run.spec.run_id] for run in self.made if run.spec.run_id in self.records)
        return {record.spec.run_id: record.wall_s for record in made if record.status == "ok"}

    def compare_with_forecast(self) -> None:
        """Says how good the forecast of the runs that succeeded was, if there was one."""
        taken_s = self._taken_s
        made = {run_id: run for run_id, run in self._forecast.runs.items() if run_id in taken_s}
        if made:
            expected_s = replace(self._forecast, runs=made, lanes=(1,)).total_s
            took_s = sum(taken_s[run_id] for run_id in made)
            within = sum(run.time.low_s <= taken_s[run_id] <= run.time.high_s for run_id, run in made.items())
            others = len(self._forecast.runs) - len(made)
            self._sweep.on_event(Forecasted(expected_s, took_s, len(made), within, others))

    def _show(self, index: int, reused: bool) -> None:
        record = self.records[self._planned[index].spec.run_id]
        self._sweep.on_event(Ended(record, index + 1, len(self._planned), reused))

    def _execute(self, attempt: _Attempt) -> _Execution | _Loss:
        """Waits for the executor. Threads may run this; everything else here is for the main thread."""
        spec, sweep = attempt.planned.spec, self._sweep
        inputs = attempt.planned.inputs
        try:
            outcome, log = sweep.executor.run(
                spec, inputs, lambda phase: sweep.on_event(PhaseBegan(spec, phase)), attempt.node
            )
        except RunLost as error:
            return _Loss(attempt, error, time.perf_counter() - attempt.began_s)
        wall_s = time.perf_counter() - attempt.began_s
        if outcome.status == "ok":
            sweep.share(spec)
        return _Execution(attempt, outcome, log, wall_s)

    def _record(self, attempt: _Attempt, outcome: Outcome, log: bytes | None, wall_s: float) -> None:
        sweep, spec = self._sweep, attempt.planned.spec
        checked = attempt.planned.inputs if sweep.paranoid and log is not None else ()
        changed = [why for each in checked if (why := _changed(each))]
        if changed and outcome.status == "ok":
            sweep.remove(spec)
            failure = Failure("inputs", "InvalidRunError", CHANGED.format(changed[0]))
            outcome = replace(outcome, status="invalid", failure=failure)
        self._running.pop(spec.run_id, None)
        expected = self._forecast.runs.get(spec.run_id) if log is not None else None
        if attempt.index in self._losses:
            outcome = replace(outcome, facts=(*outcome.facts, self._losses[attempt.index].fact))
        made = RunRecord(
            spec=spec,
            outcome=outcome,
            session=sweep.session,
            attempt=sweep.saver.next_attempt(spec.recipe, spec.run_id),
            started_at=attempt.started_at,
            wall_s=wall_s,
            node="" if log is None else attempt.node.name,
            forecast=None if expected is None else expected.time,
        )
        record = sweep.store.anonymizer.record(made)  # displays and callers see what is stored
        with uninterrupted():
            try:
                sweep.saver.save(record, log)
            except ValueError as error:  # NaN, or too large to be read again
                record = self._save_what_can_be(record, log, Failure("save", "InvalidRunError", str(error)))
            self.records[spec.run_id] = record

    def _save_what_can_be(self, record: RunRecord, log: bytes | None, reason: Failure) -> RunRecord:
        """Saves a record without what must not be stored, and why it is missing."""
        left = replace(record, outcome=record.outcome.unstorable(reason))
        try:
            self._sweep.saver.save(left, log)
        except ValueError:  # it is not in the measurements
            left = replace(record, outcome=Outcome("invalid", reason))
            self._sweep.saver.save(left, log)
        return left


class _Lanes:
    """Executes runs: on one device in this thread, on several GPUs or nodes each in a thread of its own.

    ``width`` is how many may execute at once.

    The threads live until the sweep ends, because the processes that a thread started end with it (``guard.py``).
    Leaving the context by an exception ends what executes; of what had ended before, ``keep`` saves the records.
    """

    def __init__(self, executor: Executor, width: int, keep: Callable[[_Execution], None]) -> None:
        self._executor, self._keep = executor, keep
        self._pool = ThreadPoolExecutor(width, "run") if width > 1 else None
        self._ended: SimpleQueue[_Execution | _Loss | BaseException] = SimpleQueue()

    def __enter__(self) -> _Lanes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is None:
            return
        with uninterrupted():
            ended = list(self._drain()) if error is not None else []
            if error is not None:
                self._executor.stop()
            self._pool.shutdown(cancel_futures=True)
            for each in ended:
                self._keep(each)

    def execute(self, run: Callable[[], _Execution | _Loss]) -> None:
        """Begins a run; ``wait`` returns it."""
        if self._pool is None:
            self._ended.put(run())
        else:
            self._pool.submit(self._put, run)

    def wait(self) -> _Execution | _Loss:
        """The next run that has ended. Raises what its executor, or the display of its phases, raised."""
        ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _put(self, run: Callable[[], _Execution | _Loss]) -> None:
        try:
            self._ended.put(run())
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._ended.put(error)

    def _drain(self) -> Iterator[_Execution]:
        with suppress(Empty):
            while True:
                ended = self._ended.get_nowait()
                if isinstance(ended, _Execution):
                    yield ended


def _one_at_a_time(on_event: Callable[[Event], None]) -> Callable[[Event], None]:
    """Phases arrive in threads of their own."""
    lock = threading.Lock()

    def call(event: Event) -> None:
        with lock:
            on_event(event)

    return call


def _must_repeat(
    spec: RunSpec, planned: Sequence[PlannedRun], finished: Mapping[str, RunRecord], records: Mapping[str, RunRecord]
) -> bool:
    """Speed is compared within one session: if any run still has to measure it, the baseline is measured again too."""
    if not spec.job.repeated or not spec.is_baseline:
        return False
    return any(
        other.spec.run_id not in finished
        and not other.unsupported
        and all(records[each].status == "ok" for each in other.spec.needs.values() if each in records)
        and compared_within(spec) == compared_within(other.spec)
        for other in planned
    )


def _restated(record: RunRecord, spec: RunSpec, saver: Saver) -> RunRecord:
    """Saves the record again with the budget, price and gates that the recipe names now; its figures stay."""
    again = replace(
        record,
        spec=replace(record.spec, readers=spec.readers),
        attempt=saver.next_attempt(record.spec.recipe, record.spec.run_id),
    )
    saver.save(again)
    return again


def _refused(earlier: RunRecord | None, refusal: str) -> RunRecord | None:
    """The earlier record, if it already says that the run is unsupported for this reason."""
    failure = earlier.outcome.failure if earlier and earlier.status == "unsupported" else None
    return earlier if failure and failure.message == refusal else None


def _withdrawn(
    made: Sequence[PlannedRun], records: Mapping[str, RunRecord], sweep: _Sweep, touched_alone: bool
) -> dict[str, RunRecord]:
    """The now invalid records, by run_id, of runs that gave figures but read a file that differs from what was hashed.

    Removes their artifacts from the site. Hashes each file once; with ``touched_alone`` only files that were touched
    since they were hashed.
    """
    reasons: dict[Input, str | None] = {}
    found: dict[str, RunRecord] = {}
    for run in made:
        record = records.get(run.spec.run_id)
        if record is None or not record.gives_figures:
            continue
        for each in run.inputs:
            if each not in reasons:
                reasons[each] = _changed(each, touched_alone)
        why = next((reasons[each] for each in run.inputs if reasons[each] is not None), None)
        if why is not None:
            sweep.remove(run.spec)
            record = sweep.saver.withdraw(record, Failure("inputs", "InvalidRunError", CHANGED.format(why)))
            found[run.spec.run_id] = record
            sweep.on_event(Withdrawn(record))
    return found


def _changed(checked: Input, touched_alone: bool = False) -> str | None:
    """How an input differs from what was hashed, in content or by added or removed files; None if it does not."""
    files = (file for file in checked.files if not touched_alone or compare_stat(file, any_change=True))
    found = next((difference for file in files if (difference := compare_content(file)) is not None), None)
    return found or find_difference(replace(checked, files=()))


def _unmet(spec: RunSpec, records: Mapping[str, RunRecord]) -> str | None:
    """Which needed run did not succeed, and why; None if all did."""
    for kind, run_id in spec.needs.items():
        needed = records.get(run_id)
        if needed is None or needed.status != "ok":
            why = needed.outcome.failure.message if needed and needed.outcome.failure else "it was not made"
            return f"no {kind}: {why}"
    return None
