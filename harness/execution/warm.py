"""A warm server: a process that has imported what runs import, and done nothing else, serves forks of itself.

``python .../warm.py PARENT_PID SOCKET`` imports what every worker imports, and then answers requests that come with
descriptors over a Unix socket, one message each:

- ``step`` makes a fork import what a step of a run is about (``preload.py``) and serve its own forks over another
  socket, so that runs with equal first steps share what these import;
- ``run`` makes a fork a guard (``guard.py``), which forks the worker.

A fork inherits what the process had: threads do not survive, and devices and files that were opened would be shared. So
before each fork a server makes sure that it has one thread and has opened nothing; otherwise it refuses, and the run
starts from an earlier step, or without a server (``starter.py``).

A server ends with its parent, and so do the guards that it forked, with all that is below them. It stands on the
standard library until it imports what workers do.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import re
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from harness.execution import guard

MESSAGE_BYTES = 1 << 17
MAX_DESCRIPTORS = 4
EVERY_WORKER = ("torch", "transformers.utils", "harness.execution.preload")
MARKER = "QHARNESS_OWNER"  # as in host/process.py, which not every stack can import
MADV_POPULATE_READ = 22  # madvise(2)
_Pages = Sequence[tuple[int, int]]
"""Addresses and sizes in bytes."""


def main(parent: str, descriptor: str) -> None:
    guard.end_with_parent(signal.SIGKILL, int(parent))
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent decides when it ends
        signal.signal(number, signal.SIG_IGN)
    mark = _Mark()
    requests = socket.socket(fileno=int(descriptor))
    server = _Server(requests, mark)
    server.answer(server.prepare(_import_every_workers))
    server.serve()


class _Mark:
    """The variable in this process's environment that names its owner, as other processes see it.

    They read the memory that the process started with (``/proc/PID/environ``), which a fork has copied.
    """

    def __init__(self) -> None:
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_void_p
        self._address = getenv(MARKER.encode())
        self._length = len(os.environb[MARKER.encode()])

    def set(self, value: str) -> None:
        """Raises ValueError for a value of another length."""
        written = value.encode()
        if len(written) != self._length:
            raise ValueError(f"{MARKER} has room for {self._length} bytes: {value!r}")
        ctypes.memmove(self._address, written, self._length)
        os.environ[MARKER] = value


class _Server:
    def __init__(self, requests: socket.socket, mark: _Mark) -> None:
        self._requests, self._mark = requests, mark
        self._mapped: _Pages = ()
        self._forks: dict[int, tuple[int, int | None]] = {}
        """By a descriptor that refers to the process: its number, and the pipe for its exit code."""

    def prepare(self, imports: Callable[[], None]) -> str | None:
        """Imports, and returns why no run can be forked from what this process now is; None if it can."""
        try:
            imports()
            self._mapped = _mapped()
        except Exception as error:  # noqa: BLE001 - the run itself will record it
            return f"{type(error).__name__}: {error}"[:1000]
        _fork_for_nothing()
        gc.collect()
        gc.freeze()  # or the first collection of every fork would copy all these objects' pages
        return self._unfit()

    def answer(self, refused: str | None, descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self._requests, [json.dumps({"refused": refused}).encode()], descriptors)

    def serve(self) -> None:
        """Until the parent closes its end of the socket."""
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor != self._requests.fileno():
                    poll.unregister(descriptor)
                    self._report_end(descriptor)
                    continue
                message, given, *_ = socket.recv_fds(self._requests, MESSAGE_BYTES, MAX_DESCRIPTORS)
                if not message:
                    return
                process = self._fork(json.loads(message), given)
                if process is not None:
                    poll.register(process, select.POLLIN)

    def _fork(self, request: dict[str, Any], given: list[int]) -> int | None:
        """Answers a request. Returns the descriptor of the new process, unless it is refused."""
        server, refused = os.getpid(), self._unfit(given)
        if refused is None:
            try:
                pid = os.fork()
            except OSError as error:
                refused = str(error)
        if refused is not None:
            self.answer(refused)
            _close(given)
            return None
        if pid == 0:
            self._requests.detach()
            _end_as(
                lambda: (_serve_step if request["kind"] == "step" else _run)(
                    request, given, server, self._mark, self._mapped
                )
            )
        process = os.pidfd_open(pid)
        ended = given[0] if request["kind"] == "run" else None
        self._forks[process] = pid, ended
        _close(each for each in given if each != ended)
        self.answer(None, [process])
        return process

    def _report_end(self, process: int) -> None:
        """Reaps a fork that has ended, and says how."""
        pid, ended = self._forks.pop(process)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ended is not None:
            with suppress(BrokenPipeError):
                os.write(ended, str(code).encode())
        _close([process] if ended is None else [process, ended])

    def _unfit(self, given: Sequence[int] = ()) -> str | None:
        """Why this process cannot be forked; None if it can."""
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads > 1:
            return f"it has {threads} threads"
        ends = (ended for _, ended in self._forks.values() if ended is not None)
        own = {0, 1, 2, self._requests.fileno(), *self._forks, *ends, *given}
        opened = [name for number in _descriptors() - own if (name := _name(number)) is not None]
        return f"it has opened {', '.join(opened)}" if opened else None


def _import_every_workers() -> None:
    for name in EVERY_WORKER:
        __import__(name)


def _fork_for_nothing() -> None:
    """Has libraries that prepare for a fork (pthread_atfork) do so: OpenBLAS ends its threads, and starts new ones only
    when it needs them."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _serve_step(request: Mapping[str, Any], given: Sequence[int], parent: int, mark: _Mark, mapped: _Pages) -> None:
    """Imports a step and serves forks of that."""
    guard.end_with_parent(signal.SIGKILL, parent)
    _close_all_but({0, 1, 2, *given})
    _map(mapped)
    server = _Server(socket.socket(fileno=given[0]), mark)
    refused = server.prepare(lambda: _take(request))
    server.answer(refused)
    if refused is None:
        server.serve()


