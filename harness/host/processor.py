"""The changing state of the processor: its use by processes, stolen time, throttling and frequency.

Read from Linux's counters; what cannot be read is left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

PROC, CPUS = Path("/proc"), Path("/sys/devices/system/cpu")
IDLE, STEAL, COUNTED = (3, 4), 7, 8
"""Columns of a line in /proc/stat: idle and iowait; steal; the first guest time (already included in others)."""
OWN_TIMES = slice(11, 15)
"""Columns of /proc/PID/stat after the name: user and system time of the process and its ended children."""
SESSION = 3


def processor_state() -> dict[str, float]:
    """Counters since a fixed moment, over the cores that this process may use: subtract two states to compare them.

    ``cpu_total_s`` is all time, ``cpu_busy_s`` the time in which any process ran, ``cpu_steal_s`` the time in which a
    hypervisor gave the core to another machine (also part of the busy time), and ``cpu_own_s`` the CPU time of the
    processes in this session. ``cpu_throttle_count`` is how often heat slowed a core down, ``cpu_mhz`` the cores'
    current mean frequency.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {**_times(cores), **_throttles(cores), **_frequency(cores)}


def physical_cores() -> tuple[int, ...]:
    """One logical processor of each physical core that this process may use, by number; empty if unknown.

    Two processors of one core would be one core to MKL, which then starts fewer threads than it was told to and adds
    in another order.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    chosen: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)):
        try:
            siblings = (CPUS / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            return ()
        chosen.setdefault(siblings, number)
    return tuple(chosen.values())


def is_of_this_run(pid: int) -> bool:
    """Whether a process is this one or belongs to its session, which is that of a run in a worker."""
    try:
        return pid > 0 and os.getsid(pid) == os.getsid(0)  # for 0, getsid answers about this process
    except OSError:  # it ended, or its number is that of another namespace
        return False


def instruction_sets() -> tuple[str, ...]:
    """The processor's instruction sets as Linux lists them; empty if unknown."""
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    words = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return tuple(sorted(words.split()))


def _times(cores: Sequence[int]) -> dict[str, float]:
    try:
        lines = (PROC / "stat").read_text().splitlines()
        own = _own_ticks()
    except OSError:
        return {}
    wanted = {f"cpu{core}" for core in cores}
    ticks = [[int(each) for each in line.split()[1:]] for line in lines if line.split()[0] in wanted]
    if not ticks:
        return {}
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    total = sum(sum(core[:COUNTED]) for core in ticks)
    idle = sum(core[place] for core in ticks for place in IDLE)
    return {
        "cpu_total_s": total * tick_s,
        "cpu_busy_s": (total - idle) * tick_s,
        "cpu_steal_s": sum(core[STEAL] for core in ticks) * tick_s,
        "cpu_own_s": own * tick_s,
    }


def _own_ticks() -> int:
    """CPU time used so far by this process and all processes that it started in its session."""
    session, ticks = os.getsid(0), 0
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[SESSION]) == session:
            ticks += sum(int(each) for each in fields[OWN_TIMES])
    return ticks


def _throttles(cores: Sequence[int]) -> dict[str, float]:
    counts = _numbers(cores, "thermal_throttle/core_throttle_count")
    return {"cpu_throttle_count": float(sum(counts))} if counts else {}


def _frequency(cores: Sequence[int]) -> dict[str, float]:
    khz = _numbers(cores, "cpufreq/scaling_cur_freq")
    return {"cpu_mhz": sum(khz) / len(khz) / 1000} if khz else {}


def _numbers(cores: Sequence[int], name: str) -> list[int]:
    """A sysfs number of each core that reports it."""
    numbers = []
    for core in cores:
        try:
            numbers.append(int((CPUS / f"cpu{core}" / name).read_text()))
        except (OSError, ValueError):
            continue
    return numbers
