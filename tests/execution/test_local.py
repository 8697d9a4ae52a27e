"""Whatever a worker does, its run ends with an outcome and nothing of it is left. These workers import no library."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from run_specs import run_spec

from harness.core.owner import owner_in
from harness.core.record import Failure, Outcome
from harness.core.run import RunLimits
from harness.execution import local
from harness.execution.local import LocalExecutor, local_site
from harness.execution.output import LOG_HEAD_BYTES, LOG_TAIL_BYTES
from harness.storage.json_codec import encode

OK = Outcome("ok")
START = """
import json, os, signal, subprocess, sys, time
spec, inputs, outcome, cache, events = sys.argv[1:]
events = int(events)
def write(text):
    with open(outcome, "w") as file:
        file.write(text)
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a short name, as users have."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def execute(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a worker that does what a piece of code says."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(local, "WORKER", "odd_worker")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(code: str, on_phase=lambda phase: None, time_s: float | None = None) -> tuple[Outcome, bytes]:
        (tmp_path / "odd_worker.py").write_text(START + code, encoding="utf-8")
        others = psutil.Process().children()
        spec = run_spec("quality", limits=RunLimits(time_s=time_s))
        ended = LocalExecutor(local_site(tmp_path / "cache")).run(spec, [], on_phase)
        assert not [path for path in temporary.iterdir() if owner_in(path.name)]
        assert psutil.Process().children() == others
        return ended

    return run


def failure(outcome: Outcome, status: str) -> Failure:
    assert outcome.status == status
    assert outcome.failure is not None
    return outcome.failure


def test_a_worker_s_outcome_log_and_phases_arrive(execute) -> None:
    phases: list[str] = []
    code = f"os.write(events, b'load\\n'); print('printed', flush=True); os.write(2, b'too'); write({encode(OK)!r})"
    assert execute(code, phases.append) == (OK, b"printed\ntoo")
    assert phases == ["load"]


def test_a_log_of_40_mb_is_cut_in_the_middle(execute) -> None:
    code = f"os.write(1, b'first')\nfor _ in range(40): os.write(1, b'x' * 10**6)\nprint('last')\nwrite({encode(OK)!r})"
    outcome, log = execute(code)
    assert outcome == OK
    assert log.startswith(b"firstxxx")
    assert log.endswith(b"xxxlast\n")
    left_out = 40 * 10**6 + len("firstlast\n") - LOG_HEAD_BYTES - LOG_TAIL_BYTES
    assert f"\n[{left_out} bytes left out]\n".encode() in log


def test_garbage_among_the_phases_harms_nothing(execute) -> None:
    phases: list[str] = []
    garbage = "for _ in range(9): os.write(events, b'\\xff\\x00' * 10**6)"
    code = f"os.write(events, b'load\\n')\n{garbage}\nwrite({encode(OK)!r})"
    assert execute(code, phases.append)[0] == OK
    assert phases[0] == "load"


def test_the_log_of_a_killed_worker_is_kept_and_the_phase_named(execute) -> None:
    outcome, log = execute("os.write(events, b'load\\n'); os.write(1, b'about to'); os.kill(os.getpid(), 9)")
    assert failure(outcome, "crashed") == Failure("load", "SIGKILL", "ended by signal 9", "about to")
    assert log == b"about to"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("os._exit(0)", "Exit"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 5)", f"signal {signal.SIGRTMIN + 5}"),
        ("for each in (1, 2, events): os.close(each)\nos._exit(4)", "Exit"),
    ],
)
def test_an_end_without_outcome_is_a_crash(execute, code: str, kind: str) -> None:
    assert failure(execute(code)[0], "crashed").type == kind


@pytest.mark.parametrize(
    "code", ["write('{')", "os.mkfifo(outcome)", "os.mkdir(outcome)", "os.symlink('/dev/zero', outcome)"]
)
def test_an_outcome_that_cannot_be_read_is_a_failed_run(execute, code: str) -> None:
    assert failure(execute(code)[0], "invalid").type == "UnreadableOutcome"


def test_a_worker_that_ignores_signals_ends_at_its_time_limit_with_its_children(execute) -> None:
    code = (
        "for each in (1, 2, 15): signal.signal(each, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(child.pid, flush=True)\ntime.sleep(600)"
    )
    outcome, log = execute(code, time_s=1.0)
    assert failure(outcome, "timeout").message == "ended at its time limit of 1 s"
    assert not psutil.pid_exists(int(log))


def test_temporary_files_of_libraries_go_with_the_run(execute, temporary: Path) -> None:
    code = f"import tempfile; print(tempfile.mkdtemp()); write({encode(OK)!r})"
    outcome, log = execute(code)
    assert outcome == OK
    assert not Path(log.decode().strip()).exists()
    assert log.startswith(str(temporary).encode())


def test_what_showing_a_phase_raises_ends_the_sweep_and_not_the_reading(execute) -> None:
    def show(phase: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        execute(f"for _ in range(10**5): os.write(events, b'load\\n')\nwrite({encode(OK)!r})", show)


def test_an_interpreter_that_cannot_be_started_is_a_crash(execute, tmp_path: Path, monkeypatch) -> None:
    python = tmp_path / "python"
    python.write_bytes(b"\0")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert failure(execute("")[0], "crashed").phase == "start"


def test_a_run_may_be_made_in_a_thread(execute) -> None:
    """The kernel ends a guard with the thread that started it; that thread waits for it."""
    made: list[tuple[Outcome, bytes]] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: made.append(execute(f"time.sleep(0.1); write({encode(OK)!r})")))
        thread.start()
        thread.join()
    assert made == [(OK, b"")] * 2


def test_an_interrupt_ends_the_worker_and_comes_through_once_that_is_done(execute) -> None:
    def interrupt(phase: str) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    others = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        execute("os.write(events, b'load\\n'); print(os.getpid(), flush=True); time.sleep(600)", interrupt)
    assert psutil.Process().children() == others