def _take(request: Mapping[str, Any]) -> None:
    from harness.core.run import RunSpec
    from harness.execution.preload import take
    from harness.storage.cache import Cache
    from harness.storage.json_codec import decode

    path = Path(request["spec"])
    take(
        request["step"],
        decode(RunSpec, json.loads(path.read_text(encoding="utf-8")), path.name),
        Cache(Path(request["cache"])),
    )


def _run(request: Mapping[str, Any], given: Sequence[int], parent: int, mark: _Mark, mapped: _Pages) -> None:
    """What ``python guard.py …`` does in the given environment and folder, with the log as its output."""
    _, log, *others = given
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for standard in (1, 2):
        os.dup2(log, standard)
    _close_all_but({0, 1, 2, *others})
    os.chdir(request["folder"])
    variables = dict(request["variables"])
    mark.set(variables[MARKER])
    os.environ.update(variables)
    tempfile.tempdir = None  # looked up anew
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # the random module does that itself

    def run() -> None:
        _map(mapped)
        guard.run_module(request["module"], [*request["arguments"], *map(str, others)])

    guard.watch(parent, run)


def _mapped() -> _Pages:
    """The pages of mapped files that this process has used."""
    page = os.sysconf("SC_PAGE_SIZE")
    pages: list[tuple[int, int]] = []
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            ends, permissions, _, _, inode, *_ = line.split()
            if inode == "0" or not permissions.startswith("r"):
                continue
            first, end = (int(each, 16) for each in ends.split("-"))
            pagemap.seek(first // page * 8)
            entries = pagemap.read((end - first) // page * 8)
            pages += [
                (first + found.start() * page, len(found[0]) * page)
                for found in re.finditer(rb"[\x80-\xff]+", entries[7::8])  # bit 63: the page is present
            ]
    return pages


def _map(pages: _Pages) -> None:
    """Maps pages of files as another process has: a fork starts without them, and they would count as the memory that
    the run took when it first used them."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = os.sysconf("SC_PAGE_SIZE")
    for address, size in pages:
        if madvise(address, size, MADV_POPULATE_READ) != 0 and ctypes.get_errno() == errno.EINVAL:  # before Linux 5.14
            for each in range(address, address + size, page):
                ctypes.string_at(each, 1)


def _end_as(call: Callable[[], object]) -> NoReturn:
    """Ends this process with the call, as an interpreter ends with its program."""
    code = 1
    try:
        call()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as an interpreter does with what nothing catches
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _descriptors() -> set[int]:
    return {int(each.name) for each in Path("/proc/self/fd").iterdir()}


def _name(descriptor: int) -> str | None:
    """What an open descriptor refers to; None if it is not open any more, as that of the listing itself."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - not a path
    except OSError:
        return None


def _close_all_but(kept: set[int]) -> None:
    _close(_descriptors() - kept)


def _close(descriptors: Any) -> None:
    for each in descriptors:
        with suppress(OSError):  # the listing's own
            os.close(each)


if __name__ == "__main__":
    main(*sys.argv[1:])
