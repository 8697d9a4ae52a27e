"""The guard: whatever a module starts ends with it, however it or its parent ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import psutil
import pytest
from endings import has_ended

from harness.core.owner import current_owner
from harness.execution import guard
from harness.host.process import MARKER, end_leftovers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")

GUARD = Path(guard.__file__)
SHM = Path("/dev/shm")
DAEMON = """
import ctypes, os, sys
def daemon(path, clear=True):
    '''A process with a session, a name and an environment of its own, that writes its number to a file.'''
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        code = (
            "import ctypes, os, pathlib, sys, time; ctypes.CDLL(None).prctl(15, b'innocent'); os.closerange(0, 100); "
            "pathlib.Path(sys.argv[1] + '~').write_text(str(os.getpid())); os.rename(sys.argv[1] + '~', sys.argv[1]); "
            "time.sleep(600)"
        )
        os.execve(sys.executable, [sys.executable, "-S", "-c", code, path], {} if clear else os.environ)
    os.wait()
def come(path):
    import time
    while not os.path.exists(path):
        time.sleep(0.005)
"""


class Guarded:
    """Starts modules below a guard; each is given the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}

    def command(self, code: str, parent: object) -> list[str]:
        (self.folder / "guarded.py").write_text(f"{DAEMON}\nfolder = sys.argv[1]\n{code}", encoding="utf-8")
        return [sys.executable, str(GUARD), str(parent), "guarded", str(self.folder)]

    def start(self, code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(code, os.getpid()), env=self.environment, start_new_session=True)

    def start_below(self, code: str, mark: bool = False) -> subprocess.Popen[bytes]:
        """Started by a process of its own, which waits for the guard; with ``mark`` it is the owner."""
        above = f"""
import os, subprocess, sys
from harness.core.owner import current_owner
if {mark}:
    os.environ["{MARKER}"] = f"qharness-{{current_owner()}}-abcdefgh"
command = {self.command(code, "PARENT")!r}
command[2] = str(os.getpid())
subprocess.run(command)
"""
        return subprocess.Popen([sys.executable, "-c", above], env=self.environment)

    def process(self, name: str) -> psutil.Process:
        """The process that wrote its number to a file, once it has."""
        path = self.folder / name
        while not path.exists():
            time.sleep(0.005)
        return psutil.Process(int(path.read_text()))


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


MODULE = "open(folder + '/module~', 'w').write(str(os.getpid())); os.rename(folder + '/module~', folder + '/module')\n"
BUSY = f"daemon(folder + '/daemon', clear=CLEAR); come(folder + '/daemon')\n{MODULE}import time; time.sleep(600)\n"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), 9)", -9),
        ("os.abort()", -signal.SIGABRT),
        ("raise ValueError", 1),
    ],
)
def test_a_guard_ends_as_the_module_did(guarded: Guarded, end: str, code: int) -> None:
    assert guarded.start(f"sys.stderr = open('/dev/null', 'w')\n{end}").wait() == code


def test_a_guard_waits_also_below_a_process_that_ignores_its_children(guarded: Guarded) -> None:
    command = guarded.command("daemon(folder + '/daemon'); come(folder + '/daemon'); sys.exit(3)", os.getpid())
    ignoring = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh"]
    assert subprocess.run([*ignoring, *command], env=guarded.environment, check=False).returncode == 3
    assert not psutil.pid_exists(int((guarded.folder / "daemon").read_text()))


def test_no_daemon_outlives_the_module(guarded: Guarded) -> None:
    process = guarded.start("daemon(folder + '/daemon'); come(folder + '/daemon')")
    daemon = guarded.process("daemon")
    assert daemon.name() == "innocent"
    assert os.getsid(daemon.pid) not in (process.pid, os.getsid(0))
    assert process.wait() == 0
    assert not daemon.is_running()


def test_a_module_that_ignores_everything_ends_when_its_guard_is_told_to(guarded: Guarded) -> None:
    ignoring = "import signal\nfor each in (1, 2, 15):\n    signal.signal(each, signal.SIG_IGN)\n"
    process = guarded.start(ignoring + BUSY.replace("CLEAR", "True"))
    module, daemon = guarded.process("module"), guarded.process("daemon")
    process.terminate()
    assert process.wait() == -signal.SIGKILL
    assert not module.is_running()
    assert not daemon.is_running()


def test_everything_ends_when_the_parent_is_killed(guarded: Guarded) -> None:
    parent = guarded.start_below(BUSY.replace("CLEAR", "True"))
    module, daemon = guarded.process("module"), guarded.process("daemon")
    parent.kill()
    parent.wait()
    assert has_ended(module)
    assert has_ended(daemon)


