"""The frame of the fuzzers: what must hold for every input, the limits, and the search for inputs that break them.

A target is a module ``fuzz_NAME.py`` beside this one with a function ``read(content, folder)``: it has the harness read
``content``, which it may write to files in the empty ``folder``. A target may also have
``mutate(content, random) -> bytes``, which changes an input of that structure.

Whatever the content is, ``read`` returns, or raises a UsageError whose message is short and printable: within 2
CPU-seconds and 512 MB. ``corpus/NAME/`` holds a few valid inputs to start from, ``found/NAME/`` every input that once
broke this; the default suite reads both again.

    python tests/fuzz/fuzzing.py                      # one minute of every target
    python tests/fuzz/fuzzing.py gguf -runs=50000     # one target, with options of libFuzzer
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType

HERE = Path(__file__).parent
LIMIT_CPU_S = 2.0
LIMIT_BYTES = 512 * 10**6
"""The most memory that one input may add to the process."""
LIMIT_MESSAGE = 2_000
"""The most characters of a message: it names what is wrong, and does not repeat the file."""
LIMIT_ADDRESSES = 4 * 2**30
"""Address space beyond that of the start, so that an input that asks for more ends as a MemoryError."""
UNFIT = (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
"""What a target's ``mutate`` may raise for an input that no longer has the structure."""
MUTATED_BY_STRUCTURE = 0.7
"""The fraction of inputs that a target's own ``mutate`` makes; libFuzzer changes bytes of the others."""


sys.path.append(str(HERE.parent / "support"))  # pytest does that by itself


class Broken(AssertionError):
    """An input broke what must hold."""


def targets() -> list[str]:
    """The names of all targets."""
    return sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def target(name: str) -> ModuleType:
    return import_module(f"fuzz_{name}")


def kept(name: str) -> list[Path]:
    """The inputs of a target that are kept: its corpus, and those that once broke something."""
    return sorted(path for kind in ("corpus", "found") for path in (HERE / kind / name).glob("*"))


def check(read: object, content: bytes) -> bool:
    """Reads an input under the limits; whether it was accepted. Raises Broken, or whatever ``read`` raised wrongly."""
    from harness.errors import UsageError

    folder = Path(tempfile.mkdtemp(prefix="qharness-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        with _limits():
            read(content, folder)  # type: ignore[operator]
    except UsageError as error:
        message = str(error).replace(str(folder), "")
        if not message.replace("\n", " ").isprintable():
            raise Broken(f"its message cannot be printed: {message!a}") from error
        if len(message) > LIMIT_MESSAGE:
            raise Broken(f"its message has {len(message)} characters: {message[:200]!a}…") from error
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


@contextmanager
def _limits() -> Iterator[None]:
    """Raises Broken if what runs inside takes more CPU time or memory than one input may."""
    previous = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_CPU_S)
    before, started = _resident_bytes("VmRSS"), time.process_time()
    _reset_peak()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    used_s, used_bytes = time.process_time() - started, _resident_bytes("VmHWM") - before
    if used_s > LIMIT_CPU_S:
        raise Broken(f"took {used_s:.1f} CPU-seconds")
    if used_bytes > LIMIT_BYTES:
        raise Broken(f"took {used_bytes / 1e6:.0f} MB")


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise Broken(f"took more than {LIMIT_CPU_S:g} CPU-seconds")


def _reset_peak() -> None:
    """Lets VmHWM, the peak of the resident memory, begin anew (Linux, proc(5))."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(field: str) -> int:
    """A size that Linux keeps of this process; 0 elsewhere."""
    if not Path("/proc/self/status").exists():
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def search(name: str, options: list[str]) -> None:
    """Runs libFuzzer on a target until an input breaks something; that input is then in ``found/NAME/``."""
    import atheris

    with atheris.instrument_imports(include=["harness"], enable_loader_override=False):
        module = target(name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_ADDRESSES, used + LIMIT_ADDRESSES))
    counts = {True: 0, False: 0}

    def one(content: bytes) -> None:
        counts[check(module.read, content)] += 1
        total = sum(counts.values())
        if total % 10_000 == 0:
            print(f"{name}: {total} inputs, {counts[True]} of them accepted", flush=True)

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() > MUTATED_BY_STRUCTURE:
            return bytes(atheris.Mutate(content, most))
        try:
            return bytes(module.mutate(content, chance))[:most]
        except UNFIT:
            return bytes(atheris.Mutate(content, most))

    made = Path(os.environ.get("QHARNESS_FUZZ", Path(tempfile.gettempdir(), "qharness-fuzz"))) / name
    made.mkdir(parents=True, exist_ok=True)
    found = HERE / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    seeds = [str(folder) for folder in (HERE / "corpus" / name, found) if folder.is_dir()]
    fixed = ["-timeout=20", "-rss_limit_mb=4096", "-max_len=65536", "-print_final_stats=1"]
    arguments = [name, *fixed, f"-artifact_prefix={found}/", *options, str(made), *seeds]
    if hasattr(module, "mutate"):
        atheris.Setup(arguments, one, custom_mutator=mutate)
    else:
        atheris.Setup(arguments, one)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Runs the targets named, or all; options begin with a dash."""
    options = [each for each in arguments if each.startswith("-")]
    names = [each for each in arguments if not each.startswith("-")]
    unknown = set(names) - set(targets())
    if unknown:
        print(f"unknown target {', '.join(sorted(unknown))}; there are: {', '.join(targets())}", file=sys.stderr)
        return 2
    if len(names) == 1:
        search(names[0], options or ["-max_total_time=60"])
        return 0
    codes = [subprocess.run([sys.executable, __file__, name, *options], check=False).returncode for name in targets()]
    return max(map(abs, codes), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
