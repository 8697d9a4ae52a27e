"""The machine's own speeds, which forecasts start from: timed once in a process of its own, and kept in the cache."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveFloat, TypeAdapter, ValidationError

from harness.core.foreign import read_file
from harness.core.identity import digest
from harness.core.owner import current_owner, temporary_folder
from harness.core.site import Machine, Speeds
from harness.errors import UsageError
from harness.host import speed_probe

FOLDER = "speeds"
"""The folder of a cache with the speeds of each machine that it was used on, one JSON file each."""
MAX_FILE_BYTES = 2**16
PROBE_S = 120.0
"""How long the probe may take: torch, which times a GPU, takes a minute to import from a slow disk."""
STARTS = 5
"""Of so many starts the fastest counts: other processes on the same core may make one take twice as long."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_VARIABLES = (*_ONE_THREAD, "CUDA_VISIBLE_DEVICES")


TYPICAL = Speeds(0.2, 10e9, {"float32": 50e9}, 300e6)
"""A small virtual machine's: of a machine that cannot be timed."""


def machine_speeds(machine: Machine, cache_root: Path) -> Speeds:
    """The speeds of this machine with the device that its runs use; TYPICAL if they cannot be timed."""
    place = cache_root.absolute() / FOLDER / f"{digest(_question(machine))}.json"
    known = _read(place)
    if known is None:
        known = _time(machine.device, place.parent)
        if known is not None:
            with suppress(OSError):  # where nothing can be written, the next process times again
                _keep(known, place)
    return known or TYPICAL


def _question(machine: Machine) -> list[str]:
    """All that the speeds depend on: the hardware, the interpreter, libraries' threads, how it is timed."""
    variables = [f"{name}={os.environ.get(name)}" for name in _VARIABLES]
    timing = [Path(each).read_text(encoding="utf-8") for each in (__file__, speed_probe.__file__)]
    return [machine.device, machine.hardware, sys.executable, *variables, *timing]


def _time(device: str, folder: Path) -> Speeds | None:
    """The speeds by new processes, with the disk of ``folder``; None if they do not answer.

    On a CPU products are timed by all threads and by one, which a busy machine disturbs less: the better rate counts.
    Starting is timed with one: NumPy's others compute while they wait, half as much again as all else on two cores.
    """
    threads: tuple[dict[str, str], ...] = ({}, _ONE_THREAD) if device == "cpu" else ({},)
    with temporary_folder() as temporary:
        answer = temporary / "speeds.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = folder
        except OSError:
            written = temporary
        try:
            probes = [_probe([device, str(written), str(answer)], answer, variables) for variables in threads]
            start_s = min(_run(["-c", "import numpy"], _ONE_THREAD) for _ in range(STARTS))
        except (subprocess.TimeoutExpired, OSError, UsageError, ValidationError):
            return None
    dtypes = probes[0].operations_per_s
    return Speeds(
        start_s,
        max(each.bandwidth_byte_per_s for each in probes),
        {dtype: max(each.operations_per_s[dtype] for each in probes) for dtype in dtypes},
        max(each.disk_byte_per_s for each in probes),
    )


def _probe(arguments: list[str], answer: Path, variables: Mapping[str, str]) -> _Answer:
    """Raises UsageError or ValidationError if the probe writes no answer."""
    _run([speed_probe.__file__, *arguments], variables)
    return _ANSWER.validate_json(read_file(answer, MAX_FILE_BYTES, UsageError))


def _run(arguments: list[str], variables: Mapping[str, str]) -> float:
    """Seconds that a new Python process computes. It may take longer where others compute, too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-P", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
        timeout=PROBE_S,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return max(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1e-3)


@dataclass(frozen=True)
class _Answer:
    """What the probe writes."""

    bandwidth_byte_per_s: PositiveFloat
    operations_per_s: Mapping[str, PositiveFloat]
    disk_byte_per_s: PositiveFloat


def _read(place: Path) -> Speeds | None:
    """The speeds in a file; None if there is none, or it holds something else."""
    try:
        found = _SPEEDS.validate_json(read_file(place, MAX_FILE_BYTES, UsageError))
    except (UsageError, ValidationError):
        return None
    rates = (found.start_s, found.bandwidth_byte_per_s, found.disk_byte_per_s, *found.operations_per_s.values())
    return found if "float32" in found.operations_per_s and min(rates) > 0 else None


def _keep(speeds: Speeds, place: Path) -> None:
    part = place.with_name(f".{place.name}-{current_owner()}.part")
    part.write_bytes(_SPEEDS.dump_json(speeds))
    part.replace(place)


_ANSWER = TypeAdapter(_Answer)
_SPEEDS = TypeAdapter(Speeds)
