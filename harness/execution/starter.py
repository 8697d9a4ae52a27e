"""How the process of a run starts: forked from a warm server (``warm.py``) where that is possible, else anew.

A fork need not import what a run imports, and that is nearly all that a small run takes. There is a server for each
interpreter and environment, because libraries read variables when they load, and below it one for each step of what
runs import (``preload.py``). A step that leaves a process unfit for forks is not tried again.

``QHARNESS_START=spawn`` starts every process anew; nothing or ``fork`` leaves it to this file.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.core.owner import temporary_folder
from harness.errors import UsageError
from harness.execution import guard, warm

if TYPE_CHECKING:
    from harness.execution.preload import Step

VARIABLE, SPAWN, FORK = "QHARNESS_START", "spawn", "fork"
GUARD, WARM = Path(guard.__file__), Path(warm.__file__)
IMPORT_PATIENCE_S = 300.0
"""How long a server may take to import."""


class Process(Protocol):
    """As much of ``subprocess.Popen`` as is needed. The thread that waits without a limit may be another."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or minus the signal that ended it. Raises subprocess.TimeoutExpired."""
        ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class Launch:
    """A module to run below a guard. ``folder`` is the run's own; ``variables`` makes the environment for a folder.

    ``arguments`` are followed by the numbers of the descriptors that the process is given.
    """

    python: str
    module: str
    arguments: tuple[str, ...]
    folder: Path
    variables: Callable[[Path], Mapping[str, str]]


@dataclass(frozen=True)
class Preloads:
    """The steps of what a run imports, and the files that say what these are."""

    steps: tuple[Step, ...]
    spec: Path
    cache: Path


class Starter:
    """Starts the processes of one executor, and owns the servers for them. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[object, _Slot] = {}
        self._folders = ExitStack()
        self._forks = forks()
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, "servers")  # a server ends with the thread that started it

    def prepare(self, launch: Launch, preloads: Preloads) -> Server | None:
        """The server that has imported the most of what a run needs, after waiting for it; None to start it anew."""
        if not self._forks:
            return None
        own = launch.variables(launch.folder)
        shared = frozenset((name, value) for name, value in own.items() if launch.folder.name not in value)
        slot = self._slot((launch.python, shared))
        server = None if self._stopped else slot.get(lambda: self._start_server(launch))
        for step in preloads.steps:
            if server is None:
                return None
            before, slot = server, server.slot(step)
            if self._stopped:
                return None
            server = slot.get(lambda: before.take(step, preloads)) or before  # noqa: B023 - called at once
        return server

    def start(self, launch: Launch, server: Server | None, log: int, given: Sequence[int]) -> Process:
        """A process with the descriptor ``log`` as its output. Raises OSError if none can be started."""
        variables = launch.variables(launch.folder)
        if server is not None:
            forked = server.fork(launch, variables, log, given)
            if forked is not None:
                return forked
        command = [launch.python, str(GUARD), str(os.getpid()), launch.module, *launch.arguments]
        return subprocess.Popen(
            [*command, *map(str, given)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=given,
            start_new_session=True,
            env=variables,
        )

    def stop(self) -> None:
        """Has no thread wait any longer for a server that imports. From then on ``prepare`` returns None."""
        self._stopped = True
        with self._lock:
            slots = list(self._servers.values())
        for slot in slots:
            slot.stop()

    def close(self) -> None:
        """Ends the servers, and all that was forked from them."""
        with self._lock:
            slots = list(self._servers.values())
            self._servers.clear()
        for slot in slots:
            slot.close()
        self._thread.shutdown()
        self._folders.close()

    def _slot(self, key: object) -> _Slot:
        with self._lock:
            return self._servers.setdefault(key, _Slot())

    def _start_server(self, launch: Launch) -> Server | None:
        with self._lock:
            folder = self._folders.enter_context(temporary_folder())
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [launch.python, str(WARM), str(os.getpid()), str(theirs.fileno())]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=launch.variables(folder),
            )

        with theirs:
            try:
                process = self._thread.submit(start).result()
            except (OSError, RuntimeError):  # no memory for it, or the starter is closed
                ours.close()
                return None
        return Server(ours, process)


class _Slot:
    """The place of a server that is made when it is first needed, by one thread, and at most once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = self._stopped = False
        self._server: Server | None = None
        self._past: list[Server] = []

    def get(self, make: Callable[[], Server | None]) -> Server | None:
        with self._lock:
            if self._server is not None and self._server.is_gone:
                self._past.append(self._server)  # other runs may still be forks of what is left of it
                self._made = False
            if not self._made:
                self._server = made = make()
                self._made = True
                if made is not None and (self._stopped or not made.has_prepared()):
                    made.close()
                    self._server = None
            return self._server

    def stop(self) -> None:
        """Ends the wait of the thread that makes a server here, or waits for a step of it."""
        self._stopped = True
        if (server := self._server) is not None:
            server.stop()

    def close(self) -> None:
        for server in (*self._past, self._server):
            if server is not None:
                server.close()


