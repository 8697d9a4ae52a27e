"""Runs specs on a node of a cluster for a sweep on another machine, through a spool: a folder that both can reach.

``python -m harness.execution.agent SPOOL NODE``, started by whatever gives out nodes (``slurm.py``). The sweep writes
requests into the spool, the agent runs each as the local executor does, and writes what comes of it:

    settings.json      what all agents of the sweep need: ``AgentSettings``
    beat               a number that the sweep changes every ``BEAT_S`` while it lives
    NODE/report.json   what the node is; the agent writes it when it is missing
    NODE/beat          the same number of the agent
    NODE/N.paths.json  question N: which of these paths lead nowhere on the node?
    NODE/N.absent.json the answer
    NODE/N.timing      question N: how fast is the node?
    NODE/N.speeds.json the answer
    NODE/N.data.json   question N: which of these data sets of a hub cannot be read on the node?
    NODE/N.fault.json  the answer: the first of them and why, or nothing
    NODE/N.run.json    run N: its spec and inputs
    NODE/N.phases      the phases that run N has begun, one per line
    NODE/N.log         its log
    NODE/N.ended.json  its outcome, written last; long evidence is in N.ended.parquet
    NODE/stop          the sweep needs this agent no more: it ends what executes, and itself
    NODE/gone          why the agent has ended

Every file but the phases appears whole. A folder is all that clusters share for certain: compute nodes often may not be
reached from the machine that submits jobs, nor reach it. Both sides look into it now and then, the agent seldom while a
run executes that must be alone. A side that has heard nothing from the other for ``SILENCE_S`` takes it for dead. It
compares contents, never times, because clocks of machines differ.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from harness.core.foreign import parse_json, read_file
from harness.core.inputs import Input
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import Speeds
from harness.errors import ResultsError, UsageError, reason_of
from harness.execution import fetch
from harness.execution.cluster import NodeReport, find_absent, report_node
from harness.execution.debris import clear
from harness.execution.executor import RunLost
from harness.execution.fetch import HubContent
from harness.execution.local import LocalExecutor, local_site
from harness.execution.output import LOG_HEAD_BYTES, LOG_TAIL_BYTES, Phases, read_outcome
from harness.storage.anonymizer import Anonymizer
from harness.storage.json_codec import decode, encode
from harness.storage.outcome_file import remove_outcome, write_outcome

BEAT_S = 5.0
"""How often each side shows that it lives."""
SILENCE_S = 120.0
"""How long a side may show nothing; network file systems show a change up to a minute late."""
POLL_S = 0.2
"""How often each side looks for news, and the agent ``BEAT_S`` while a run executes that must be alone."""
ENDING_S = 2.0
"""How much later than a worker its agent may get the signal that ends the job: clusters send it to all processes."""
STOP_PATIENCE_S = 30.0
"""How long an agent may take to end what executes."""
MAX_MESSAGE_BYTES = 64 << 20
"""The largest report or request."""
MAX_REASON_CHARACTERS = 400
MAX_LOG_BYTES = LOG_HEAD_BYTES + LOG_TAIL_BYTES + 4096
"""The largest log: what ``output.Log`` keeps, and its line between."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""How a job of a cluster is ended: when it is cancelled, preempted or out of time."""
SETTINGS, BEAT, REPORT, STOP, GONE = "settings.json", "beat", "report.json", "stop", "gone"
PATHS, ABSENT, DATA, FAULT = ".paths.json", ".absent.json", ".data.json", ".fault.json"
TIMING, SPEEDS = ".timing", ".speeds.json"
REQUEST, PHASES, LOG, ENDED = ".run.json", ".phases", ".log", ".ended.json"

T = TypeVar("T")


@dataclass(frozen=True)
class AgentSettings:
    """The cache folder, the user's interpreters by stack, and the recipe's device."""

    cache: str
    pythons: Mapping[str, str]
    device: str


@dataclass(frozen=True)
class RunRequest:
    """A run for an agent."""

    spec: RunSpec
    inputs: tuple[Input, ...]


