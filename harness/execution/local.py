"""This machine as a site, and the executor that runs a spec here in one worker process, without polling."""

from __future__ import annotations

import json
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
from harness.core.record import Failure, Outcome
from harness.core.run import RunSpec
from harness.core.site import MAIN, Machine
from harness.errors import ResultsError
from harness.execution import fetch
from harness.host.machine import cache_folder, choose, installed_version, state_folder
from harness.stacks import Stacks
from harness.stacks.build import environment
from harness.stacks.variables import for_workers
from harness.storage.cache import Cache
from harness.storage.json_codec import decode, encode

LOG_TAIL_CHARACTERS = 4000
LISTENER_PATIENCE_S = 5.0
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
        with tempfile.TemporaryDirectory(prefix="qharness-") as folder:
            return _run_worker(spec, inputs, Path(folder), self.site, on_phase)


@dataclass
class _Watch:
    """What the waiting threads learn about the child."""

    phase: str = "start"
    timed_out: bool = False


def _run_worker(
    spec: RunSpec, inputs: Sequence[Input], folder: Path, site: LocalSite, on_phase: Callable[[str], None]
) -> tuple[Outcome, bytes]:
    """Runs a spec in its own process, with the interpreter of its stack; returns its outcome and its log.

    ``folder`` is an empty folder for its files. The time limit or an interrupt ends the child's whole process group.
    """
    outcome_path, log_path = folder / "outcome.json", folder / "log.txt"
    (folder / "spec.json").write_text(encode(spec), encoding="utf-8")
    (folder / "inputs.json").write_text(encode(list(inputs)), encoding="utf-8")
    kills_before = _oom_kills()
    watch = _Watch()
    interpreter = _interpreter(spec, site.stacks, folder)
    if not os.access(interpreter[0], os.X_OK):
        message = f"stack {spec.stack!r}: its interpreter {interpreter[0]} is gone; qharness stack create {spec.stack}"
        return Outcome("unsupported", Failure("start", "NoInterpreter", message)), b""
    try:
        given = (folder / "spec.json", folder / "inputs.json", outcome_path, site.artifacts.root.absolute())
        arguments = [str(path) for path in given]
        code = _wait(spec, interpreter, arguments, log_path, watch, on_phase)
    finally:
        shutil.rmtree(site.artifacts.part(spec, folder.name), ignore_errors=True)  # left by a killed worker
    text = log_path.read_text(encoding="utf-8", errors="replace")
    outcome = _written(outcome_path) or _unwritten(spec, code, watch, text, _oom_kills() > kills_before)
    if outcome.failure is not None:
        outcome = replace(outcome, failure=replace(outcome.failure, log_tail=text[-LOG_TAIL_CHARACTERS:]))
    return outcome, log_path.read_bytes()


def _interpreter(spec: RunSpec, stacks: Stacks, folder: Path) -> tuple[str, dict[str, str]]:
    """The Python that runs a spec, and the environment it starts in."""
    if spec.stack == MAIN:
        return sys.executable, for_workers()
    return str(stacks.find(spec.stack).python), environment(folder)


def _wait(
    spec: RunSpec,
    interpreter: tuple[str, dict[str, str]],
    arguments: list[str],
    log_path: Path,
    watch: _Watch,
    on_phase: Callable[[str], None],
) -> int:
    """The worker's exit code. A thread reads its phases and a timer enforces its time limit: nothing polls."""
    python, variables = interpreter
    events_read, events_write = os.pipe()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "harness.execution.worker", *arguments, str(events_write)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[events_write],
            start_new_session=True,
            env={**variables, **ENVIRONMENT, **_thread_variables(spec.job.conditions.threads)},
        )
    os.close(events_write)
    listener = threading.Thread(target=_listen, args=(events_read, watch, on_phase), daemon=True)
    listener.start()
    timer = threading.Timer(spec.limits.time_s or threading.TIMEOUT_MAX, _time_out, (process, watch))
    timer.daemon = True
    timer.start()
    try:
        return process.wait()
    finally:
        timer.cancel()
        _end_group(process)
        process.wait()
        listener.join(LISTENER_PATIENCE_S)


def _written(path: Path) -> Outcome | None:
    """The outcome that the worker wrote, or None. It counts no matter how the process ended afterwards."""
    try:
        return decode(Outcome, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, ResultsError):
        return None


def _unwritten(spec: RunSpec, code: int, watch: _Watch, log: str, killed_for_memory: bool) -> Outcome:
    """The outcome of a worker that wrote none, from the way it ended."""
    if watch.timed_out:
        message = f"ended at its time limit of {spec.limits.time_s:g} s"
        return Outcome("timeout", Failure(watch.phase, "TimeLimit", message))
    if code == -signal.SIGKILL and killed_for_memory:
        message = "killed by the kernel: memory ran out"
        return Outcome("out_of_memory", Failure(watch.phase, "OutOfMemoryKill", message))
    if code == -signal.SIGABRT and "bad_alloc" in log:
        return Outcome("out_of_memory", Failure(watch.phase, "bad_alloc", "a library could not allocate memory"))
    if code < 0:
        return Outcome("crashed", Failure(watch.phase, signal.Signals(-code).name, f"ended by signal {-code}"))
    return Outcome("crashed", Failure(watch.phase, "Exit", f"exited with code {code} and left no outcome"))


def _listen(events: int, watch: _Watch, on_phase: Callable[[str], None]) -> None:
    with os.fdopen(events, encoding="utf-8") as stream:
        for line in stream:
            watch.phase = line.strip()
            on_phase(watch.phase)


def _time_out(process: subprocess.Popen[bytes], watch: _Watch) -> None:
    watch.timed_out = True
    _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the child's process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


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
