"""Workers that need not import torch anew: each is forked from a process that has imported it and done nothing else.

A worker of the tiny model spends most of its seconds on imports. Here one server for each interpreter and environment
imports what all workers import; servers forked from it import in steps what transformers' runs, tasks and some
libraries import as well. Each run is a fork of one: still a process and a group of its own, which starts with the
environment, the folder, the files and the arguments that the harness gave. ``qharness run`` as a command, which many
tests start, runs workers as users have them.

As a script this file is the server; it stands on the standard library alone, since other interpreters run it too.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import NoReturn

WORKER, SIMULATED = "harness.execution.worker", "cuda_worker"
OURS = "QHARNESS_"
OF_A_RUN = {
    WORKER: ("PYTHONPATH", "TMPDIR", "TMP", "TEMP"),
    SIMULATED: ("PYTHONPATH", "TMPDIR", "TMP", "TEMP", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"),
}
"""The variables that differ from run to run, and all of the harness's own. A fork gets them, the server does not."""
IMPORTED = (
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "numpy",
    "scipy.optimize",
    "safetensors.torch",
    "tokenizers",
    "accelerate",
    "pydantic",
    "transformers.utils",
)
"""What every worker imports sooner or later, whatever it does; where one is not installed, it is left out.

No part of transformers that asks which packages may be used: the harness answers that for each run.
"""
OF_TRANSFORMERS = (
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "pyarrow.parquet",
    "filelock",
    "harness.engines.transformers.engine",
    "harness.execution.jobs.quality",
    "harness.execution.jobs.quantize",
    "harness.execution.jobs.reference",
    "harness.storage.store",
)
"""What runs of a transformers model import besides, which need none of the packages that it may use."""
STEPS = {
    "transformers": OF_TRANSFORMERS,
    "lm-eval": ("lm_eval.evaluator", "lm_eval.tasks", "harness.tasks.evaluate", "harness.tasks.lm"),
    "bitsandbytes": ("bitsandbytes", "transformers.quantizers.quantizer_bnb_4bit"),
}
"""What runs import one step after another. The first is about transformers' models, the others about packages."""
MESSAGE_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1


class Workers:
    """Starts workers in place of ``subprocess.Popen``, which everything else that is to be started still gets."""

    def __init__(self) -> None:
        self._servers: dict[tuple[str, frozenset[tuple[str, str]], tuple[str, ...]], _Server] = {}
        self._lock = threading.Lock()  # runs on several GPUs are started by several threads
        self._starter = ThreadPoolExecutor(1)  # a server ends with the thread that started it

    def start(self, command: Sequence[str], **options: object) -> Worker | subprocess.Popen[bytes]:
        module = next((name for name in OF_A_RUN if name in command), None)
        if module is None:
            return subprocess.Popen(command, **options)  # type: ignore[call-overload,no-any-return]
        return self._fork(command, OF_A_RUN[module], **options)  # type: ignore[arg-type]

    def _fork(
        self,
        command: Sequence[str],
        of_a_run: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        pass_fds: Sequence[int],
        start_new_session: bool,
        env: Mapping[str, str],
    ) -> Worker:
        assert (stdin, stderr, start_new_session) == (subprocess.DEVNULL, subprocess.STDOUT, True)
        python, guard, parent, *arguments = command
        arguments, last = arguments[: -len(pass_fds)], arguments[-len(pass_fds) :]
        assert (parent, last) == (str(os.getpid()), list(map(str, pass_fds)))
        own = {name: value for name, value in env.items() if name in of_a_run or name.startswith(OURS)}
        variables = {name: value for name, value in env.items() if name not in own}
        steps = _steps(Path(arguments[1])) if python == sys.executable else ()
        if arguments[0] == SIMULATED:
            steps = steps[:1]  # libraries ask for a GPU when they are imported
        with self._lock:
            server = self._server(python, variables, steps)
            return server.fork(guard, arguments, own, [stdout, *pass_fds])

    def _server(self, python: str, variables: Mapping[str, str], steps: tuple[str, ...]) -> _Server:
        """The one that has taken these steps, forked from the one that has taken all but the last."""
        key = (python, frozenset(variables.items()), steps)
        if key not in self._servers:
            *before, last = steps or ("",)
            self._servers[key] = (
                self._server(python, variables, tuple(before)).step(last)
                if steps
                else self._starter.submit(_start, python, variables).result()
            )
        return self._servers[key]

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that workers are forked from."""
        return tuple(server.pid for server in self._servers.values())

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._starter.shutdown()


class Worker:
    """As much of ``subprocess.Popen`` as the harness uses."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self._ended = ended
        self._code: int | None = None
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutExpired. The thread that waits without a limit may be another."""
        with self._lock if timeout is None else nullcontext():
            ready = self._code is not None or bool(select.select([self._ended], [], [], timeout)[0])
            if not ready:
                raise subprocess.TimeoutExpired(["worker"], timeout or 0)
            if timeout is None and self._code is None:
                self._code = int(os.read(self._ended, 16))
        return self._code or 0

    def __del__(self) -> None:
        os.close(self._ended)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._code is None and not select.select([self._ended], [], [], 0)[0]:
            os.kill(self.pid, number)


class _Server:
    """This side of a server. A process that is forked from one ends with it."""

    def __init__(self, requests: socket.socket, pid: int) -> None:
        self._socket = requests
        self.pid = pid

    def step(self, name: str) -> _Server:
        """A server that takes this step too."""
        ours, theirs = socket.socketpair()
        with theirs:
            return _Server(ours, self._ask({"step": name}, [theirs.fileno()]))

    def fork(self, guard: str, arguments: list[str], own: Mapping[str, str], given: list[int]) -> Worker:
        ended, tell = os.pipe()
        request = {"guard": guard, "arguments": arguments, "own": own, "folder": str(Path.cwd())}
        pid = self._ask(request, [tell, *given])
        os.close(tell)
        return Worker(pid, ended)

    def _ask(self, request: Mapping[str, object], given: list[int]) -> int:
        """The process that was forked."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], given)
        answer = self._socket.recv(16)
        if not answer:
            raise RuntimeError("the process that workers are forked from is gone")
        return int(answer)

    def close(self) -> None:
        self._socket.close()


