"""A process that is forked from a warm server is as well guarded as one that starts anew, and no less its own.

The servers here import stubs in the place of torch and transformers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import endings
import psutil
import pytest
from endings import has_ended

from harness.core.owner import current_owner, temporary_folder
from harness.errors import UsageError
from harness.execution.local import WORKER
from harness.execution.starter import VARIABLE, Launch, Preloads, Process, Starter
from harness.host.process import MARKER, end_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="servers are for Linux")

NAME = "import os\ndef name(file):\n    open(file + '~', 'w').write(str(os.getpid())); os.rename(file + '~', file)\n"


class Forks:
    """Starts modules with a starter, whose servers import ``torch`` as given."""

    def __init__(self, folder: Path, starter: Starter) -> None:
        self.folder, self.starter = folder, starter
        self.torch("")

    def torch(self, code: str) -> None:
        (self.folder / "transformers").mkdir(exist_ok=True)
        for stub in ("transformers/__init__.py", "transformers/utils.py"):
            (self.folder / stub).touch()
        (self.folder / "torch.py").write_text(code, encoding="utf-8")

    def variables(self, folder: Path) -> Mapping[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder), MARKER: folder.name, "TMPDIR": str(folder)}

    def start(self, code: str, own: Path, log: int, given: Sequence[int] = (), fork: bool = True) -> Process:
        (self.folder / "started.py").write_text(NAME + code, encoding="utf-8")
        launch = Launch(sys.executable, "started", (str(self.folder),), own, self.variables)
        server = self.starter.prepare(launch, Preloads((), Path(), Path()))
        assert (server is not None) == fork
        return self.starter.start(launch, server, log, given)

    def end(self, code: str, fork: bool = True) -> tuple[int, str]:
        """The exit code of a module, and what it printed."""
        log = self.folder / "log"
        with temporary_folder() as own, log.open("wb") as opened:
            process = self.start(code, own, opened.fileno(), fork=fork)
            return process.wait(), log.read_text()

    def process(self, name: str) -> psutil.Process:
        """The process that wrote its number to a file, once it has."""
        path = self.folder / name
        while not path.exists():
            time.sleep(0.005)
        return psutil.Process(int(path.read_text()))


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    monkeypatch.delenv(VARIABLE, raising=False)
    with closing(Starter()) as starter:
        yield Forks(tmp_path, starter)


BUSY = f"""
import ctypes, subprocess, sys, time
code = '''{NAME}
import sys, time; name(sys.argv[1]); time.sleep(600)'''
subprocess.Popen([sys.executable, '-c', code, sys.argv[1] + '/daemon'], env={{}}, start_new_session=True)
while not os.path.exists(sys.argv[1] + '/daemon'):
    time.sleep(0.005)
name(sys.argv[1] + '/module'); time.sleep(600)
"""


ENDS = {
    "import sys; sys.exit(3)": 3,
    "os._exit(0)": 0,
    "os.kill(os.getpid(), 9)": -signal.SIGKILL,
    "os.abort()": -signal.SIGABRT,
    "raise ValueError('seen')": 1,
    "print('to its end')": 0,
}


def test_a_fork_ends_as_its_module_did_and_prints_what_it_printed(forks: Forks) -> None:
    assert {code: forks.end(code)[0] for code in ENDS} == ENDS
    _, printed = forks.end(
        "import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr)\nraise ValueError('seen')"
    )
    assert printed.startswith("out\nerr\nTraceback")
    assert printed.endswith("ValueError: seen\n")


STATE = """
import json, random, stat, sys, tempfile
files = sorted(int(each) for each in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{each}'))
environ = open('/proc/self/environ', 'rb').read().split(b'\\0')
print(json.dumps({
    'files': files, 'input': os.readlink('/proc/self/fd/0'), 'folder': os.getcwd(), 'temporary': tempfile.gettempdir(),
    'variables': dict(os.environ), 'mark': [each.decode() for each in environ if each.startswith(b'QHARNESS_OWNER')],
    'session': os.getsid(0) == os.getpid() == os.getpgid(0), 'arguments': sys.argv, 'name': __name__,
    'main': sys.modules['__main__'].__file__, 'threads': len(os.listdir('/proc/self/task')),
    'signals': [each for each in open('/proc/self/status') if each.startswith(('SigBlk', 'SigIgn', 'SigCgt'))],
    'random': random.random(),
}))
"""


def test_a_fork_begins_like_a_process_that_starts_anew(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptors, folder, environment, signals and arguments; but its random numbers are its own."""

    def state(fork: bool) -> tuple[dict[str, object], str]:
        with temporary_folder() as own:
            read, write = os.pipe()
            process = forks.start(STATE, own, write, fork=fork)
            os.close(write)
            assert process.wait() == 0
            with os.fdopen(read, encoding="utf-8") as printed:
                found: dict[str, object] = json.loads(printed.read().replace(own.name, "OWN"))
            return found, own.name

    monkeypatch.chdir(forks.folder)
    (one, _), (other, _) = state(True), state(True)
    monkeypatch.setenv(VARIABLE, "spawn")
    with closing(Starter()) as starter:
        forks.starter = starter
        anew, _ = state(False)
    monkeypatch.delenv(VARIABLE)
    assert one["mark"] == [f"{MARKER}=OWN"], "other processes see it too"
    assert one["random"] != other["random"]
    anew["variables"].pop(VARIABLE)  # type: ignore[attr-defined]
    for each in (one, anew):
        each.pop("random")
    assert one == anew


def test_a_fork_finds_its_module_as_a_new_process_does(forks: Forks) -> None:
    """No server has imported it, or Python would warn in the log of each run."""
    log = forks.folder / "log"
    with temporary_folder() as own, log.open("wb") as opened:
        launch = Launch(sys.executable, WORKER, (), own, forks.variables)
        server = forks.starter.prepare(launch, Preloads((), Path(), Path()))
        assert server is not None
        assert forks.starter.start(launch, server, opened.fileno(), []).wait() == 1
    assert log.read_text().startswith("Traceback"), "arguments are missing"


def test_nobody_waits_for_a_server_that_imports_once_the_starter_stops(forks: Forks) -> None:
    forks.torch(f"{NAME}\nimport time\nname({str(forks.folder / 'server')!r}); time.sleep(600)")
    with ThreadPoolExecutor(1) as pool, temporary_folder() as own:
        launch = Launch(sys.executable, "started", (), own, forks.variables)
        prepared = pool.submit(forks.starter.prepare, launch, Preloads((), Path(), Path()))
        server = forks.process("server")
        forks.starter.stop()
        assert prepared.result() is None
        assert forks.starter.prepare(launch, Preloads((), Path(), Path())) is None
    assert has_ended(server)


def test_a_start_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "spwan")
    with pytest.raises(UsageError, match="QHARNESS_START is 'spwan': set it to 'spawn'"):
        Starter()


