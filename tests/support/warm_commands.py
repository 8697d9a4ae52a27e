"""``qharness run`` commands that need not import anything anew: each is forked from a process that imported it all.

A command is a process and a session of its own, and the parent of its workers, which it forks from itself: so they die
with it as they do for users. Everything that loses its parent becomes a child of the server, which thus sees whatever a
command leaves behind. ``cold=True`` starts the command as users do.

As a script this file is the server.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, NoReturn

from command_line import COMMAND
from warm_workers import MESSAGE_BYTES, OF_TRANSFORMERS, PR_SET_PDEATHSIG, WORKER, fill_caches, import_shared, work

OF_COMMANDS = (
    "harness.api.run",
    "harness.cli.app",
    "harness.cli.render.events",
    "harness.cli.render.sweep",
    "harness.execution.worker",
)
PR_SET_CHILD_SUBREAPER = 36
START = "QHARNESS_START"


class Command:
    """A running ``qharness`` command."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self._ended = ended
        self._code: int | None = None

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        if self._code is None:
            answer = os.read(self._ended, 16)
            os.close(self._ended)
            if not answer:
                raise RuntimeError("the process that commands are forked from is gone")
            self._code = int(answer)
        return self._code


class Commands:
    """Starts ``qharness`` commands. ``preload`` names shared libraries that every process of theirs is to load."""

    def __init__(self, pythonpath: Sequence[Path], preload: Sequence[Path] = ()) -> None:
        from harness.execution.local import ENVIRONMENT

        self.variables = {
            **os.environ,
            START: "spawn",  # forked from here, with all that is patched here
            "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parent, *pythonpath])),
            **({"LD_PRELOAD": " ".join(map(str, preload))} if preload else {}),
        }
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**self.variables, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The server, whose descendants are the commands, their workers and all that these left behind."""
        return self._process.pid

    def start(
        self,
        arguments: Iterable[object],
        output: IO[bytes],
        variables: Mapping[str, str],
        cold: bool = False,
        cgroup: Path | None = None,
    ) -> Command:
        """``qharness`` with these arguments. ``variables`` are added to the environment; ``cgroup`` is one to join."""
        ended, tell = os.pipe()
        request = {
            "arguments": [str(each) for each in arguments],
            "variables": {**self.variables, **({START: ""} if cold else {}), **variables},
            "cold": cold,
            "cgroup": str(cgroup) if cgroup else None,
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], [output.fileno(), tell])
        os.close(tell)
        answer = self._socket.recv(16)
        if not answer:
            raise RuntimeError("the process that commands are forked from is gone")
        return Command(int(answer), ended)

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


class _Popen:
    """As much of ``subprocess.Popen`` as the harness uses to start a worker: this process, forked."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        pass_fds: Sequence[int],
        start_new_session: bool,
        env: Mapping[str, str],
    ) -> None:
        assert (stdin, stderr, start_new_session) == (subprocess.DEVNULL, subprocess.STDOUT, True)
        Path(command[0]).stat()  # raises what starting it would raise
        (events,) = pass_fds
        self.returncode: int | None = None
        self._waiting = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            atexit._clear()  # the parent's temporary folders are not this process's to remove
            os.setsid()
            _close_all_but({stdout, events})
            os.environ.clear()
            os.environ.update(env)
            tempfile.tempdir = None
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
            guard, _, *arguments, _ = command[1:]
            request = {"guard": guard, "arguments": arguments, "own": {}, "folder": str(Path.cwd())}
            work(request, stdout, events)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutExpired. The thread that waits without a limit may be another."""
        if timeout is not None:
            deadline = time.monotonic() + timeout
            while self._is_running():
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(["worker"], timeout)
                time.sleep(0.002)
            return 0
        with self._waiting:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._is_running():
            os.kill(self.pid, number)

    def _is_running(self) -> bool:
        if self.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor closes before it is used
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue


def _start_worker(command: Sequence[str], **options: object) -> object:
    """A fork of this process if it is a worker of this interpreter, by whatever name, that is to be started."""
    own = os.path.realpath(command[0]) == os.path.realpath(sys.executable)
    if own and WORKER in command:
        return _Popen(command, **options)  # type: ignore[arg-type]
    return subprocess.Popen(command, **options)  # type: ignore[call-overload]


class _Server:
    """Starts a command for each request, and reaps every process that ends below it."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._started = threading.Lock()
        self._some = threading.Event()
        self._tell: dict[int, int] = {}

    def serve(self) -> None:
        threading.Thread(target=self._reap, daemon=True).start()
        while True:
            message, descriptors, *_ = socket.recv_fds(self._requests, MESSAGE_BYTES, 2)
            if not message:
                return
            output, tell = descriptors
            request = json.loads(message)
            with self._started:
                pid = os.fork()
                if pid == 0:
                    self._requests.close()
                    _command(request, output)
                self._tell[pid] = tell
                self._some.set()
            os.close(output)
            self._requests.send(str(pid).encode())

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                self._some.wait()
                self._some.clear()
                continue
            with self._started:
                tell = self._tell.pop(pid, None)
            if tell is not None:
                os.write(tell, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(tell)


def _command(request: dict[str, object], output: int) -> NoReturn:
    """What ``qharness ARGUMENTS`` does, in this process, to its end."""
    code = 1
    try:
        os.setsid()
        for each in (1, 2):
            os.dup2(output, each)
        _close_all_but(set())
        cgroup, variables, arguments = request["cgroup"], request["variables"], request["arguments"]
        assert isinstance(variables, dict)
        assert isinstance(arguments, list)
        if cgroup is not None:
            Path(str(cgroup), "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        os.environ.clear()
        os.environ.update(variables)
        tempfile.tempdir = None
        if request["cold"]:
            os.execv(COMMAND[0], [*COMMAND, *arguments])
        from harness.cli import main

        sys.argv = ["qharness", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as an interpreter does with what nothing catches
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(descriptor: int) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    import_shared((*OF_TRANSFORMERS, *OF_COMMANDS))
    fill_caches()
    starter = import_module("harness.execution.starter")
    starter.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _start_worker})  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()  # forks share these objects' pages
    _Server(socket.socket(fileno=descriptor)).serve()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
