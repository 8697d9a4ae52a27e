"""What the parent takes from a worker: its log, its phases and its outcome. All of it is foreign, and bounded.

A library in a worker may print without end, write anything into any pipe, or replace the outcome by something else.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness.core.record import Failure, Outcome
from harness.errors import ResultsError
from harness.execution.worker import RUN_ENDED, clip
from harness.storage import outcome_file

LOG_HEAD_BYTES = LOG_TAIL_BYTES = 4 << 20
"""How much of the beginning and of the end of a log is kept."""
LOG_TAIL_CHARACTERS = 4000
"""How much of the log's end a failure holds."""
MAX_PHASE_CHARACTERS = 200
MAX_PHASES = 10_000
"""The phases of one run that are shown. A run of many repetitions has hundreds."""
BLOCK_BYTES = 1 << 16
PIPE_BYTES = 1 << 20
"""The most that a pipe holds by default, if a program enlarges it (/proc/sys/fs/pipe-max-size)."""
UNPRINTABLE = "\ufffd"


class Log:
    """The beginning and the end of what a worker prints; what lies between is counted."""

    def __init__(self, head_bytes: int = LOG_HEAD_BYTES, tail_bytes: int = LOG_TAIL_BYTES) -> None:
        self._head_bytes, self._tail_bytes = head_bytes, tail_bytes
        self._head, self._tail = bytearray(), bytearray()
        self._left_out = 0

    def add(self, block: bytes) -> None:
        room = self._head_bytes - len(self._head)
        self._head += block[:room]
        self._tail += block[room:]
        if len(self._tail) > 2 * self._tail_bytes:  # rarely, so that each byte is moved once at most
            self._shorten()

    def content(self) -> bytes:
        """The log, with a line where bytes are left out."""
        self._shorten()
        if not self._left_out:
            return bytes(self._head + self._tail)
        return bytes(self._head) + f"\n[{self._left_out} bytes left out]\n".encode() + bytes(self._tail)

    def _shorten(self) -> None:
        excess = max(len(self._tail) - self._tail_bytes, 0)
        self._left_out += excess
        del self._tail[:excess]


class Phases:
    """Turns what arrives in the pipe of events into names of phases, one per line, and calls ``on_phase`` with each.

    ``current`` is the last one. ``error`` is what ``on_phase`` raised; it is not called again afterwards. ``on_end`` is
    called when the worker announces that it has written an outcome.
    """

    def __init__(self, on_phase: Callable[[str], None], on_end: Callable[[], None] = lambda: None) -> None:
        self.current = "start"
        self.error: BaseException | None = None
        self._on_phase, self._on_end = on_phase, on_end
        self._line = bytearray()
        self._left = MAX_PHASES

    def add(self, block: bytes) -> None:
        *ended, rest = block.split(b"\n")
        for line in ended:
            self._keep(line)
            self._announce(bytes(self._line).decode("utf-8", "replace").strip()[:MAX_PHASE_CHARACTERS])
            self._line.clear()
        self._keep(rest)

    def _keep(self, part: bytes) -> None:
        self._line += part[: max(4 * MAX_PHASE_CHARACTERS - len(self._line), 0)]  # a character has 4 bytes at most

    def _announce(self, name: str) -> None:
        if name == RUN_ENDED:
            self._on_end()
            return
        if not name or not self._left:
            return
        self._left -= 1
        self.current = "".join(each if each.isprintable() else UNPRINTABLE for each in name)
        if self.error is None:
            try:
                self._on_phase(self.current)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the run
                self.error = error


class Pipe:
    """A pipe that a thread reads, block by block, until its last writer closes it or ``stop`` is called."""

    def __init__(self, consume: Callable[[bytes], None]) -> None:
        self._read, self.write = os.pipe()
        self._stop_read, self._stop_write = os.pipe()
        self._drained = threading.Event()
        self._consume = consume
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def close_write(self) -> None:
        """To be called once the worker has its copy."""
        if self.write >= 0:
            os.close(self.write)
        self.write = -1

    def drain(self, patience_s: float | None = None) -> None:
        """Returns once what is in the pipe now has been read."""
        self._drained.clear()
        with suppress(BrokenPipeError):  # all of it was read, and its last writer is gone
            os.write(self._stop_write, b"\n")
            self._drained.wait(patience_s)

    def stop(self, patience_s: float | None = None) -> None:
        """Reads what is in the pipe now and ends, even if a process still has it open."""
        self.close_write()
        os.close(self._stop_write)
        self._thread.join(patience_s)

    def _pump(self) -> None:
        try:
            if self._until_stopped():
                self._rest()
        finally:
            self._drained.set()
            os.close(self._read)
            os.close(self._stop_read)

    def _until_stopped(self) -> bool:
        """False if the last writer closed the pipe."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._stop_read in ready:
                if not os.read(self._stop_read, 1):
                    return True
                self._rest()
                self._drained.set()
                continue
            block = os.read(self._read, BLOCK_BYTES)
            if not block:
                return False
            self._consume(block)

    def _rest(self) -> None:
        """At most what a pipe can hold: a process that is still writing must not be waited for."""
        os.set_blocking(self._read, False)
        try:
            for _ in range(PIPE_BYTES // BLOCK_BYTES):
                block = os.read(self._read, BLOCK_BYTES)
                if not block:
                    return
                self._consume(block)
        except BlockingIOError:
            return
        finally:
            os.set_blocking(self._read, True)


def read_outcome(path: Path) -> Outcome | None:
    """The outcome that a worker wrote, or None if it wrote none. It counts no matter how the process ended afterwards.

    Raises ResultsError if it cannot be read or is not one.
    """
    if not os.path.lexists(path):
        return None
    outcome = outcome_file.read_outcome(path)
    failure = outcome.failure
    if (failure is None) != (outcome.status == "ok"):
        raise ResultsError(f"{path.name}: a run that is not ok needs a failure, and only such a run")
    if failure is None:
        return outcome
    return replace(outcome, failure=Failure(clip(failure.phase), clip(failure.type), clip(failure.message)))
