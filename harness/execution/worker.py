"""The child process: reads a spec file and a file of its inputs, writes an outcome file.

``python -m harness.execution.worker SPEC INPUTS OUTCOME CACHE EVENTS_FD [REQUESTS_FD]``, below a guard (``guard.py``).
Top-level imports are limited to the standard library; each job imports what else it needs.

With REQUESTS_FD it keeps the loaded model. Each byte there means that SPEC and INPUTS now describe another run that may
share its process (``RunSpec.may_share_process``). It ends at the end of that file, and after a run that is not ok.

Libraries run in this process, and may leave anything behind: closed or used-up file descriptors, threads, another
working folder, an exception whose text cannot be read. What is needed to write the outcome is set aside before.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.core.inputs import Input
    from harness.core.record import Failure, Fingerprint, Outcome, Status
    from harness.core.run import RunSpec
    from harness.errors import InvalidRunError
    from harness.execution.context import Context, Later, Loaded

STDOUT, STDERR = 1, 2
RUN_ENDED = "\x04"
"""Announced among the phases once an outcome is written, and all that was printed before it."""
MAX_MESSAGE_CHARACTERS = 10_000
"""How much of an exception's text is recorded: its beginning and its end."""
CORES = "cores"
"""A file beside SPEC with the numbers of the processors that the process may use, if it may not use all."""
SPARE_DESCRIPTORS = 32
"""File descriptors for what follows the job: reading the machine's state, importing modules, writing the outcome."""
OOM_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "_alloc_failed")


def main(spec: str, inputs: str, outcome: str, cache: str, events: str, requests: str | None = None) -> None:
    """Runs the spec and writes its outcome, then what else is requested, unless a signal ends the process."""
    _confine(Path(spec).with_name(CORES))
    more = None if requests is None else _Descriptor(int(requests))
    announce = _announcer(int(events))
    loaded: Loaded | None = None
    while True:
        succeeded, loaded = _make(Path(spec), Path(inputs), Path(outcome), Path(cache), announce, loaded)
        _flush()
        announce(RUN_ENDED)
        if more is None or not succeeded or not more.is_open() or not os.read(more.number, 1):
            return
        gc.collect()  # what the run left in cycles would count as the next one's memory


def _make(
    spec_path: Path,
    inputs_path: Path,
    final: Path,
    cache_root: Path,
    announce: Callable[[str], None],
    loaded: Loaded | None,
) -> tuple[bool, Loaded | None]:
    """Runs the spec and writes its outcome. Returns whether the run succeeded, and what is loaded now."""
    from harness.core.inputs import Input
    from harness.core.run import RunSpec
    from harness.execution.context import Context
    from harness.storage.cache import Cache
    from harness.storage.json_codec import decode

    restore = _set_aside()
    spec = decode(RunSpec, json.loads(spec_path.read_text(encoding="utf-8")), spec_path.name)
    inputs = decode(tuple[Input, ...], json.loads(inputs_path.read_text(encoding="utf-8")), inputs_path.name)
    _limit_memory(spec.limits.memory_bytes)
    context = Context(spec, Cache(cache_root), announce, loaded)
    outcome, later = _run(context, inputs, final.parent.name, restore)
    outcome = _write(final, outcome, context.current)
    if later is not None and outcome.status == "ok":
        outcome = _write(final, _measure_later(context, inputs, outcome, later), context.current)
    return outcome.status == "ok", context.loaded


def _write(final: Path, outcome: Outcome, phase: str) -> Outcome:
    """Writes an outcome, or what can be written of it; returns that."""
    from harness.core.record import Failure, Outcome
    from harness.storage.disk import Disk
    from harness.storage.outcome_file import write_outcome

    write = Disk().write_whole
    try:
        write_outcome(final, outcome, write)
    except (ValueError, TypeError, MemoryError) as error:  # no Unicode, no number, or too many of them
        reason = Failure(phase, type(error).__name__, f"the run's figures cannot be written: {_text(error)}")
        outcome = outcome.unstorable(reason)
        try:
            write_outcome(final, outcome, write)
        except (ValueError, TypeError):  # what cannot be written is in its labels or facts
            outcome = Outcome("invalid", reason)
            write_outcome(final, outcome, write)
    return outcome


