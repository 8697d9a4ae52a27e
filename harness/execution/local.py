"""This machine as a site, and the executor that runs a spec here in one worker process, without polling."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.core.inputs import Input
from harness.core.owner import temporary_folder
from harness.core.record import Failure, Outcome
from harness.core.run import RunSpec
from harness.core.site import MAIN, Machine
from harness.errors import ResultsError
from harness.execution import fetch, guard
from harness.execution.interrupt import uninterrupted
from harness.execution.output import LOG_TAIL_CHARACTERS, Log, Phases, Pipe, read_outcome
from harness.host.machine import cache_folder, choose, installed_version, state_folder
from harness.host.process import MARKER, end_run
from harness.stacks import Stacks
from harness.stacks.build import environment
from harness.stacks.variables import for_workers
from harness.storage.cache import Cache
from harness.storage.disk import is_full
from harness.storage.json_codec import encode

GUARD = Path(guard.__file__)
WORKER = "harness.execution.worker"
GUARD_PATIENCE_S = guard.GRACE_S + guard.PATIENCE_S + 5.0
"""How long a guard may take to end what it guards."""
LISTENER_PATIENCE_S = 5.0
"""How long the names of the last phases may take to be shown."""
MAX_FOLDER_BYTES = 74
"""A Unix socket's name has 107 bytes at most; multiprocessing appends /pymp-xxxxxxxx/listener-xxxxxxxx to a folder."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML numbers them
    "PYTHONSAFEPATH": "1",  # otherwise a user's folder named harness or datasets would shadow the real package
}
_OOM_COUNTERS = (("", "/sys/fs/cgroup{}/memory.events"), ("memory", "/sys/fs/cgroup/memory{}/memory.oom_control"))


