"""Who owns what is temporary: a process, distinct from every other, also from a later one with its number.

Whatever an interrupted process would leave behind carries its owner in its name. So at the next start it is known,
not guessed, which of it nobody needs any more.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from harness.core.identity import digest

INITIAL_NAMESPACE = "pid:[4026531836]"
"""The pid namespace of a Linux machine itself; containers have others (include/linux/proc_ns.h)."""
_NAME = re.compile(r"(?<![0-9a-z])(\d{1,10})-([0-9a-f]{1,16})-([0-9a-f]{6})-([0-9a-f]{6})(?![0-9a-z])")
_START = 19
"""The place of a process's start in /proc/PID/stat after its name, in clock ticks since the machine's (proc(5))."""

State = Literal["living", "dead", "unknown"]


@dataclass(frozen=True)
class Owner:
    """A process: its number, its start in clock ticks, and the boot and the machine that both count for.

    ``machine`` also identifies the container, if the process is in one: numbers mean nothing outside it.
    """

    pid: int
    start: int
    boot: str
    machine: str

    def __str__(self) -> str:
        return f"{self.pid}-{self.start:x}-{self.boot}-{self.machine}"

    def state(self) -> State:
        """Whether the process still runs; ``unknown`` if it is one of another machine or container."""
        here = current_owner()
        if self.machine != here.machine:
            return "unknown"
        if self.boot != here.boot:
            return "dead"
        return "living" if _start(self.pid) == self.start else "dead"


def current_owner() -> Owner:
    """This process."""
    return owner_of(os.getpid())


def owner_in(name: str) -> Owner | None:
    """The owner that a name carries, or None. If it carries several, the last one named it."""
    found = _NAME.findall(name)
    if not found:
        return None
    pid, start, boot, machine = found[-1]
    return Owner(int(pid), int(start, 16), boot, machine)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new empty folder for this process's temporary files, deleted at the end, or after a crash at the next start."""
    with TemporaryDirectory(prefix=f"qharness-{current_owner()}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@cache
def owner_of(pid: int) -> Owner:
    """A running process of this machine. Cached by process number, because a fork is another owner."""
    boot, machine = _place()
    start = _start(pid)
    assert start is not None, "this process runs"
    return Owner(pid, start, boot, machine)


def _place() -> tuple[str, str]:
    """This boot and this machine, as short digests.

    Earlier boots are distinguished from other machines only outside containers, and only if the machine has an id:
    otherwise two machines could look like one, and the files of a running process on the other would be deleted.
    """
    boot = _read("/proc/sys/kernel/random/boot_id")
    machine = _read("/etc/machine-id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    except OSError:
        namespace = ""
    known = [machine, os.uname().nodename]
    if not machine or namespace != INITIAL_NAMESPACE:
        known += [boot, namespace]
    return digest(["boot", boot])[:6], digest(["machine", *known])[:6]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _start(pid: int) -> int | None:
    """When a process started, in ticks of a clock that no one sets; None if it does not run. A zombie does not."""
    if sys.platform == "linux":
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if state in (b"Z", b"X") else int(fields[_START - 1])
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None