def _run(
    context: Context, inputs: Sequence[Input], token: str, restore: Callable[[], None]
) -> tuple[Outcome, Later | None]:
    """The outcome of the spec's job, and what it measures later. Publishes an artifact only if the run succeeded.

    The inputs must match what was hashed, before and after the run: otherwise the figures describe something else.
    """
    from harness.core.record import Failure
    from harness.execution.import_guard import skip_unused_imports
    from harness.host.machine import fingerprint, installed

    spec, cache = context.spec, context.cache
    before = fingerprint(context.packages, installed(), _installed_beside(spec))
    run = import_module(f"harness.execution.jobs.{spec.kind}").run

    def job(out: Path) -> Later | None:
        try:
            later: Later | None = run(spec.job, context, out)
            return later
        finally:
            restore()

    try:
        _refuse_moved(inputs)
        if spec.needs:
            context.verify_artifacts()
        _use_threads(spec.job.conditions.threads)
        skip_unused_imports(context.packages)
        if not spec.job.cached:
            job(Path())
            _refuse_moved(inputs)
            return _believable(_outcome(context, before, "ok")), None
        with cache.filling(spec, token) as part:
            later = job(part)
            _refuse_moved(inputs)
            outcome = _believable(_outcome(context, before, "ok"))
            if later is not None:
                outcome = replace(outcome, facts=(*outcome.facts, later.missing))
            if outcome.suspicions:
                shutil.rmtree(part)  # not published: the record keeps it, other sweeps measure again
                return outcome, None
            cache.publish(spec, part, outcome)
        return outcome, later
    except BaseException as error:  # noqa: BLE001 - whatever a library raises becomes a record, also sys.exit
        _print(error)
        cause = _moved(inputs) or error  # a file replaced while being read causes all kinds of errors
        failure = Failure(context.current, clip(type(cause).__name__), _message(cause, cache.root))
        return _outcome(context, before, classify(cause), failure).finite_parts(), None


def _measure_later(context: Context, inputs: Sequence[Input], outcome: Outcome, later: Later) -> Outcome:
    """The outcome with what is measured of the published artifact, or with the reason why that failed."""
    restore = _set_aside()
    try:
        try:
            later.measure(context.cache.folder(context.spec.kind, context.spec.run_id))
        finally:
            restore()
        _refuse_moved(inputs)
        assert outcome.before is not None
        whole = _believable(_outcome(context, outcome.before, "ok"))
        context.cache.amend(context.spec, whole)
    except BaseException as error:  # noqa: BLE001 - whatever a library raises must not lose what is published
        _print(error)
        whole = outcome.cut_short(_message(error, context.cache.root))
        with suppress(Exception):
            context.cache.amend(context.spec, whole)
    return whole


def _installed_beside(spec: RunSpec) -> dict[str, Mapping[str, str]]:
    """What is installed in each stack, other than that of the run, whose programs it starts."""
    from harness.host.machine import installed_beside
    from harness.libraries.load_generator import INTERPRETER

    others = [stack for stack in spec.job.stacks if stack != spec.stack]
    found = {stack: installed_beside(os.environ[INTERPRETER]) for stack in others}
    return {stack: versions for stack, versions in found.items() if versions}


def _outcome(context: Context, before: Fingerprint, status: Status, failure: Failure | None = None) -> Outcome:
    from harness.core.record import Outcome
    from harness.execution.checks.spill import spill
    from harness.host.machine import fingerprint

    measurements = context.findings()
    return Outcome(
        status=status,
        failure=failure,
        measurements=measurements,
        labels=(*context.labels, *spill(before, measurements)),
        facts=tuple(context.facts),
        phases=tuple(context.phases),
        moments=tuple(context.moments),
        before=before,
        after=fingerprint(context.packages),
    )


def _refuse_moved(inputs: Sequence[Input]) -> None:
    """Raises InvalidRunError, with the file, if an input differs from what the planner hashed."""
    error = _moved(inputs)
    if error is not None:
        raise error


def _moved(inputs: Sequence[Input]) -> InvalidRunError | None:
    from harness.errors import InvalidRunError
    from harness.storage.checksums import find_difference

    found = next((told for each in inputs if (told := find_difference(each)) is not None), None)
    return None if found is None else InvalidRunError(f"an input changed during the sweep: {found}")


def _believable(outcome: Outcome) -> Outcome:
    """The same outcome. Raises InvalidRunError, with the place, for NaN and infinity: no record may hold them."""
    from harness.core.json_values import not_finite
    from harness.errors import InvalidRunError

    place = not_finite(outcome)
    if place is not None:
        part, _, rest = place.partition(".")
        index, _, within = rest.partition(".")
        if part == "measurements":
            part, rest = outcome.measurements[int(index)].metric, within
        if part == "facts":
            rest = outcome.facts[int(index)].name
        raise InvalidRunError(f"{part}: {rest or 'its value'} is not finite")
    return outcome