@dataclass(frozen=True)
class LocalSite:
    """This machine: its hardware, this process's environment, the local stacks, and a cache on disk.

    ``hardware`` replaces this machine's own hardware for planning.
    """

    artifacts: Cache
    stacks: Stacks
    hardware: Machine | None = None
    _versions: dict[str, Mapping[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def spill_roots(self) -> tuple[Path, ...]:
        """Where a finished run is kept if the results folder cannot be written; the first that works is used."""
        user = Path(tempfile.gettempdir(), f"qharness-spill-{os.getuid()}")
        return self.artifacts.root.absolute() / "spill", state_folder() / "spill", user

    def machine(self, device: str) -> Machine:
        return self.hardware or choose(device)

    def version(self, package: str, stack: str = MAIN) -> str | None:
        if stack == MAIN:
            return installed_version(package)
        if stack not in self._versions:
            here = self.stacks.find(stack)
            if here.find_obstacle():  # do not remember this: the stack may be created later
                return None
            self._versions[stack] = here.read_versions()
        return self._versions[stack].get(package.lower().replace("_", "-"))  # as a stack lists them

    def obstacle(self, stack: str) -> str | None:
        return None if stack == MAIN else self.stacks.find(stack).find_obstacle()


def local_site(cache: str | Path | None = None, pythons: Mapping[str, Path] | None = None) -> LocalSite:
    """This machine with a cache folder (default: the user's), the stacks below it, and the user's interpreters."""
    root = Path(cache) if cache else cache_folder()
    return LocalSite(Cache(root), Stacks(root.absolute() / "stacks", pythons or {}))


@dataclass(frozen=True)
class LocalExecutor:
    """Runs specs on this machine, each in its own process."""

    site: LocalSite

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return fetch.fetch(specs)

    def run(self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None]) -> tuple[Outcome, bytes]:
        phases = Phases(on_phase)
        try:
            with temporary_folder() as folder:
                ended = _Run(spec, self.site, folder, phases).make(inputs)
        except OSError as error:  # no room for its files, no memory or number for its process
            failure = Failure("start", type(error).__name__, f"cannot start a process: {error}")
            ended = Outcome("crashed", failure), b""
        if phases.error is not None:
            raise phases.error
        return ended


class _Run:
    """One run of a spec in a process of its own. ``folder`` is an empty folder for its files.

    The worker is the child of a guard (``guard.py``), which ends with all that the worker started. The time limit or an
    interrupt ends the guard.
    """

    def __init__(self, spec: RunSpec, site: LocalSite, folder: Path, phases: Phases) -> None:
        self._spec, self._site, self._folder = spec, site, folder
        self._outcome = folder / "outcome.json"
        self._log, self._phases = Log(), phases
        self._timed_out = False

    def make(self, inputs: Sequence[Input]) -> tuple[Outcome, bytes]:
        """The outcome and the log. Raises OSError if the process cannot be started."""
        python, variables = self._interpreter()
        if not os.access(python, os.X_OK):
            stack = self._spec.stack
            message = f"stack {stack!r}: its interpreter {python} is gone; qharness stack create {stack}"
            return Outcome("unsupported", Failure("start", "NoInterpreter", message)), b""
        files = {"spec.json": encode(self._spec), "inputs.json": encode(list(inputs))}
        for name, content in files.items():
            (self._folder / name).write_text(content, encoding="utf-8")
        paths = [*(self._folder / name for name in files), self._outcome, self._site.artifacts.root.absolute()]
        kills_before = _oom_kills()
        code = self._wait([python, str(GUARD), str(os.getpid()), WORKER, *map(str, paths)], variables)
        log = self._log.content()
        text = log.decode("utf-8", "replace")
        outcome = self._ended(code, text, _oom_kills() > kills_before)
        if outcome.failure is not None:
            outcome = replace(outcome, failure=replace(outcome.failure, log_tail=text[-LOG_TAIL_CHARACTERS:]))
        return outcome, log

    def _interpreter(self) -> tuple[str, dict[str, str]]:
        """The Python that runs the spec, and the environment it starts in."""
        if self._spec.stack == MAIN:
            python, inherited = sys.executable, for_workers()
        else:
            python = str(self._site.stacks.find(self._spec.stack).python)
            inherited = environment(self._folder)
        own = {MARKER: self._folder.name, **_temporary_files(self._folder)}
        return python, {**inherited, **ENVIRONMENT, **own, **_thread_variables(self._spec.job.conditions.threads)}

    def _wait(self, command: list[str], variables: Mapping[str, str]) -> int:
        """The exit code. Threads read the pipes and a timer enforces the time limit: nothing polls."""
        log, events = Pipe(self._log.add), Pipe(self._phases.add)
        process: subprocess.Popen[bytes] | None = None
        timer: threading.Timer | None = None
        try:
            with uninterrupted():
                process = subprocess.Popen(
                    [*command, str(events.write)],
                    stdin=subprocess.DEVNULL,
                    stdout=log.write,
                    stderr=subprocess.STDOUT,
                    pass_fds=[events.write],
                    start_new_session=True,
                    env=variables,
                )
            log.close_write()
            events.close_write()
            timer = threading.Timer(self._spec.limits.time_s or threading.TIMEOUT_MAX, self._time_out, [process])
            timer.daemon = True
            timer.start()
            return process.wait()
        finally:
            with uninterrupted():
                if timer is not None:
                    timer.cancel()
                if process is not None:
                    _end(process)
                end_run(self._folder.name)
                log.stop()
                events.stop(LISTENER_PATIENCE_S)
                part = self._site.artifacts.part(self._spec, self._folder.name)
                shutil.rmtree(part, ignore_errors=True)  # left by a killed worker

    def _time_out(self, process: subprocess.Popen[bytes]) -> None:
        self._timed_out = True
        _end(process)

    def _ended(self, code: int, log: str, killed_for_memory: bool) -> Outcome:
        """The outcome that the worker wrote, or if it wrote none, one that says how it ended."""
        limit_s = self._spec.limits.time_s
        try:
            written = read_outcome(self._outcome)
        except ResultsError as error:
            written = Outcome("invalid", self._failure("UnreadableOutcome", str(error)))
        if written is not None:
            return written
        if self._timed_out:
            return Outcome("timeout", self._failure("TimeLimit", f"ended at its time limit of {limit_s:g} s"))
        if code == -signal.SIGKILL and killed_for_memory:
            message = "killed by the kernel: memory ran out"
            return Outcome("out_of_memory", self._failure("OutOfMemoryKill", message))
        if code == -signal.SIGABRT and "bad_alloc" in log:
            return Outcome("out_of_memory", self._failure("bad_alloc", "a library could not allocate memory"))
        if code == -signal.SIGBUS:
            message = f"ended by signal {signal.SIGBUS}: a file that it had mapped was cut short, or its disk is full"
            return Outcome("crashed", self._failure("SIGBUS", message))
        if code < 0:
            return Outcome("crashed", self._failure(_signal_name(-code), f"ended by signal {-code}"))
        if is_full(log[-LOG_TAIL_CHARACTERS:]):
            message = f"a disk is full, so it left no outcome: make room in {self._folder.parent}, and run it again"
            return Outcome("failed", self._failure("DiskFull", message))
        return Outcome("crashed", self._failure("Exit", f"exited with code {code} and left no outcome"))

    def _failure(self, kind: str, message: str) -> Failure:
        return Failure(self._phases.current, kind, message)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a guard and with it the worker and all that it started."""
    try:
        process.terminate()
        process.wait(GUARD_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a realtime signal
        return f"signal {number}"


def _temporary_files(folder: Path) -> dict[str, str]:
    """A folder for the libraries' temporary files that goes with the run, unless a socket in it had too long a name."""
    if len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
        return {}
    temporary = folder / "t"
    temporary.mkdir()
    return dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))


def _thread_variables(threads: int | None) -> dict[str, str]:
    return {} if threads is None else {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _oom_kills() -> int:
    """The number of out-of-memory kills in this process's control group (cgroup v2 or v1); 0 if unknown."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    total = 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for wanted, pattern in _OOM_COUNTERS:
            counter = Path(pattern.format(path.rstrip("/")))
            if controllers == wanted and counter.is_file():
                found = re.search(r"^oom_kill (\d+)", counter.read_text(), re.MULTILINE)
                total += int(found[1]) if found else 0
    return total
