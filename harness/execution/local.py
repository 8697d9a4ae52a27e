"""This machine as a site, and the executor that runs specs here in worker processes, without polling."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from harness.core.inputs import Input
from harness.core.job import VariantJob
from harness.core.owner import temporary_folder
from harness.core.record import Failure, Outcome
from harness.core.run import RunSpec
from harness.core.site import HERE, MAIN, Machine, Node, Speeds
from harness.errors import ResultsError, UsageError
from harness.execution import fetch, guard
from harness.execution.interrupt import uninterrupted
from harness.execution.output import LOG_TAIL_CHARACTERS, Log, Phases, Pipe, read_outcome
from harness.execution.starter import Launch, Preloads, Process, Server, Starter
from harness.execution.worker import CORES
from harness.host.compilers import worker_path
from harness.host.control_group import core_limit, oom_kills
from harness.host.machine import cache_folder, choose, cores, installed_version, state_folder, usable_memory_bytes
from harness.host.process import MARKER, end_run
from harness.host.processor import physical_cores
from harness.host.speeds import machine_speeds
from harness.host.visible import NUMBERED_AS_NVML
from harness.libraries import load_generator
from harness.stacks import Stacks
from harness.stacks.build import environment
from harness.stacks.variables import OFFLINE, for_workers
from harness.storage.cache import Cache
from harness.storage.disk import is_full
from harness.storage.json_codec import encode
from harness.storage.objects import Objects, is_url, local_path
from harness.storage.outcome_file import remove_outcome
from harness.storage.shared_cache import SharedCache

if TYPE_CHECKING:
    from harness.execution.executors import ExecutorChoice

WORKER = "harness.execution.worker"
GUARD_PATIENCE_S = guard.GRACE_S + guard.PATIENCE_S + 5.0
"""How long a guard may take to end what it guards."""
LISTENER_PATIENCE_S = 5.0
"""How long the names of the last phases may take to be shown."""
MAX_FOLDER_BYTES = 74
"""A Unix socket's name has 107 bytes at most; multiprocessing appends /pymp-xxxxxxxx/listener-xxxxxxxx to a folder."""
ENVIRONMENT = {
    **NUMBERED_AS_NVML,
    **OFFLINE,
    "TOKENIZERS_PARALLELISM": "false",
    # transformers would look for this kernel in every product of an FP8 checkpoint, and run it only where it finds nvcc
    "TRANSFORMERS_DISABLE_DEEPGEMM_LINEAR": "1",
    "GPTQMODEL_OFFLINE": "1",  # on Hopper and Blackwell it would first download CUTLASS, for kernels it can do without
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a process with such a thread cannot be forked
    "PYTHONSAFEPATH": "1",  # otherwise a user's folder named harness or datasets would shadow the real package
}
BINDING = frozenset({"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"})
"""Variables that bind threads to cores. OpenMP chooses these when it loads, which may be before a run is confined."""


