"""Starts one worker, waits for it without polling, and says how it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.json_codec import decode, encode
from harness.record import Failure, Outcome, Status
from harness.spec import RunSpec

LOG_TAIL_CHARACTERS = 4000
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_OOM_COUNTERS = ("/sys/fs/cgroup{}/memory.events", "/sys/fs/cgroup/memory{}/memory.oom_control")


@dataclass
class _Watch:
    """What the waiting threads learn of the child."""

    phase: str = "start"
    timed_out: bool = False


def run_child(spec: RunSpec, folder: Path, cache: Path, on_phase: Callable[[str], None]) -> tuple[Outcome, Path]:
    """Runs a spec in a process of its own; returns its outcome and its log.

    ``folder`` is an empty folder for its files. At the time limit, and on an interrupt, the child's
    whole process group is ended.
    """
    spec_path, outcome_path, log_path = folder / "spec.json", folder / "outcome.json", folder / "log.txt"
    spec_path.write_text(encode(spec), encoding="utf-8")
    kills_before = _oom_kills()
    events_read, events_write = os.pipe()
    command = [
        sys.executable,
        "-m",
        "harness.execution.worker",
        *map(str, (spec_path, outcome_path, cache, events_write)),
    ]
    watch = _Watch()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[events_write],
            start_new_session=True,
            env={**os.environ, **OFFLINE, **_thread_variables(spec.threads), "TOKENIZERS_PARALLELISM": "false"},
        )
    os.close(events_write)
    listener = threading.Thread(target=_listen, args=(events_read, watch, on_phase), daemon=True)
    listener.start()
    timer = None
    if spec.limits.time_s is not None:
        timer = threading.Timer(spec.limits.time_s, _time_out, (process, watch))
        timer.start()
    try:
        code = process.wait()
    finally:
        if timer is not None:
            timer.cancel()
        _end_group(process)
        process.wait()
        listener.join()
    log_text = log_path.read_text(encoding="utf-8", errors="replace")
    if outcome_path.exists() and code == 0 and not watch.timed_out:
        outcome = decode(Outcome, json.loads(outcome_path.read_text(encoding="utf-8")), str(outcome_path))
        return _with_log(outcome, log_text), log_path
    failure = _failure(spec, code, watch, log_text, _oom_kills() > kills_before)
    return _with_log(Outcome(failure[0], failure[1]), log_text), log_path


def _failure(spec: RunSpec, code: int, watch: _Watch, log: str, killed_for_memory: bool) -> tuple[Status, Failure]:
    """Tells the ends that leave no outcome apart."""
    if watch.timed_out:
        return "timeout", Failure(watch.phase, "TimeLimit", f"ended at its time limit of {spec.limits.time_s:g} s")
    if code == -signal.SIGKILL and killed_for_memory:
        return "out_of_memory", Failure(watch.phase, "OutOfMemoryKill", "killed by the kernel: memory ran out")
    if code == -signal.SIGABRT and "bad_alloc" in log:
        return "out_of_memory", Failure(watch.phase, "bad_alloc", "a library could not allocate memory")
    if code < 0:
        return "crashed", Failure(watch.phase, signal.Signals(-code).name, f"ended by signal {-code}")
    return "crashed", Failure(watch.phase, "Exit", f"exited with code {code} and left no outcome")


def _with_log(outcome: Outcome, log: str) -> Outcome:
    from dataclasses import replace

    if outcome.failure is None:
        return outcome
    return replace(outcome, failure=replace(outcome.failure, log_tail=log[-LOG_TAIL_CHARACTERS:]))


def _listen(events: int, watch: _Watch, on_phase: Callable[[str], None]) -> None:
    with os.fdopen(events, encoding="utf-8") as stream:
        for line in stream:
            watch.phase = line.strip()
            on_phase(watch.phase)


def _time_out(process: subprocess.Popen[bytes], watch: _Watch) -> None:
    watch.timed_out = True
    _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever is left of the child's process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _thread_variables(threads: int | None) -> dict[str, str]:
    return {} if threads is None else {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _oom_kills() -> int:
    """How often the kernel killed for memory in this process's control group (cgroup v2 or v1); 0 where unknown."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    total = 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for pattern, wanted in zip(_OOM_COUNTERS, ("", "memory"), strict=True):
            counter = Path(pattern.format(path.rstrip("/")))
            if controllers == wanted and counter.is_file():
                found = re.search(r"^oom_kill (\d+)", counter.read_text(), re.MULTILINE)
                total += int(found[1]) if found else 0
    return total
