"""Whatever a worker does, its run ends with an outcome and nothing of it is left. These workers import no library."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from run_specs import run_spec

from harness.core.label import Fact
from harness.core.owner import owner_in
from harness.core.record import UNFINISHED, Failure, Outcome
from harness.core.run import RunLimits
from harness.core.workload import TaskWorkload
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

    def run(
        code: str,
        on_phase=lambda phase: None,
        time_s: float | None = None,
        kind: str = "quality",
        pythons: dict[str, Path] | None = None,
        **more: object,
    ) -> tuple[Outcome, bytes]:
        (tmp_path / "odd_worker.py").write_text(START + code, encoding="utf-8")
        others = psutil.Process().children()
        spec = run_spec(kind, limits=RunLimits(time_s=time_s), **more)
        ended = LocalExecutor(local_site(tmp_path / "cache", pythons)).run(spec, [], on_phase)
        assert not [path for path in temporary.iterdir() if owner_in(path.name)]
        assert psutil.Process().children() == others
        return ended

    return run


class TimeLimits:
    """Limits that are reached at a phase ``hang``, however fast the machine is; ``begun_s`` are those of all runs."""

    def __init__(self) -> None:
        self.begun_s: list[float] = []
        self.reached = threading.Event()

    def on_phase(self, phase: str) -> None:
        if phase == "hang":
            self.reached.set()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> TimeLimits:
    limits = TimeLimits()

    class Limit(threading.Timer):
        def run(self) -> None:
            limits.begun_s.append(self.interval)
            while not self.finished.wait(0.01):
                if limits.reached.is_set():
                    limits.reached.clear()
                    self.function(*self.args)
                    return

    monkeypatch.setattr(threading, "Timer", Limit)
    return limits


def failure(outcome: Outcome, status: str) -> Failure:
    assert outcome.status == status
    assert outcome.failure is not None
    return outcome.failure


@pytest.mark.parametrize(
    ("end", "cause"),
    [("os.kill(os.getpid(), 9)", "ended by signal 9"), ("sys.exit(0)", None)],
)
def test_a_worker_killed_while_it_measures_the_last_of_a_run_has_made_it(execute, end: str, cause: str | None) -> None:
    missing = Fact("dtype_noise_not_measured", {"dtype": "float32", "reason": UNFINISHED})
    outcome, _ = execute(f"write({encode(Outcome('ok', facts=(missing,)))!r})\n{end}")
    assert outcome.status == "ok"
    (fact,) = outcome.facts
    assert fact.arguments["reason"] == (f"{UNFINISHED}: {cause}" if cause else UNFINISHED)


def test_a_time_limit_reached_meanwhile_is_the_cause(execute, limits: TimeLimits) -> None:
    missing = Fact("dtype_noise_not_measured", {"dtype": "float32", "reason": UNFINISHED})
    written = encode(Outcome("ok", facts=(missing,)))
    code = f"write({written!r}); os.write(events, b'hang\\n'); time.sleep(600)"
    outcome, _ = execute(code, limits.on_phase, time_s=3600)
    assert outcome.status == "ok"
    assert outcome.facts[0].arguments["reason"] == f"{UNFINISHED}: ended at its time limit of 3600 s"


def test_a_worker_s_outcome_log_and_phases_arrive(execute) -> None:
    phases: list[str] = []
    code = f"os.write(events, b'load\\n'); print('printed', flush=True); os.write(2, b'too'); write({encode(OK)!r})"
    assert execute(code, phases.append) == (OK, b"printed\ntoo")
    assert phases == ["load"]


def test_what_binds_threads_to_cores_is_not_for_a_run_that_has_cores_of_its_own(execute, monkeypatch) -> None:
    monkeypatch.setattr(local, "physical_cores", lambda: (0, 1))
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    code = f"print(os.environ.get('OMP_PROC_BIND')); write({encode(OK)!r})"
    assert execute(code)[1] == b"close\n"
    assert execute(code, threads=1)[1] == b"None\n"


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


def test_a_worker_that_ignores_signals_ends_at_its_time_limit_with_its_children(execute, limits: TimeLimits) -> None:
    code = (
        "for each in (1, 2, 15): signal.signal(each, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(child.pid, flush=True)\nos.write(events, b'hang\\n')\ntime.sleep(600)"
    )
    outcome, log = execute(code, limits.on_phase, time_s=1.0)
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


def test_a_load_comes_from_the_interpreter_that_the_user_named(execute) -> None:
    tell = f"write({encode(OK)!r}); print(os.environ['QHARNESS_LOAD_GENERATOR'])"
    outcome, log = execute(tell, kind="serve", pythons={"vllm": Path(sys.executable)})
    assert (outcome.status, log.decode().strip()) == ("ok", sys.executable)
    missing = failure(execute(tell, kind="serve")[0], "unsupported")
    assert re.match(r"stack 'vllm': its interpreter \S+ is gone; qharness stack create vllm", missing.message)


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


SEVERAL = """
requests = int(sys.argv.pop())
announce = lambda text: os.write(events, text.encode() + b"\\n")
def runs():
    while True:
        yield json.load(open(spec))["job"]["task"]["name"]
        sys.stdout.flush()
        announce("\\x04")
        if not os.read(requests, 1):
            return
