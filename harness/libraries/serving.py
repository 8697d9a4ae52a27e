"""A library's own server as a child process: started on loopback, waited for, and ended with all that it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from harness.errors import RunError, UnsupportedError
from harness.host.process import still_running

HOST = "127.0.0.1"
SERVED_NAME = "model"
"""What every server calls the variant, so that requests are the same bytes for all variants."""
LOG = "server.log"
TAIL_LINES, TAIL_CHARACTERS = 20, 2000
"""How much of the end of its log a message shows."""
START_S = 3600.0
"""How long a server may take to answer. Large models load for many minutes; a run may have a limit of its own."""
PAUSE_S = 0.1
GRACE_S = 20.0
"""How long a server may take to end after SIGTERM; then it is killed."""
KILLED_S = 10.0
_MEMORY_WORDS = ("out of memory", "allocate memory", "bad_alloc", "failed to allocate", "not enough memory")


def free_port() -> int:
    """A port of loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: Sequence[str], variables: Mapping[str, str], ready: str, folder: Path) -> Iterator[None]:
    """A server that runs inside this context, with its output in ``folder``'s LOG.

    It is entered when the URL ``ready`` answers with 200. ``variables`` are added to this process's. Raises
    UnsupportedError if the server ends before that (MemoryError if for want of memory), RunError if it does not answer
    in START_S or ends inside the context, each with the end of its log. On leaving, the server's process group and all
    that descends from it have ended.
    """
    log = folder / LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # in the session of the run, whose processor time counts that of its processes
            env={**os.environ, **variables},
        )
    server = psutil.Process(process.pid)  # while nothing can have reaped it, so that the number is its own
    family: list[psutil.Process] = []
    try:
        _wait(process, ready, log)
        family = _family(server)  # those of a server that ends by itself lose their parent
        try:
            yield
        except Exception as error:
            if process.poll() is not None:  # what the caller met follows from it
                raise RunError(_ended(process, log)) from error
            raise
        if process.poll() is not None:
            raise RunError(_ended(process, log))
    finally:
        _end(process, server, family)


def tail(log: Path) -> str:
    """The last lines of a log, in one line."""
    lines = log.read_bytes()[-4 * TAIL_CHARACTERS :].decode("utf-8", errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-TAIL_LINES:] if line.strip())[-TAIL_CHARACTERS:]


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    import urllib3

    deadline = time.monotonic() + START_S
    with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said = tail(log)
                if any(words in said.lower() for words in _MEMORY_WORDS):
                    raise MemoryError(said)
                raise UnsupportedError(f"its server does not start: {_how(process.returncode)}: {said}")
            with suppress(urllib3.exceptions.HTTPError):
                if pool.request("GET", ready).status == 200:
                    return
            time.sleep(PAUSE_S)
    raise RunError(f"its server did not answer {ready} in {START_S:.0f} s: {tail(log)}")


def _ended(process: subprocess.Popen[bytes], log: Path) -> str:
    return f"its server ended while it was measured: {_how(process.returncode)}: {tail(log)}"


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _family(server: psutil.Process) -> list[psutil.Process]:
    """The server and what descends from it now; none if it has ended."""
    with suppress(psutil.Error):
        return [server, *server.children(recursive=True)]
    return []


def _end(process: subprocess.Popen[bytes], server: psutil.Process, known: Sequence[psutil.Process]) -> None:
    """Ends the server's group, its descendants, some of which may have groups of their own, and those ``known``.

    While anything is left of the group its number is given to no other process. So a process that has the number and
    is not the server shows that the group has ended, and that the number is now another's.
    """
    family = list({*known, *_family(server)})
    for end, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, KILLED_S)):
        if server.is_running() or not psutil.pid_exists(server.pid):
            with suppress(ProcessLookupError):
                os.killpg(server.pid, end)
        for each in family:
            with suppress(psutil.Error):  # psutil makes sure that the number has not been given to another
                each.send_signal(end)
        family = still_running(family, patience_s)
    process.wait()