class Heartbeat:
    """The other side's file of beats: how long it has not changed by this side's clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = b""
        self._changed_s = time.monotonic()

    def silent_s(self) -> float:
        """The seconds since a change was last seen."""
        with suppress(OSError):
            content = self._path.read_bytes()
            if content != self._last:
                self._last, self._changed_s = content, time.monotonic()
        return time.monotonic() - self._changed_s


class Beating:
    """Changes this side's file of beats, from a thread of its own, until it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            with suppress(OSError):  # a file system that fails for a moment; the other side is patient
                _write(self._path, str(count).encode())
            if self._closed.wait(BEAT_S):
                return


class RemoteAgent:
    """The sweep's side of one node's spool folder.

    ``find_end`` says why whatever started the agent has ended; None while it may run.

    Several threads may call ``run``.
    """

    def __init__(self, folder: Path, find_end: Callable[[], str | None]) -> None:
        self.folder, self._find_end = folder, find_end
        self._beats = Heartbeat(folder / BEAT)
        self._count = itertools.count(1)
        self._question = ""
        self._reported_s: float | None = None

    @property
    def known_for_s(self) -> float:
        """The seconds since its report was first read, at least as long as which its job runs."""
        return 0.0 if self._reported_s is None else time.monotonic() - self._reported_s

    @property
    def has_reported(self) -> bool:
        """Whether the agent has started."""
        return _is_there(self.folder / REPORT)

    def read_report(self) -> NodeReport | None:
        """What the node says of itself; None if it has not said it yet. Raises RunLost if the agent has ended."""
        if not self.has_reported:
            if (reason := self._end()) is not None:
                raise RunLost(reason, for_good=True)
            return None
        report = _read(NodeReport, self.folder / REPORT)
        if self._reported_s is None:
            self._reported_s = time.monotonic()
        return report

    def ask_anew(self) -> None:
        """Has the agent write its report again."""
        (self.folder / REPORT).unlink(missing_ok=True)

    def ask_for(self, paths: Sequence[str]) -> None:
        """Has the agent look whether the node has these files and folders."""
        self._ask(PATHS, tuple(paths))

    def time(self) -> Speeds:
        """Has the agent time its node. Raises RunLost if the agent has ended."""
        name = str(next(self._count))
        _write(self.folder / f"{name}{TIMING}", b"")
        while not _is_there(answer := self.folder / f"{name}{SPEEDS}"):
            if (reason := self._end()) is not None:
                raise RunLost(reason, for_good=True)
            time.sleep(POLL_S)
        return _read(Speeds, answer)

    def read_absent(self) -> tuple[str, ...] | None:
        """Those of the paths last asked for that the node does not have; None until the agent has looked.

        Raises RunLost if the agent has ended.
        """
        return self._answer(tuple[str, ...], ABSENT)

    def ask_to_read(self, data: HubContent) -> None:
        """Has the agent look whether the node can read these data sets without a connection, as its runs must."""
        self._ask(DATA, data)

    def read_problem(self) -> str | None:
        """The first of the data sets last asked for that the node cannot read, and why; empty if it can read all.

        None until the agent has looked. Raises RunLost if it has ended.
        """
        return self._answer(str, FAULT)

    def run(self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None]) -> tuple[Outcome, bytes]:
        """The outcome and the log of a run on the node. Raises RunLost if the agent ends before the run.

        Raises what ``on_phase`` raised, and KeyboardInterrupt, after the agent has ended all that it executes.
        """
        name = str(next(self._count))
        try:
            _write(self.folder / f"{name}{REQUEST}", encode(RunRequest(spec, tuple(inputs))).encode())
        except OSError as error:
            raise RunLost(f"it could not be given the run: {reason_of(error)}", for_good=False) from error
        try:
            return self._wait(name, Phases(on_phase))
        except RunLost:
            raise
        except BaseException:
            self.stop()
            self.wait_for_end()
            raise

    def stop(self) -> None:
        """Has the agent end what it executes, and then itself. Returns at once."""
        with suppress(OSError):  # its job is cancelled then
            _write(self.folder / STOP, b"")

    def wait_for_end(self) -> bool:
        """Whether a stopped agent has ended within ``STOP_PATIENCE_S``."""
        limit_s = time.monotonic() + STOP_PATIENCE_S
        while self._end() is None:
            if time.monotonic() >= limit_s:
                return False
            time.sleep(POLL_S)
        return True

    def _ask(self, ending: str, what: object) -> None:
        self._question = str(next(self._count))
        _write(self.folder / f"{self._question}{ending}", encode(what).encode())

    def _answer(self, kind: type[T], ending: str) -> T | None:
        answer = self.folder / f"{self._question}{ending}"
        if not _is_there(answer):
            if (reason := self._end()) is not None:
                raise RunLost(reason, for_good=True)
            return None
        return _read(kind, answer)

    def _wait(self, name: str, phases: Phases) -> tuple[Outcome, bytes]:
        read_bytes = 0
        while True:
            ended = _is_there(self.folder / f"{name}{ENDED}")
            reason = None if ended else self._end()
            if reason is not None:
                ended = _is_there(self.folder / f"{name}{ENDED}")  # it may have ended well just before
            with suppress(OSError), (self.folder / f"{name}{PHASES}").open("rb") as file:
                file.seek(read_bytes)
                phases.add(block := file.read())
                read_bytes += len(block)
            if phases.error is not None:
                raise phases.error
            if ended:
                break
            if reason is not None:
                raise RunLost(reason, for_good=True)
            time.sleep(POLL_S)
        try:
            outcome = read_outcome(self.folder / f"{name}{ENDED}")
            log = read_file(self.folder / f"{name}{LOG}", MAX_LOG_BYTES, ResultsError)
        except ResultsError as error:
            raise RunLost(f"its outcome arrived damaged: {error}", for_good=False) from error
        assert outcome is not None, "the file was there"
        with suppress(OSError):  # they go with the spool
            for each in (REQUEST, PHASES, LOG):
                (self.folder / f"{name}{each}").unlink(missing_ok=True)
            remove_outcome(self.folder / f"{name}{ENDED}")
        return outcome, log

    def _end(self) -> str | None:
        """Why the agent is there no more; None while it may be."""
        gone = self.folder / GONE
        if _is_there(gone):
            with suppress(OSError):
                return gone.read_text(encoding="utf-8", errors="replace")[:MAX_REASON_CHARACTERS]
        if self._beats.silent_s() > SILENCE_S and self.has_reported:
            return f"its agent has shown no sign of life for {SILENCE_S:g} s"
        return self._find_end()


