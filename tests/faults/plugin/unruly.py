"""A method that rounds to 8 bits, and first does what libraries should not. ``QHARNESS_FAULT`` says what, if anything.

The fault is no parameter, so that the figures of a disturbed sweep and of an undisturbed one are those of the same
runs.
"""

import locale
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.core.method import Method, MethodParams, QuantizeJob

FAULT, GO, BYTES = "QHARNESS_FAULT", "QHARNESS_FAULT_GO", "QHARNESS_FAULT_BYTES"
BALLAST = ".ballast-"
A_LONG_TIME_S = 600
CHUNK_BYTES = 2**20


class UnrulyParams(MethodParams):
    """None."""


def wait() -> None:
    """Waits until the file that ``QHARNESS_FAULT_GO`` names exists."""
    while not Path(os.environ[GO]).exists():
        time.sleep(0.002)


def hang() -> None:
    time.sleep(A_LONG_TIME_S)


def hang_deaf() -> None:
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    hang()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(0)


def leave_politely() -> None:
    sys.exit(0)


def print_on_stdout() -> None:
    print('{"event": "ended", "status": "ok"}', flush=True)
    os.write(1, b"\xff\xfe\x00\x1b[2J\r\n" * 100)
    os.write(2, "\N{SNOWMAN}".encode())


def flood() -> None:
    for _ in range(int(os.environ[BYTES]) // CHUNK_BYTES):
        os.write(1, b"x" * (CHUNK_BYTES - 1) + b"\n")


def start_daemon(keep_files: bool = False) -> None:
    """A process in a session of its own, whose parent has ended."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            if not keep_files:
                os.closerange(0, 256)
            hang()
        os._exit(0)
    os.waitpid(child, 0)


def start_daemon_with_files() -> None:
    start_daemon(keep_files=True)


def change_locale() -> None:
    for name in ("de_DE.UTF-8", "tr_TR.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_ALL, name)
        except locale.Error:
            continue
        break
    os.environ["LC_ALL"] = "tr_TR.UTF-8"
    os.chdir("/")


def close_files() -> None:
    os.closerange(0, 256)


def allocate() -> None:
    """Asks for memory without touching it, until there is none."""
    import torch

    kept = []
    while True:
        kept.append(torch.empty(2**28, dtype=torch.uint8))


def fill_memory() -> None:
    """Touches more and more memory."""
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1) * 2**23))


def crowd_states() -> None:
    """The states of a streamed model all wait on disk, and the disk of the temporary folder is nearly full."""
    import harness.execution.context as contexts

    contexts.STATES_SHARE = 0.0
    disk = os.statvfs(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(prefix=BALLAST, delete=False) as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - int(os.environ[BYTES]))


def slow_disk() -> None:
    """A streamed model's disk takes a long time for each tensor, as its reader has it."""
    from harness.models.streaming.reading import CheckpointReader

    read = CheckpointReader.read

    def slowly(reader: CheckpointReader, name: str) -> Any:
        reader.read_s += A_LONG_TIME_S
        return read(reader, name)

    CheckpointReader.read = slowly  # type: ignore[method-assign]


WHILE_LOADING: dict[str, Callable[[], None]] = {each.__name__: each for each in (crowd_states, slow_disk)}
FAULTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        *(wait, hang, hang_deaf, die, leave, leave_politely, print_on_stdout, flood),
        *(start_daemon, start_daemon_with_files, change_locale, close_files, allocate, fill_memory),
    )
}


def quantize(job: QuantizeJob[UnrulyParams]) -> Any:
    from harness.methods.rtn.rtn import RTN, RtnParams

    RTN.enable()
    fault = os.environ.get(FAULT)
    if fault:
        FAULTS[fault]()
    rtn = RtnParams(bits=8, group_size=32)
    return RTN.quantize(QuantizeJob(rtn, job.source, job.out, job.device, job.dtype, job.seed, job.load))


def enable() -> None:
    from harness.methods.rtn.rtn import RTN

    RTN.enable()
    if fault := WHILE_LOADING.get(os.environ.get(FAULT, "")):
        fault()


UNRULY = Method(
    name="unruly",
    version=1,
    summary="rounds, unruly",
    params=UnrulyParams,
    quantize=quantize,
    enable=enable,
    streams=True,
)
