"""Faults, made for real. Each function runs sweeps on a bench while it makes one, and returns how the last one ended.

It leaves the bench so that the next ``qharness run`` is to make everything whole: a disk is no longer full, a file is
back in its place.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from bench import PATIENCE_S, Bench, Ended, Running

Make = Callable[[Bench], Ended]

QUANTIZE = "quantize"
DISK_BYTES = 32 * 2**20
FLOOD_BYTES = 2**30
STATES_ROOM_BYTES = 20 * 2**10
"""More than a record takes, and less than the states of two windows."""
A_YEAR_S = 365 * 24 * 3600
CGROUP_BYTES = 400 * 2**20


def in_quantize(bench: Bench, what: Callable[[], object], *options: object) -> Ended:
    """A sweep in which something happens while its worker quantizes."""
    running = bench.start(*options, fault="wait").until(QUANTIZE)
    what()
    bench.go.touch()
    return running.wait()


def plugin(fault: str, **changes: object) -> Make:
    """The library does this in the worker."""
    return lambda bench: bench.run(fault=fault, **changes)


def out_of_time(fault: str, limit: str) -> Make:
    """The library does this in the worker, which has a time limit. The baseline, which has done it before, has none."""

    def make(bench: Bench) -> Ended:
        baseline = bench.run(methods=["none"])
        assert baseline.code == 0, baseline.output
        return bench.run(fault=fault, limits={"time": limit})

    return make


def flood(bench: Bench) -> Ended:
    return bench.run(fault="flood", variables={"QHARNESS_FAULT_BYTES": str(FLOOD_BYTES)})


def signalled(number: signal.Signals, times: int = 1) -> Make:
    """The command gets a signal, so many times at once, while its worker quantizes."""

    def make(bench: Bench) -> Ended:
        running = bench.start(fault="hang").until(QUANTIZE)
        for _ in range(times):
            running.send(number)
        return running.wait()

    return make


def out_of_cgroup_memory(bench: Bench) -> Ended:
    """The kernel kills in the sweep's control group; skips where none can be made."""
    with _cgroup() as group:
        return bench.run(fault="fill_memory", cgroup=group)