class _First(_Server):
    """A server that was forked from none."""

    def __init__(self, requests: socket.socket, process: subprocess.Popen[bytes]) -> None:
        super().__init__(requests, process.pid)
        self._process = process

    def close(self) -> None:
        super().close()
        self._process.kill()
        self._process.wait()


def _start(python: str, variables: Mapping[str, str]) -> _First:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [python, __file__, str(theirs.fileno())],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return _First(ours, process)


def _steps(spec: Path) -> tuple[str, ...]:
    """The STEPS of a run, in their order. None if another engine loads its model, or transformers with more packages.

    transformers asks once which packages may be used: the harness answers that for each run.
    """
    from harness.core.run import RunSpec
    from harness.execution.preload import steps
    from harness.storage.json_codec import decode

    read = decode(RunSpec, json.loads(spec.read_text(encoding="utf-8")), spec.name)
    taken = steps(read)
    if taken and taken[0] != ("engine", ("transformers",)):
        return ()
    libraries = [library for name, about in taken if name == "method" for library in about]
    return (
        "transformers",
        *(["lm-eval"] if read.kind == "task" else []),
        *(each for each in libraries if each in STEPS),
    )


def import_shared(also: Sequence[str] = ()) -> None:
    """Imports what every worker imports, where it is installed, and what runs of transformers import ``also``."""
    _import_installed(IMPORTED)
    if also:
        from harness.execution.import_guard import skip_unused_imports

        skip_unused_imports(())
    for name in also:
        import_module(name)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _import_installed(names: Sequence[str]) -> None:
    for name in names:
        try:
            import_module(name)
        except ImportError:
            continue


def _take(step: str) -> None:
    if step == "transformers":
        import_shared(STEPS[step])
        fill_caches()
    else:
        _import_installed(STEPS[step])


def fill_caches() -> None:
    """Makes what every run of transformers makes once for its process: the readers of its files, and the patterns of
    the names that weights have in checkpoints."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from harness.core.inputs import Input
    from harness.core.record import Outcome
    from harness.core.run import RunSpec
    from harness.storage import json_codec

    for read in (RunSpec, tuple[Input, ...], Outcome):
        json_codec._validator(read)
    get_checkpoint_conversion_mapping("llama")


def _serve(requests: socket.socket) -> NoReturn:
    """Forks a worker for each request, tells its process id and, when it has ended, its exit code; or forks a server
    that takes a step more.
    """
    gc.collect()
    gc.freeze()  # forks share these objects' pages
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, MESSAGE_BYTES, 4)
        if not message:
            os._exit(0)
        request = json.loads(message)
        tell, *given = descriptors
        pid = os.fork()
        if pid == 0:
            requests.close()
            if "step" in request:
                _end_with_parent()
                _take(request["step"])
                _serve(socket.socket(fileno=tell))
            os.close(tell)
            os.setpgid(0, 0)
            work(request, *given)
        if "step" in request:
            os.close(tell)
        else:
            os.setpgid(pid, pid)
            threading.Thread(target=_tell_end, args=(pid, tell), daemon=True).start()
        for each in given:
            os.close(each)
        requests.send(str(pid).encode())


def _tell_end(pid: int, tell: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(tell, str(code).encode())
    os.close(tell)


def work(request: dict[str, object], log: int, *others: int) -> NoReturn:
    """What the guard and then the worker do, in this process and in a fork of it, to their end."""
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.chdir(str(request["folder"]))
        own = request["own"]
        assert isinstance(own, dict)
        os.environ.update(own)
        tempfile.tempdir = None  # found out anew
        if "PYTHONPATH" in own:
            sys.path[:0] = own["PYTHONPATH"].split(os.pathsep)
        guard, arguments = str(request["guard"]), request["arguments"]
        assert isinstance(arguments, list)
        sys.argv = [guard, str(os.getppid()), *arguments, *map(str, others)]
        runpy.run_path(guard, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - as an interpreter does with what nothing catches
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _end_with_parent()
    import_shared()
    _serve(socket.socket(fileno=int(sys.argv[1])))