def test_ending_a_fork_ends_what_its_module_started(forks: Forks) -> None:
    with temporary_folder() as own:
        process = forks.start(BUSY, own, 2)
        module, daemon = forks.process("module"), forks.process("daemon")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.0)
        process.terminate()
        assert process.wait() == -signal.SIGKILL
        process.terminate()  # it may have ended by now
        process.kill()
    assert has_ended(module)
    assert has_ended(daemon)


def test_a_killed_guard_ends_the_module_and_its_mark_finds_the_rest(forks: Forks) -> None:
    with temporary_folder() as own:
        process = forks.start(BUSY.replace("env={}, ", ""), own, 2)
        module, daemon = forks.process("module"), forks.process("daemon")
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert has_ended(module)
        assert end_run(own.name) == 1
    assert has_ended(daemon)


def test_a_killed_server_ends_its_forks_and_the_next_run_gets_another(forks: Forks) -> None:
    with temporary_folder() as own:
        process = forks.start(BUSY, own, 2)
        module, daemon = forks.process("module"), forks.process("daemon")
        module.parent().parent().kill()  # above the guard
        assert process.wait() != 0
    assert has_ended(module)
    assert has_ended(daemon)
    above = "import psutil; print('warm.py' in str(psutil.Process().parent().parent().cmdline()))"
    assert forks.end(above) == (0, "False\n"), "nobody knew of it yet"
    assert forks.end(above) == (0, "True\n")


def test_everything_ends_with_the_process_that_started_it(forks: Forks) -> None:
    """Also if that is killed."""
    above = f"""
import sys
from contextlib import closing
from pathlib import Path
sys.path[:0] = {[str(Path(each).parent) for each in (__file__, endings.__file__)]!r}
from harness.core.owner import temporary_folder
from harness.execution.starter import Starter
from test_starter import BUSY, Forks
with closing(Starter()) as starter, temporary_folder() as own:
    Forks(Path({str(forks.folder)!r}), starter).start(BUSY, own, 2).wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", above])
    module, daemon = forks.process("module"), forks.process("daemon")
    server = module.parent().parent()
    assert server.ppid() == parent.pid
    parent.kill()
    parent.wait()
    assert all(map(has_ended, (server, module, daemon)))


@pytest.mark.parametrize(
    "torch",
    [
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "kept = open(__file__)",
        "raise ImportError('broken')",
        "import os; os._exit(1)",
    ],
)
def test_a_process_that_must_not_be_forked_is_not(forks: Forks, torch: str) -> None:
    forks.torch(torch)
    assert forks.end("import sys; sys.exit(4)", fork=False)[0] == 4


def test_a_library_that_takes_its_threads_back_before_a_fork_may_have_had_some(forks: Forks) -> None:
    """As OpenBLAS does."""
    forks.torch(
        "import os, threading\n"
        "end = threading.Event()\n"
        "started = threading.Thread(target=end.wait)\n"
        "started.start()\n"
        "os.register_at_fork(before=lambda: (end.set(), started.join()))\n"
    )
    assert forks.end("import sys; sys.exit(4)")[0] == 4


def test_environments_have_servers_of_their_own(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library reads variables when it loads."""
    forks.torch("import os\nseen = os.environ.get('OMP_NUM_THREADS')")
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert forks.end("import torch; print(torch.seen, os.getppid() > 0)")[1] == f"{threads} True\n"


def test_a_closed_starter_leaves_nothing(forks: Forks) -> None:
    with temporary_folder() as own:
        forks.start(BUSY, own, 2)
        module, daemon = forks.process("module"), forks.process("daemon")
        server = module.parent().parent()
        forks.starter.close()
        assert all(map(has_ended, (server, module, daemon)))
    mine = f"qharness-{current_owner()}-"
    assert not [each for each in Path(os.environ.get("TMPDIR", "/tmp")).glob(f"{mine}*") if (each / "t").exists()]