class Server:
    """This side of a server. One thread at a time talks to it.

    ``first`` is the server that has taken no step, from which this one descends; None if it is that itself. If a server
    is gone, whichever of those above it was killed, all are made again.
    """

    def __init__(
        self, requests: socket.socket, process: subprocess.Popen[bytes] | None = None, first: Server | None = None
    ) -> None:
        self.is_gone = True  # until it has answered
        self._first = first or self
        self._requests, self._process = requests, process
        self._talking = threading.Lock()
        self._lock = threading.Lock()
        self._steps: dict[Step, _Slot] = {}

    def has_prepared(self) -> bool:
        """Waits until it has imported what it is to import; returns whether runs can be forked from it."""
        self._requests.settimeout(IMPORT_PATIENCE_S)
        return self._receive() is not None

    def slot(self, step: Step) -> _Slot:
        with self._lock:
            return self._steps.setdefault(step, _Slot())

    def take(self, step: Step, preloads: Preloads) -> Server | None:
        """A server that takes this step, too; None if none can be forked."""
        name, _ = step
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = {"kind": "step", "step": name, "spec": str(preloads.spec), "cache": str(preloads.cache)}
            process = self._request(request, [theirs.fileno()])
        server = Server(ours, first=self._first)
        if process is not None:
            os.close(process)
            return server
        server.close()
        return None

    def fork(self, launch: Launch, variables: Mapping[str, str], log: int, given: Sequence[int]) -> Forked | None:
        """A process that begins as a fork of the server; None if it refuses, or has ended."""
        own = {name: value for name, value in variables.items() if launch.folder.name in value}
        request = {
            "kind": "run",
            "module": launch.module,
            "arguments": launch.arguments,
            "variables": own,
            "folder": str(Path.cwd()),
        }
        ended, tell = os.pipe()
        try:
            process = self._request(request, [tell, log, *given])
        finally:
            os.close(tell)
        if process is None:
            os.close(ended)
            return None
        return Forked(process, ended)

    def stop(self) -> None:
        """Has no thread wait any longer for what it imports, or for its steps."""
        if self.is_gone:
            with suppress(OSError):  # it is closed, or its other end is
                self._requests.shutdown(socket.SHUT_RDWR)
        with self._lock:
            slots = list(self._steps.values())
        for slot in slots:
            slot.stop()

    def close(self) -> None:
        with self._lock:
            for slot in self._steps.values():
                slot.close()
        self.is_gone = True
        self._requests.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _request(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> int | None:
        """The descriptor of the process that was forked; None if none was."""
        with self._talking:
            try:
                socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
                got = self._receive()
            except OSError:
                self.is_gone, got = True, None
        if self.is_gone:
            self._first.is_gone = True
        return got[0] if got else None

    def _receive(self) -> list[int] | None:
        """The descriptors of an answer; None if the server refuses, has ended, or does not answer in time."""
        try:
            message, descriptors, *_ = socket.recv_fds(self._requests, warm.MESSAGE_BYTES, 1)
        except OSError:
            message, descriptors = b"", []
        self.is_gone = not message
        return list(descriptors) if message and json.loads(message)["refused"] is None else None


class Forked:
    """A process that a server forked. ``process`` refers to it (pidfd_open(2)); its exit code comes through a pipe."""

    def __init__(self, process: int, ended: int) -> None:
        self._process, self._ended = process, ended
        self._lock = threading.Lock()
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(["worker"], timeout or 0)
        with self._lock:
            if self._code is None:  # without a code its server was killed, and the kernel has ended it as well
                self._code = int(os.read(self._ended, 16) or -signal.SIGKILL)
            return self._code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def __del__(self) -> None:
        os.close(self._process)
        os.close(self._ended)

    def _send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._process, number)
        except ProcessLookupError:  # it has ended
            return


def forks() -> bool:
    """Whether runs are forked: the user did not turn it off, and this system can watch a process that is not its child
    (Linux since 5.3). Raises UsageError if the variable has a value that means nothing."""
    chosen = os.environ.get(VARIABLE) or FORK
    if chosen not in (FORK, SPAWN):
        raise UsageError(f"{VARIABLE} is {chosen!r}: set it to {SPAWN!r} to start every run anew, or unset it")
    if sys.platform != "linux" or chosen == SPAWN:
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True
