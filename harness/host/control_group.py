"""What the control groups of this process, a container's for example, allow it and have done to it (Linux, v1 and v2).

A limit of a group holds for all groups below it. What cannot be read counts as no limit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def memory_limits() -> Iterator[int]:
    """The limits of memory, in bytes."""
    for folder in _folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # a v2 group without a limit has "max"
                yield int((folder / name).read_text())


def memory_left() -> Iterator[int]:
    """What each limit leaves, in bytes. Cached files count as free: the system drops them for anything else."""
    for folder in _folders("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", ("inactive_file", "active_file")),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
        ):
            with suppress(OSError, ValueError):  # a v2 group without a limit has "max"
                size = int((folder / limit).read_text())
                yield max(size - _held_bytes(folder, used, cached), 0)


def _held_bytes(folder: Path, used: str, cached: Collection[str]) -> int:
    """What a group's processes hold besides cached files; 0 if it is not known."""
    with suppress(OSError, ValueError):
        counted = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(int((folder / used).read_text()) - sum(int(counted.get(name, 0)) for name in cached), 0)
    return 0


def core_limit() -> float:
    """The CPU seconds that this process and its children may use in a second; infinite without a limit."""
    limit = float("inf")
    for folder in _folders("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            limit = min(limit, float("inf") if quota == "max" else int(quota) / int(period))
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((folder / f"cpu.cfs_{each}_us").read_text() for each in ("quota", "period"))
            limit = min(limit, int(quota) / int(period) if int(quota) > 0 else float("inf"))  # -1 is no limit
    return limit


def oom_kills() -> int:
    """How many processes of this process's own group were killed because its memory was full; 0 if unknown."""
    own = next(_folders("memory"), None)
    for name in ("memory.events", "memory.oom_control"):
        with suppress(OSError, TypeError):
            if found := re.search(r"^oom_kill (\d+)", (own / name).read_text(), re.MULTILINE):  # type: ignore[operator]
                return int(found[1])
    return 0


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those above it: of v1's if the controller is there, else of v2's."""
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return
    groups = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    root, path = (ROOT / controller, groups[controller]) if controller in groups else (ROOT, groups.get(""))
    if path is not None:
        for group in (Path(path), *Path(path).parents):
            yield root / str(group).lstrip("/")