@dataclass(frozen=True)
class LocalSite:
    """This machine: its hardware, this process's environment, the local stacks, and a cache on disk.

    ``hardware`` replaces this machine's own hardware for planning. ``cores`` counts this machine's processors that are
    the site's, where others have the rest; None: all.
    """

    artifacts: Cache
    stacks: Stacks
    hardware: Machine | None = None
    cores: int | None = None
    _versions: dict[str, Mapping[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def spill_roots(self) -> tuple[Path, ...]:
        """Where a finished run is kept if the results folder cannot be written; the first that works is used."""
        user = Path(tempfile.gettempdir(), f"qharness-spill-{os.getuid()}")
        return self.artifacts.root.absolute() / "spill", state_folder() / "spill", user

    def machine(self, device: str) -> Machine:
        return self.hardware or choose(device, self.artifacts.root)

    def speeds(self, device: str) -> Speeds:
        return machine_speeds(self.machine(device), self.artifacts.root)

    def nodes(self, device: str) -> tuple[Node]:
        """This machine, as the schedule of a sweep sees it."""
        machine = self.machine(device)
        if machine.device != "cpu":
            return (Node(gpus=machine.gpus),)
        return (Node(cores=self.core_count(), memory_bytes=usable_memory_bytes()),)

    def core_count(self) -> int:
        """How many cores runs may use: the site's own, or fewer where control groups allow less time than theirs."""
        present = len(physical_cores())
        return int(min(present, present if self.cores is None else self.cores, max(core_limit(), 1)))

    def is_whole_machine(self) -> bool:
        """Whether nobody else has processors of it. Where a core has two, half of them may be as many as its cores."""
        present = cores()
        return (self.cores is None or self.cores >= present) and core_limit() >= present

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


def local_site(
    cache: str | Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    device: str = "auto",
    cores: int | None = None,
) -> LocalSite:
    """This machine with a cache folder (default: the user's), the stacks below it, and the user's interpreters.

    If ``cache`` is a URL, artifacts are shared there, and the folder is the user's.
    ``device`` is the recipe's; stacks have other builds for a GPU. ``cores`` are the site's own; None: the machine's.
    """
    shared = SharedCache(Objects(str(cache))) if cache and is_url(cache) else None
    root = local_path(cache) if cache and shared is None else cache_folder()
    return LocalSite(Cache(root, shared=shared), Stacks(root.absolute() / "stacks", pythons or {}, device), cores=cores)


@dataclass(frozen=True)
class LocalExecutor:
    """Runs specs on this machine, each in a process of its own, unless it may share one (``may_share_process``).

    A process that has loaded what the next run may use is kept until a run begins that needs its device or must be
    alone, or until ``close``.
    """

    site: LocalSite
    _workers: _Workers = field(default_factory=lambda: _Workers(), init=False, repr=False, compare=False)

    def nodes(self, device: str) -> tuple[Node]:
        return self.site.nodes(device)

    @property
    def stacks(self) -> Stacks:
        return self.site.stacks

    def refuse_unseen(self, specs: Sequence[RunSpec]) -> None:
        """Planning has read the files here."""

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return fetch.fetch(specs, self.site)

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node = HERE
    ) -> tuple[Outcome, bytes]:
        try:
            worker = self._workers.take(spec, self.site)
        except UsageError as error:  # a GPU was there while planning
            return Outcome("failed", Failure("start", type(error).__name__, str(error))), b""
        try:
            return worker.make(spec, inputs, on_phase)
        finally:
            self._workers.give_back(worker)

    def device_of(self, spec: RunSpec) -> str:
        return self._workers.device_of(spec)

    def stop(self) -> None:
        self._workers.stop()

    def close(self) -> None:
        """Ends the processes that are kept."""
        self._workers.close()


def open_local(choice: ExecutorChoice, site: LocalSite, report: Callable[[str], None]) -> LocalExecutor:
    """An executor on this machine, which nobody waits for."""
    return LocalExecutor(site)


class _Workers:
    """The processes of an executor, those that make a run and those that are idle, and the GPUs that each has.

    Several threads may use it.
    """

    def __init__(self) -> None:
        self.idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._stopped = False
        self._changed = threading.Condition()
        self._starter = Starter()

    def take(self, spec: RunSpec, site: LocalSite) -> _Worker:
        """An idle worker that has loaded what the run may use, or a new one on GPUs that no run uses.

        Raises UsageError if GPUs that the run was planned with are gone.
        """
        with self._changed:
            worker = next((each for each in self.idle if each.may_make(spec)), None)
            if worker is None:
                gpus, cores = self._free_gpus(spec, site), self._free_cores(spec, site)
                worker = _Worker(site, self._starter, gpus, cores, _device(gpus, cores, site, spec.device))
            else:
                self.idle.remove(worker)
            worker.run_id = spec.run_id
            self._busy.append(worker)
            if self._stopped:
                worker.stop()
        return worker

    def give_back(self, worker: _Worker) -> None:
        """Keeps an idle worker, and ends any other: until it has ended, no other run gets its GPUs."""
        with self._changed:
            if worker.is_idle and not self._stopped:
                self._busy.remove(worker)
                self.idle.append(worker)
                self._changed.notify_all()
                return
        try:
            worker.end()
        finally:
            with self._changed:
                self._busy.remove(worker)
                self._changed.notify_all()

    def device_of(self, spec: RunSpec) -> str:
        """Asked by the thread that shows a phase, so it waits for nobody."""
        return next((worker.device for worker in tuple(self._busy) if worker.run_id == spec.run_id), "")

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            for worker in self._busy:
                worker.stop()
        self._starter.stop()

    def close(self) -> None:
        """Ends the idle workers, and what workers are forked from."""
        with self._changed:
            self._end_idle()
        self._starter.close()

    def _free_gpus(self, spec: RunSpec, site: LocalSite) -> tuple[str, ...] | None:
        """The GPUs for a run, by name: none on a CPU run, and None if the GPU has no name.

        Ends idle workers that have them, and all of them for a run that must be alone. Once a GPU has vanished, waits
        for one of those that are left.
        """
        machine = None if spec.device == "cpu" else site.machine(spec.device)
        names = () if machine is None else machine.uuids
        if machine is not None and machine.hardware != spec.hardware:  # a GPU vanished, and now another is the first
            planned = f"the run was planned for {spec.hardware}, and here is {machine.hardware} now"
            raise UsageError(f"{planned}; run the recipe again")
        if spec.job.alone or not names:
            self._end_idle()
        if not names:
            return () if spec.device == "cpu" else None
        needed = spec.job.conditions.gpus
        while len(free := self._unused(names)) < needed:
            if self.idle:
                self.idle.pop(0).end()
            elif needed <= len(names) and self._busy and not self._stopped:
                self._changed.wait()  # more runs were begun than the GPUs that are left can make
            else:
                raise UsageError(f"the run gets {needed} GPUs, and {len(free)} can be used now; see 'qharness doctor'")
        return free[:needed]

    def _free_cores(self, spec: RunSpec, site: LocalSite) -> tuple[int, ...]:
        """The cores for a run on a CPU, none of which another run has; none in particular if it may use all.

        None either where the site has only some of the machine's: nothing says which, and whoever has the others would
        choose the same ones. Ends idle workers that have them.
        """
        cores = physical_cores() if spec.cores is not None else ()
        needed = spec.cores or 0
        if 2 * needed > len(cores) or not site.is_whole_machine():  # in the first case nothing executes beside it
            return ()
        while len(free := [core for core in cores if core not in self._used_cores()]) < needed and self.idle:
            self.idle.pop(0).end()
        return tuple(free[:needed])

    def _used_cores(self) -> set[int]:
        return {core for worker in (*self._busy, *self.idle) for core in worker.cores}

    def _unused(self, names: Sequence[str]) -> tuple[str, ...]:
        used = {name for worker in (*self._busy, *self.idle) for name in worker.gpus or ()}
        return tuple(name for name in names if name not in used)

    def _end_idle(self) -> None:
        while self.idle:
            self.idle.pop().end()


class _Worker:
    """A process that makes one run, or several one after another if their job keeps the model.

    It is the child of a guard (``guard.py``), which ends with all that the process started. The time limit or an
    interrupt ends the guard.
    """

    _folder: Path
    _process: Process
    _spec: RunSpec
    _phases: Phases
    _log: Log

    def __init__(
        self, site: LocalSite, starter: Starter, gpus: tuple[str, ...] | None, cores: tuple[int, ...], device: str
    ) -> None:
        """``gpus`` are the names of those that it sees; None leaves that to the environment.

        ``cores`` are the processors that it is confined to; empty leaves it all. ``device`` is what people call them.
        """
        self.is_idle, self.run_id = False, ""
        self.gpus, self.cores, self.device = gpus, cores, device
        self._site, self._starter = site, starter
        self._started = self._stopped = False
        self._starting = threading.Lock()
        self._timed_out = False
        self._requests: int | None = None
        self._pipes: tuple[Pipe, Pipe] | None = None  # its log and its events
        self._folders = ExitStack()
        self._ends: SimpleQueue[int | None] = SimpleQueue()  # None: a run has ended; a number: the process has, with it

    def may_make(self, spec: RunSpec) -> bool:
        """Whether this idle process may make a run with the model that it has loaded."""
        return spec.may_share_process(self._spec) and self._ends.empty()

    def make(self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None]) -> tuple[Outcome, bytes]:
        """The outcome and the log. Afterwards the process is idle, or to be ended. Raises what ``on_phase`` raised."""
        self.is_idle = self._timed_out = False
        self._spec, self._log = spec, Log()
        self._phases = Phases(on_phase, lambda: self._ends.put(None))
        kills_before = oom_kills()
        try:
            refusal = self._begin(inputs)
        except OSError as error:  # no room for its files, no memory or number for its process
            refusal = Outcome("crashed", Failure("start", type(error).__name__, f"cannot start a process: {error}"))
        if refusal is not None:
            return refusal, b""
        code = self._wait()
        log = self._log.content()
        text = log.decode("utf-8", "replace")
        outcome = self._ended(code or 0, text, oom_kills() > kills_before)
        if outcome.failure is not None:
            outcome = replace(outcome, failure=replace(outcome.failure, log_tail=text[-LOG_TAIL_CHARACTERS:]))
        if self._phases.error is not None:
            raise self._phases.error
        self.is_idle = code is None and outcome.status == "ok" and not self._timed_out
        return outcome, log

    def stop(self) -> None:
        """Ends the run, for another thread than the one that makes it. Returns at once."""
        with self._starting:
            self._stopped = True
            if self._started:
                threading.Thread(target=_end, args=[self._process]).start()

    def end(self) -> None:
        """Ends the process with all that it started, and deletes its files."""
        with uninterrupted():
            self._stop()
            self._folders.close()

    def _begin(self, inputs: Sequence[Input]) -> Outcome | None:
        """Starts the process, or asks it for another run. Returns the outcome of a run that cannot begin."""
        if not self._started:
            self._folder = self._folders.enter_context(temporary_folder())
        remove_outcome(self._outcome)
        files = {"spec.json": encode(self._spec), "inputs.json": encode(list(inputs))}
        if self.cores:
            (self._folder / CORES).write_text(" ".join(map(str, self.cores)), encoding="ascii")
        for name, content in files.items():
            (self._folder / name).write_text(content, encoding="utf-8")
        if self._requests is not None:
            os.write(self._requests, b"\n")
            return None
        for stack in (self._spec.stack, *self._spec.job.stacks):
            if not os.access(python := self._python(stack), os.X_OK):
                creation = self._site.stacks.find(stack).creation
                message = f"stack {stack!r}: its interpreter {python} is gone; {creation}"
                return Outcome("unsupported", Failure("start", "NoInterpreter", message))
        paths = [*(self._folder / name for name in files), self._outcome, self._site.artifacts.root.absolute()]
        from harness.execution.preload import steps  # a finished recipe need not wait for it

        launch = Launch(self._python(self._spec.stack), WORKER, tuple(map(str, paths)), self._folder, self._variables)
        server = self._starter.prepare(launch, Preloads(steps(self._spec), paths[0], paths[-1]))
        with uninterrupted(), self._starting:
            if self._stopped:
                return Outcome("failed", Failure("start", "Stopped", "the sweep ended before the run began"))
            self._start(launch, server)
        return None

    @property
    def _outcome(self) -> Path:
        return self._folder / "outcome.json"

    def _python(self, stack: str) -> str:
        """A stack's Python."""
        return sys.executable if stack == MAIN else str(self._site.stacks.find(stack).python)

    def _variables(self, folder: Path) -> dict[str, str]:
        """The environment that it starts in, with ``folder`` for its own files."""
        inherited = for_workers() if self._spec.stack == MAIN else environment(folder)
        if self.cores:
            inherited = {name: value for name, value in inherited.items() if name not in BINDING}
        own = {MARKER: folder.name, "PATH": worker_path(self._python(self._spec.stack), inherited.get("PATH"))}
        own |= _temporary_files(folder)
        threads = _thread_variables(self._spec.job.conditions.threads)
        visible = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return {
            **inherited,
            **ENVIRONMENT,
            **own,
            **threads,
            **visible,
            **self._load_generator(),
            **_server_key(self._spec),
        }

    def _load_generator(self) -> dict[str, str]:
        stacks = self._spec.job.stacks
        return {load_generator.INTERPRETER: self._python(stacks[0])} if stacks else {}

    def _start(self, launch: Launch, server: Server | None) -> None:
        """Threads read the pipes and, of a process that makes several runs, wait for its end."""
        self._pipes = Pipe(lambda read: self._log.add(read)), Pipe(lambda read: self._phases.add(read))
        log, events = self._pipes
        given = [events.write]
        if self._spec.job.keeps_model:
            read, self._requests = os.pipe()
            given.append(read)
        try:
            self._process = self._starter.start(launch, server, log.write, given)
        finally:
            log.close_write()
            events.close_write()
            for read in given[1:]:
                os.close(read)
        self._started = True
        if self._requests is not None:
            threading.Thread(target=lambda: self._ends.put(self._process.wait()), daemon=True).start()

    def _wait(self) -> int | None:
        """The exit code, after all that the process started has ended; None if it is waiting for another run.

        Then its log is read up to here. A timer enforces the time limit: nothing polls.
        """
        code: int | None = 0
        timer = threading.Timer(self._spec.limits.time_s or threading.TIMEOUT_MAX, self._time_out, [self._process])
        timer.daemon = True
        try:
            timer.start()
            code = self._process.wait() if self._requests is None else self._ends.get()
            if code is None and self._pipes is not None:
                self._pipes[0].drain(LISTENER_PATIENCE_S)
            return code
        finally:
            with uninterrupted():
                timer.cancel()
                timer.join()
                if code is not None:
                    self._stop()

    def _stop(self) -> None:
        """Ends the process with all that it started, and reads what is left in its pipes."""
        if self._started:
            _end(self._process)
            end_run(self._folder.name)
            part = self._site.artifacts.part(self._spec, self._folder.name)
            shutil.rmtree(part, ignore_errors=True)  # left by a killed worker
        self._started = False
        if self._pipes is not None:
            log, events = self._pipes
            log.stop()
            events.stop(LISTENER_PATIENCE_S)
            self._pipes = None
        if self._requests is not None:
            os.close(self._requests)
            self._requests = None

    def _time_out(self, process: Process) -> None:
        self._timed_out = True
        _end(process)

    def _ended(self, code: int, log: str, killed_for_memory: bool) -> Outcome:
        """The outcome that the worker wrote, or if it wrote none, one that says how it ended."""
        try:
            written = read_outcome(self._outcome)
        except ResultsError as error:
            return Outcome("invalid", self._failure("UnreadableOutcome", str(error)))
        if written is not None and code == 0:
            return written
        ended = self._killed(code, log, killed_for_memory)
        if written is None or ended.failure is None:
            return ended
        if self._stopped:  # with the sweep; the next one measures the rest
            return written
        cut = written.cut_short(ended.failure.message)
        if self._spec.job.cached:
            with suppress(OSError, ResultsError):  # other sweeps would make the run again
                self._site.artifacts.amend(self._spec, cut)
        return cut

    def _killed(self, code: int, log: str, killed_for_memory: bool) -> Outcome:
        """How a worker ended that wrote no outcome, or that was still measuring the last of it."""
        limit_s = self._spec.limits.time_s
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


def _device(gpus: tuple[str, ...] | None, cores: Sequence[int], site: LocalSite, device: str) -> str:
    """What people call these GPUs, by their places among the site's, or these cores; empty if there are no others."""
    names = site.machine(device).uuids if gpus else ()
    if len(names) > 1:
        return f"GPU {', '.join(str(place) for place, name in enumerate(names) if name in (gpus or ()))}"
    if len(cores) > 2 and cores[-1] - cores[0] == len(cores) - 1:
        return f"cores {cores[0]}-{cores[-1]}"
    return f"core{'s' * (len(cores) > 1)} {', '.join(map(str, cores))}" if cores else ""


def _end(process: Process) -> None:
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
    temporary.mkdir(exist_ok=True)
    return dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))


def _thread_variables(threads: int | None) -> dict[str, str]:
    return {} if threads is None else {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _server_key(spec: RunSpec, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The one secret that a worker gets: the key of the server that its variant is measured on."""
    server = spec.method.server if isinstance(spec.job, VariantJob) else None
    name = None if server is None else server.api_key_env
    return {name: variables[name]} if name is not None and name in variables else {}