def test_a_daemon_of_a_dead_owner_ends_at_the_next_start(guarded: Guarded) -> None:
    """The guard is killed with its parent, as by a batch system that kills every process that it knows."""
    parent = guarded.start_below(BUSY.replace("CLEAR", "False"), mark=True)
    module, daemon = guarded.process("module"), guarded.process("daemon")
    end_leftovers()
    assert daemon.is_running()  # its owner lives
    above = module.parent()
    assert above is not None
    parent.kill()
    above.kill()
    parent.wait()
    assert has_ended(module)
    end_leftovers()  # another sweep that starts on this machine may have done the same a moment before
    assert has_ended(daemon)


def test_the_own_processes_of_a_living_owner_are_left_alone(guarded: Guarded) -> None:
    guarded.environment[MARKER] = f"qharness-{current_owner()}-abcdefgh"
    process = guarded.start(BUSY.replace("CLEAR", "False"))
    daemon = guarded.process("daemon")
    end_leftovers()
    assert daemon.is_running()
    guarded.process("module")
    process.terminate()
    process.wait()


SHARED = f"""
import _multiprocessing, mmap, pathlib, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None  # or a process of Python's own would clean up
def share(name):
    memory = shared_memory.SharedMemory(create=True, size=1)
    pathlib.Path(folder, name).write_text(memory.name)
    return memory
of_others = shared_memory.SharedMemory(pathlib.Path(folder, "others").read_text())
semaphore = _multiprocessing.SemLock(1, 1, 1, f"/loky-{{os.getpid()}}-abcdefgh", False)
pathlib.Path(f"/dev/shm/sem.loky-{{os.getpid()}}-unmapped").touch()
model = pathlib.Path(f"/dev/shm/{{os.getpid()}}-model.gguf")
model.write_bytes(b"GGUF")
weights = mmap.mmap(os.open(model, os.O_RDWR), 0)
time.sleep(0.05)  # times of processes count in ticks of 0.01 s
if os.fork() == 0:
    time.sleep(0.05)
    memory = share("below")
    open(folder + "/daemon", "w").close()
    time.sleep(600)
come(folder + "/daemon")
own = share("own")
{MODULE}"""


@pytest.mark.parametrize("end", ["time limit", "killed", "killed with its guard"])
def test_shared_memory_goes_with_those_that_had_it(guarded: Guarded, end: str) -> None:
    """As vLLM's processes have. What was there before stays, and so does what nobody had mapped, and a model's file.

    Of a module that somebody kills nobody can see any more what it had. What its processes made goes even then.
    """
    others = shared_memory.SharedMemory(create=True, size=1)
    others.close()
    (guarded.folder / "others").write_text(others.name)
    files = {"others": SHM / others.name}
    try:
        if end == "killed with its guard":
            parent = guarded.start_below(f"{SHARED}time.sleep(600)", mark=True)
            module = guarded.process("module")
            above = module.parent()
            assert above is not None
            for each in (parent, above):
                each.kill()
            parent.wait()
            assert has_ended(module)
            end_leftovers()
        else:
            parent = guarded.start(f"{SHARED}{'os.kill(os.getpid(), 9)' if end == 'killed' else 'time.sleep(600)'}")
            if end == "time limit":
                guarded.process("module")
                parent.terminate()
            parent.wait()
        number = int((guarded.folder / "module").read_text())
        files |= {name: SHM / (guarded.folder / name).read_text() for name in ("own", "below")}
        files |= {name: SHM / f"sem.loky-{number}-{name}" for name in ("abcdefgh", "unmapped")}
        files["model"] = SHM / f"{number}-model.gguf"
        left = {name for name, file in files.items() if file.exists()}
        of_module = {"time limit": set(), "killed": {"own"}, "killed with its guard": {"own", "abcdefgh"}}[end]
        assert left == {"others", "model", "unmapped", *of_module}
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def test_a_module_never_starts_once_its_parent_is_gone(guarded: Guarded) -> None:
    command = guarded.command(MODULE, os.getpid() + 1)
    assert subprocess.run(command, env=guarded.environment, check=False).returncode == guard.PARENT_GONE
    assert not (guarded.folder / "module").exists()


def test_the_kernel_knows_whom_to_end_before_the_module_begins(guarded: Guarded) -> None:
    get = "number = ctypes.c_int()\nctypes.CDLL(None).prctl(2, ctypes.byref(number))\nsys.exit(number.value)"
    assert guarded.start(get).wait() == signal.SIGKILL  # PR_GET_PDEATHSIG