class _Agent:
    """The node's side: runs what is requested until it is stopped, the sweep falls silent, or a signal ends it."""

    def __init__(self, spool: Path, name: str, ending: threading.Event) -> None:
        """``ending`` is set when a signal is to end the agent."""
        settings = _read(AgentSettings, spool / SETTINGS)
        pythons = {stack: Path(python) for stack, python in settings.pythons.items()}
        self._folder = spool / name
        self._site = local_site(settings.cache, pythons, settings.device)
        self._executor = LocalExecutor(self._site)
        self._sweep = Heartbeat(spool / BEAT)
        self._anonymizer = Anonymizer.for_nodes()
        self._ending = ending
        self._begun: set[str] = set()
        self._running: set[Future[None]] = set()
        self._alone = 0  # how many runs execute that must be alone
        self._counting = threading.Lock()
        self._run_ended = threading.Event()

    def serve(self) -> str:
        """Why it ended. Raises _Ended for a signal."""
        with closing(self._executor), ThreadPoolExecutor(self._width(), "run") as pool:
            try:
                while True:
                    if _is_there(self._folder / STOP):
                        return "the sweep has ended"
                    if self._sweep.silent_s() > SILENCE_S:
                        return f"the sweep has shown no sign of life for {SILENCE_S:g} s"
                    self._look(pool)
                    self._run_ended.wait(BEAT_S if self._alone else POLL_S)
                    self._run_ended.clear()
            finally:
                self._executor.stop()

    def _width(self) -> int:
        """How many runs may execute at once; one where the device is missing, which the report says."""
        try:
            return sum(max(node.gpus, node.cores) for node in self._executor.nodes(self._site.stacks.device))
        except UsageError:
            return 1

    def _look(self, pool: ThreadPoolExecutor) -> None:
        """Writes the report if it is missing, answers and begins what is new, and raises what ended runs raised."""
        if not _is_there(self._folder / REPORT):
            _write(self._folder / REPORT, encode(report_node(self._site)).encode())
        for name, path in self._new(PATHS):
            _write(self._folder / f"{name}{ABSENT}", encode(find_absent(_read(tuple[str, ...], path))).encode())
        for name, path in self._new(DATA):
            problem = self._anonymizer.message(fetch.find_unreadable(_read(HubContent, path)) or "")
            _write(self._folder / f"{name}{FAULT}", encode(problem).encode())
        for name, _ in self._new(TIMING):
            _write(self._folder / f"{name}{SPEEDS}", encode(self._site.speeds(self._site.stacks.device)).encode())
        for name, path in self._new(REQUEST):
            self._running.add(pool.submit(self._run, name, _read(RunRequest, path)))
        for run in [each for each in self._running if each.done()]:
            self._running.remove(run)
            run.result()

    def _new(self, ending: str) -> Iterator[tuple[str, Path]]:
        """The files with that ending that were not seen before, each after its name without it."""
        for path in self._folder.glob(f"*{ending}"):
            if (name := path.name.removesuffix(ending)) not in self._begun:
                self._begun.add(name)
                yield name, path

    def _run(self, name: str, request: RunRequest) -> None:
        def announce(phase: str) -> None:
            with (self._folder / f"{name}{PHASES}").open("a", encoding="utf-8") as file:
                file.write(f"{phase}\n")

        alone = request.spec.job.alone
        with self._counting:
            self._alone += alone
        try:
            outcome, log = self._executor.run(request.spec, request.inputs, announce)
        finally:
            with self._counting:
                self._alone -= alone
            self._run_ended.set()
        if outcome.status != "ok" and self._ending.wait(ENDING_S):
            return  # it failed because the job is being ended: the run is lost, and is made elsewhere
        _write(self._folder / f"{name}{LOG}", self._anonymizer.log(log))
        write_outcome(self._folder / f"{name}{ENDED}", self._anonymizer.outcome(outcome), _write)