@contextmanager
def _cgroup() -> Iterator[Path]:
    """A control group of its own with little memory (cgroup v1 or v2)."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("memory", ""):
            continue
        root = Path("/sys/fs/cgroup", controllers, path.lstrip("/"))
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        group = root / f"qharness-faults-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(CGROUP_BYTES), encoding="ascii")
            yield group
            return
        except FileNotFoundError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no control group with a memory limit can be made here")


@contextmanager
def _small_disk(bench: Bench, folder: Path) -> Iterator[None]:
    try:
        bench.mount(folder, DISK_BYTES)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield


def _fill(folder: Path, left_bytes: int) -> Path:
    """Fills a small disk but for so many bytes; returns the file that does."""
    with NamedTemporaryFile(dir=folder, prefix=".ballast-", delete=False) as file:
        disk = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, max(disk.f_bavail * disk.f_frsize - left_bytes, 1))
    return Path(file.name)


def disk_full(where: Callable[[Bench], Path], left_bytes: int) -> Make:
    """The disk of a folder fills up while the worker quantizes; afterwards it is emptied again."""

    def make(bench: Bench) -> Ended:
        folder = where(bench)
        with _small_disk(bench, folder):
            ballast: list[Path] = []
            ended = in_quantize(bench, lambda: ballast.append(_fill(folder, left_bytes)))
            ballast[0].unlink()
            return ended

    return make


def read_only(bench: Bench) -> Ended:
    """Nothing can be written into the results; root, whom permissions do not bind, cannot either (``chattr +i``)."""
    ended = in_quantize(bench, lambda: _allow_writing(bench.results, False))
    _allow_writing(bench.results, True)
    return ended


def _allow_writing(root: Path, allow: bool) -> None:
    folders = [root, *(each for each in root.rglob("*") if each.is_dir())]
    if os.geteuid() != 0:
        for each in folders:
            each.chmod(0o755 if allow else 0o555)
        return
    command = ["chattr", "-i" if allow else "+i", *map(str, folders)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs chattr to make folders read-only for root")
    if ended.returncode:
        pytest.skip(f"folders cannot be made read-only for root here: {ended.stderr}")


def results_removed(bench: Bench) -> Ended:
    def remove() -> None:
        # Moved away first, at once: the sweep goes on writing, so a folder may fill again while its files are removed.
        shutil.rmtree(bench.results.rename(bench.results.with_name("results removed")))

    return in_quantize(bench, remove)


def clock_jumps(by_s: int) -> Make:
    """The time of day jumps; how long runs take is measured by another clock."""

    def make(bench: Bench) -> Ended:
        if "LD_PRELOAD" not in bench.commands.variables:
            pytest.skip("no C compiler here to build another clock with")
        ended = in_quantize(bench, lambda: bench.clock.write_text(str(by_s), encoding="ascii"))
        began = {name: datetime.fromisoformat(each.started_at) for name, each in bench.counting().items()}
        seen_s = (began["quality unruly"] - began["quantize unruly"]).total_seconds()
        assert abs(seen_s - by_s) < PATIENCE_S, "no jump was seen"
        return ended

    return make


def input_replaced(which: Callable[[Bench], Path], how: Callable[[Path], object]) -> Make:
    """Another file, or none, is in the place of one that the sweep reads; afterwards it is back."""

    def make(bench: Bench) -> Ended:
        path = which(bench)
        aside = path.with_name(f".{path.name}.aside")

        def replace() -> None:
            path.rename(aside)
            how(path)

        ended = in_quantize(bench, replace)
        path.unlink(missing_ok=True)
        aside.rename(path)
        return ended

    return make


def weights(bench: Bench) -> Path:
    return bench.model / "model.safetensors"


def text(bench: Bench) -> Path:
    return bench.text


def nothing(path: Path) -> None:
    """No file at all."""


def other_content(path: Path) -> None:
    """A file of the same size."""
    size = path.with_name(f".{path.name}.aside").stat().st_size
    path.write_bytes(b"x" * size)


def damaged(which: Callable[[Bench], Path], how: Callable[[bytes], bytes], lose_quality: bool = False) -> Make:
    """A file of a finished sweep is damaged, then the sweep is run again.

    With ``lose_quality`` the records of one run are lost, too: making it again needs what the cache holds.
    """

    def make(bench: Bench) -> Ended:
        first = bench.run()
        assert first.code == 0, first.output
        path = which(bench)
        path.write_bytes(how(path.read_bytes()))
        if lose_quality:
            shutil.rmtree(_quality_folder(bench))
        return bench.run()

    return make


def states_without_room(bench: Bench) -> Ended:
    """The disk of the temporary folder has no room for the states of a model that is streamed."""
    with _small_disk(bench, bench.temporary):
        first = bench.run()
        assert first.code == 0, first.output
        shutil.rmtree(_quality_folder(bench))
        room = {"QHARNESS_FAULT_BYTES": str(STATES_ROOM_BYTES)}
        ended = bench.run(fault="crowd_states", residency="streamed", variables=room)
        (ballast,) = bench.temporary.glob(".ballast-*")
        ballast.unlink()
        return ended


def disk_too_slow(bench: Bench) -> Ended:
    """The disk of a streamed model is so slow that reading alone takes longer than a run may."""
    first = bench.run()
    assert first.code == 0, first.output
    shutil.rmtree(_quality_folder(bench))
    return bench.run(fault="slow_disk", residency="streamed", limits={"time": "10m"})


def _quality_folder(bench: Bench) -> Path:
    """The records of what the quantized model was measured to be."""
    (record,) = (each for each in bench.records() if each.spec.kind == "quality" and not each.spec.is_baseline)
    return bench.results / record.spec.recipe / record.spec.run_id


def of_record(name: str) -> Callable[[Bench], Path]:
    """A file of the quality record."""
    return lambda bench: _quality_folder(bench) / "1" / name


def of_artifact(name: str) -> Callable[[Bench], Path]:
    """A file of the quantized checkpoint in the cache."""

    def find(bench: Bench) -> Path:
        (path,) = (bench.cache / "quantize").glob(f"*/{name}")
        return path

    return find


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def edit_a_digit(content: bytes) -> bytes:
    """Another digit in the first figure of a record."""
    begin = content.index(b'"values": [') + len(b'"values": [')
    place = next(index for index in range(begin, len(content)) if content[index : index + 1].isdigit())
    digit = b"123456789"[content[place] % 9 : content[place] % 9 + 1]
    return content[:place] + (digit if digit != content[place : place + 1] else b"9") + content[place + 1 :]


def two_on_the_same_results(bench: Bench) -> Ended:
    """The second ends at once, and disturbs nothing."""

    def second() -> None:
        ended = bench.run()
        assert ended.code == 2, ended.output
        assert "another 'qharness run' is writing here" in ended.output

    return in_quantize(bench, second)


def two_on_the_same_cache(bench: Bench) -> Ended:
    """Both quantize the same at the same time, each for results of its own."""
    other = bench.folder / "other results"
    running: list[Running] = []

    def second() -> None:
        running.append(bench.start(fault="wait", results=other).until(QUANTIZE))

    ended = in_quantize(bench, second)
    end_of_other = running[0].wait()
    assert end_of_other.code == 0, end_of_other.output
    assert bench.figures(other) == bench.figures()
    return ended
