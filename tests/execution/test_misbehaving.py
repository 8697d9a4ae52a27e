"""Whatever a library leaves behind in a worker, its run ends as a record that says what happened.

The worker is the real one; a job of the tests takes the place of one that loads a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_specs import run_spec
from thorough import all_thorough_but

from harness.core.owner import owner_in
from harness.core.record import Failure, Outcome
from harness.execution import local
from harness.execution.local import LocalExecutor, local_site
from harness.execution.worker import MAX_MESSAGE_CHARACTERS, clip
from harness.storage.json_codec import encode

pytestmark = pytest.mark.heavy

WORKER = """
import ctypes, os, resource, runpy, signal, sys, threading, time, types

class OddText(Exception):
    def __str__(self):
        raise SystemExit

class Ending(BaseException):
    pass

def misbehave(job, context, out):
    with context.phase("library"):
{body}

job = types.ModuleType("harness.execution.jobs.quality")
job.run = misbehave
sys.modules[job.__name__] = job
runpy.run_module("harness.execution.worker", run_name="__main__", alter_sys=True)
"""
USE_UP_DESCRIPTORS = """
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
kept = []
while True:
    kept.append(os.open("/dev/null", os.O_RDONLY))
"""
LEAVE_A_MESS = """
os.closerange(0, 3)
sys.stdout = sys.stderr = None
sys.excepthook = lambda *_: os._exit(9)
os.mkdir("gone-" + str(os.getpid())); os.chdir("gone-" + str(os.getpid())); os.rmdir(os.getcwd())
os.umask(0o777)
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(each, signal.SIG_IGN)
threading.Thread(target=time.sleep, args=[600]).start()
"""
CASES = {
    "sys.exit": ("sys.exit(3)", "failed", "SystemExit", "a library ended the process: sys.exit(3)"),
    "base": ("raise Ending('now')", "failed", "Ending", "now"),
    "odd text": ("raise OddText", "failed", "OddText", "its text cannot be read: SystemExit"),
    "descriptors": (USE_UP_DESCRIPTORS, "failed", "OSError", "[Errno 24] Too many open files"),
    "surrogate in a note": (
        "context.note('said', '\\ud800')",
        "invalid",
        "UnicodeEncodeError",
        "the run's figures cannot be written: 'utf-8' codec can't encode",
    ),
    "too many values": (
        "import harness.storage.evidence\n"
        "from harness.core.record import Measurement\n"
        "harness.storage.evidence.MAX_ROWS = 300\n"
        "values = tuple(map(float, range(301)))\n"
        "context.add([Measurement('one', 1, 's', 'lower', 'exact', (1.0,))])\n"
        "context.add([Measurement('many', 1, 's', 'lower', 'samples', values)])",
        "invalid",
        "ValueError",
        "the run's figures cannot be written: 301 values are more than 300, the most that a record may have; 301 of "
        "them are of many",
    ),
    "mess and error": (LEAVE_A_MESS + "raise RuntimeError('after all')", "failed", "RuntimeError", "after all"),
}


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(local, "WORKER", "odd_job")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)

        def run(code: str) -> tuple[Outcome, bytes]:
            body = "".join(f"        {line}\n" for line in code.strip().splitlines())
            (tmp_path / "odd_job.py").write_text(WORKER.format(body=body), encoding="utf-8")
            return LocalExecutor(local_site(tmp_path / "cache")).run(run_spec("quality"), [], lambda phase: None)

        yield run
        assert not [path for path in Path(folder).iterdir() if owner_in(path.name)]


FEW = [CASES[name] for name in ("sys.exit", "descriptors", "mess and error")]


@pytest.mark.parametrize(("code", "status", "kind", "message"), all_thorough_but(FEW, CASES.values()), ids=CASES)
def test_whatever_a_library_raises_is_a_record(execute, code: str, status: str, kind: str, message: str) -> None:
    outcome, log = execute(code)
    failure = outcome.failure
    assert (outcome.status, failure.type, failure.phase) == (status, kind, "library"), (failure, log)
    assert failure.message.startswith(message)
    encode(outcome).encode("utf-8")  # it can be saved
    assert [m.metric for m in outcome.measurements if m.metric in ("one", "many")] == (
        ["one"] * ("301 values" in message)
    )
    if status == "failed":
        assert b"misbehave" in log  # the traceback, also where the library closed the log


def test_a_run_that_leaves_a_mess_counts_all_the_same(execute) -> None:
    """Closed files, a working folder that is gone, a thread that never ends, a mask that denies everything."""
    outcome, _ = execute(LEAVE_A_MESS)
    assert outcome.status == "ok", outcome.failure
    assert [phase.name for phase in outcome.phases] == ["library"]


def test_what_c_code_prints_is_in_the_log(execute) -> None:
    """The C library buffers what goes into a pipe."""
    outcome, log = execute("ctypes.CDLL(None).printf(b'from C')")
    assert (outcome.status, log) == ("ok", b"from C")


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = clip("begin" + "x" * 10**7 + "end")
    assert text.startswith("beginxxx")
    assert text.endswith("xxxend")
    assert len(text) < MAX_MESSAGE_CHARACTERS + 50
    assert clip("short") == "short"


def test_a_failure_is_whole_whatever_its_text() -> None:
    assert Failure("p", clip("T\ud800"), clip("\udfff")) == Failure("p", "T\\ud800", "\\udfff")