class _Ended(Exception):
    """A signal asked the agent to end."""


def serve(spool: str, name: str) -> None:
    """Runs what the sweep requests of a node; what interrupted agents left on this machine is removed first.

    The signals with which clusters end jobs end it, with all that it executes. It leaves word why it ended.
    """

    ending = threading.Event()

    def end(number: int, _: FrameType | None) -> None:
        ending.set()
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(f"its agent was ended by {signal.Signals(number).name}")

    for number in ENDING:
        signal.signal(number, end)
    folder = Path(spool, name)
    reason = "its agent failed"
    beating = Beating(folder / BEAT)
    try:
        clear([])
        reason = _Agent(Path(spool), name, ending).serve()
    except _Ended as ended:
        reason = str(ended)
    except Exception as error:
        reason = f"its agent failed: {type(error).__name__}: {error}"
        raise
    finally:
        beating.close()
        _write(folder / GONE, Anonymizer.for_nodes().message(reason).encode(errors="replace"))


def _read(kind: type[T], path: Path) -> T:
    """Raises ResultsError for anything but what ``encode`` wrote."""
    return decode(
        kind, parse_json(read_file(path, MAX_MESSAGE_BYTES, ResultsError), path.name, ResultsError), path.name
    )


def _is_there(path: Path) -> bool:
    """Whether a file is there; not while a network file system fails, which heartbeats put an end to."""
    try:
        return path.exists()
    except OSError:
        return False


def _write(path: Path, content: bytes) -> None:
    """The file appears whole. It need not survive a crash of either machine."""
    part = path.with_name(f".{path.name}.{threading.get_ident()}")
    part.write_bytes(content)
    part.replace(path)


if __name__ == "__main__":
    serve(*sys.argv[1:])