"""


class Tasks:
    """Runs of one variant, which one process may make, by a worker that does what a piece of code says."""

    def __init__(self, folder: Path) -> None:
        self.executor = LocalExecutor(local_site(folder / "cache"))
        self.phases: list[str] = []
        self.on_phase = self.phases.append
        self._code = folder / "odd_worker.py"

    def start_with(self, code: str) -> None:
        body = "".join(f"    {line}\n" for line in code.splitlines())
        start = START.replace("= sys.argv[1:]", "= sys.argv[1:6]")
        self._code.write_text(f"{start}{SEVERAL}\nfor name in runs():\n{body}", encoding="utf-8")

    def answer(
        self, name: str, time_s: float | None = None, trusted: bool = False, **others: object
    ) -> tuple[Outcome, str]:
        task = TaskWorkload(name, f"/tasks/{name}.yaml", trust_task_code=trusted)
        spec = run_spec("task", task=task, limits=RunLimits(time_s=time_s), **others)
        outcome, log = self.executor.run(spec, [], self.on_phase)
        return outcome, log.decode()


@pytest.fixture
def tasks(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tasks]:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(local, "WORKER", "odd_worker")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    others = psutil.Process().children()
    tasks = Tasks(tmp_path)
    yield tasks
    tasks.executor.close()
    assert psutil.Process().children() == others
    assert not [path for path in temporary.iterdir() if owner_in(path.name)]


WELL = f"print(os.getpid(), name); announce('answer ' + name); write({encode(OK)!r})"


def test_one_process_makes_the_runs_of_a_variant_and_each_has_its_own_log_and_phases(tasks: Tasks) -> None:
    tasks.start_with(f"os.write(1, name[0].encode() * 3 * 10**6 + b' ')\n{WELL}")
    made = [tasks.answer(name) for name in ("arc", "boolq", "copa")]
    assert [outcome for outcome, _ in made] == [OK] * 3
    logs = [log.split() for _, log in made]
    assert [(log[0], log[2]) for log in logs] == [
        ("a" * 3 * 10**6, "arc"),
        ("b" * 3 * 10**6, "boolq"),
        ("c" * 3 * 10**6, "copa"),
    ]
    assert len({log[1] for log in logs}) == 1
    assert tasks.phases == ["answer arc", "answer boolq", "answer copa"]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"threads": 2}, {"needs": {"quantize": "f" * 16}}, {"stack": "autogptq"}, {"trusted": True}]
)
def test_a_run_that_may_not_share_the_process_ends_it_first(tasks: Tasks, other: dict[str, object]) -> None:
    tasks.start_with(WELL)
    first = int(tasks.answer("arc")[1].split()[0])
    _, log = tasks.answer("arc", **other)
    assert not psutil.pid_exists(first)
    assert not log or int(log.split()[0]) != first  # that stack is not made here


def test_a_run_of_another_kind_ends_the_kept_process_first(tasks: Tasks) -> None:
    tasks.start_with(WELL)
    first = int(tasks.answer("arc")[1].split()[0])
    tasks.executor.run(run_spec("quality"), [], lambda phase: None)
    assert not psutil.pid_exists(first)


def test_what_kills_a_later_run_leaves_the_earlier_ones_and_the_next_has_a_new_process(tasks: Tasks) -> None:
    tasks.start_with(
        f"if name == 'boolq': announce('answer'); os.write(1, b'about to'); os.kill(os.getpid(), 9)\n{WELL}"
    )
    arc, log = tasks.answer("arc")
    assert failure(tasks.answer("boolq")[0], "crashed") == Failure("answer", "SIGKILL", "ended by signal 9", "about to")
    copa, later = tasks.answer("copa")
    assert (arc, copa) == (OK, OK)
    assert log.split()[0] != later.split()[0]


def test_a_failed_run_ends_the_process(tasks: Tasks) -> None:
    failed = Outcome("failed", Failure("answer", "ValueError", "no"))
    tasks.start_with(f"{WELL}\nif name == 'boolq': write({encode(failed)!r})")
    (_, arc), (outcome, boolq), (_, copa) = [tasks.answer(name) for name in ("arc", "boolq", "copa")]
    assert failure(outcome, "failed") == Failure("answer", "ValueError", "no", boolq)
    assert arc.split()[0] == boolq.split()[0] != copa.split()[0]


def test_the_time_limit_is_each_runs_own(tasks: Tasks, limits: TimeLimits) -> None:
    tasks.start_with(f"if name == 'boolq': announce('hang'); time.sleep(600)\n{WELL}")
    tasks.on_phase = limits.on_phase
    (arc, _), (boolq, _), (copa, _) = [tasks.answer(name, time_s=2.0) for name in ("arc", "boolq", "copa")]
    assert (arc, copa) == (OK, OK)
    assert failure(boolq, "timeout").message == "ended at its time limit of 2 s"
    assert limits.begun_s == [2.0] * 3


def test_a_process_that_ended_while_it_was_kept_is_replaced(tasks: Tasks) -> None:
    tasks.start_with(WELL)
    _, log = tasks.answer("arc")
    os.kill(int(log.split()[0]), signal.SIGKILL)
    while tasks.executor._workers.idle[0]._ends.empty():
        threading.Event().wait(0.01)
    assert tasks.answer("boolq")[0] == OK


def test_an_end_that_is_announced_without_an_outcome_is_a_crash(tasks: Tasks) -> None:
    tasks.start_with(f"if name == 'boolq': os.unlink(outcome) if os.path.exists(outcome) else None; continue\n{WELL}")
    assert tasks.answer("arc")[0] == OK
    assert failure(tasks.answer("boolq")[0], "crashed").type == "Exit", "the outcome of the first one is not its"
    assert tasks.answer("copa")[0] == OK
