"""What the control groups of this process, a container's for example, allow it and have done to it (Linux, v1 and v2).

A limit of a group holds for all groups below it. What cannot be read counts as no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