def classify(error: BaseException) -> Status:
    """The status for an exception."""
    from harness.errors import InvalidRunError, UnsupportedError

    if isinstance(error, MemoryError) or any(word in _text(error).lower() for word in OOM_WORDS):
        return "out_of_memory"
    if isinstance(error, UnsupportedError | ImportError):
        return "unsupported"
    return "invalid" if isinstance(error, InvalidRunError) else "failed"


def clip(text: str) -> str:
    """The text as it can be recorded: its beginning and its end if it is long, with escapes for what is no Unicode."""
    excess = len(text) - MAX_MESSAGE_CHARACTERS
    if excess > 0:
        half = MAX_MESSAGE_CHARACTERS // 2
        text = f"{text[:half]} [{excess} characters left out] {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(error: BaseException) -> str:
    """What an exception says."""
    if isinstance(error, SystemExit):
        return f"a library ended the process: sys.exit({clip(repr(error.code))})"
    try:
        return clip(str(error))
    except BaseException as fault:  # noqa: BLE001 - the text of a library's exception is a library's code
        return f"its text cannot be read: {type(fault).__name__}"


def _message(error: BaseException, cache: Path) -> str:
    """What is recorded of an exception: its text, and what to do about a full disk."""
    from harness.storage.disk import is_full

    text = _text(error)
    if not is_full(text):
        return text
    return f"a disk is full ({text}): make room in {cache} and {tempfile.gettempdir()}, then run the same command again"


def _print(error: BaseException) -> None:
    """Prints the traceback, unless a library has closed the place to print it to, or it takes too much memory."""
    with (
        suppress(OSError, MemoryError),
        os.fdopen(os.dup(STDERR), "w", encoding="utf-8", errors="backslashreplace") as log,
    ):
        traceback.print_exception(error, file=log)
    traceback.clear_frames(error.__traceback__)  # they hold the job's tensors


class _Descriptor:
    """A file descriptor of this process, which a library may close; then its number may name another file."""

    def __init__(self, number: int) -> None:
        os.set_inheritable(number, False)
        self.number = number
        self._file = os.fstat(number)

    def is_open(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.number), self._file)
        except OSError:
            return False

    def close(self) -> None:
        if self.is_open():
            os.close(self.number)


def _set_aside() -> Callable[[], None]:
    """Reserves what is needed after the job. The function that it returns gives that back, once."""
    spare = [_Descriptor(os.open(os.devnull, os.O_RDONLY)) for _ in range(SPARE_DESCRIPTORS)]
    printed = {number: _Descriptor(os.dup(number)) for number in (STDOUT, STDERR)}
    folder = _Descriptor(os.open(os.curdir, os.O_RDONLY))
    mask = os.umask(0o077)
    os.umask(mask)

    def restore() -> None:
        while spare:
            spare.pop().close()
        for number, kept in printed.items():
            if kept.is_open():
                os.dup2(kept.number, number)
            kept.close()
        if folder.is_open():
            os.fchdir(folder.number)
        folder.close()
        os.umask(mask)

    return restore


def _announcer(events: int) -> Callable[[str], None]:
    """Writes phases into the pipe of events, as long as it is open."""
    pipe = _Descriptor(events)

    def announce(phase: str) -> None:
        if pipe.is_open():
            with suppress(OSError):  # nobody reads it any more
                os.write(events, f"{phase}\n".encode("utf-8", "backslashreplace"))

    return announce


def _confine(cores: Path) -> None:
    """Confines this process to its processors, if a file names some. Threads that it starts inherit that."""
    if cores.exists():
        os.sched_setaffinity(0, map(int, cores.read_text(encoding="ascii").split()))


def _limit_memory(limit_bytes: int | None) -> None:
    """Caps the process's private memory. Address space is not capped: CUDA reserves far more than it uses."""
    if limit_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _flush() -> None:
    """Writes what was printed, as far as a library has left the means."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # broken, closed, or replaced by something else
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what libraries in C have printed


def _end(code: int) -> NoReturn:
    """Ends the process at once: neither threads that a library left running nor its handlers at exit may hang it."""
    try:
        _flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException as error:  # noqa: BLE001 - without an outcome the parent records the exit code and the log
        _print(error)
        _end(1)
    _end(0)
