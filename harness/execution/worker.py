"""The child process: reads a spec file and a file of its inputs, writes an outcome file.

``python -m harness.execution.worker SPEC INPUTS OUTCOME CACHE EVENTS_FD``. Top-level imports are limited to the
standard library; each job imports what else it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.core.inputs import Input
    from harness.core.record import Failure, Fingerprint, Outcome, Status
    from harness.errors import InvalidRunError
    from harness.execution.context import Context

PR_SET_PDEATHSIG = 1
OOM_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "_alloc_failed")


def main(spec_path: str, inputs_path: str, outcome_path: str, cache_root: str, events: str) -> None:
    """Runs the spec and writes its outcome, unless a signal ends the process."""
    from harness.core.inputs import Input
    from harness.core.run import RunSpec
    from harness.execution.context import Context
    from harness.storage.cache import Cache
    from harness.storage.disk import Disk
    from harness.storage.json_codec import decode, encode

    _die_with_the_parent()
    spec = decode(RunSpec, json.loads(Path(spec_path).read_text(encoding="utf-8")), spec_path)
    inputs = decode(tuple[Input, ...], json.loads(Path(inputs_path).read_text(encoding="utf-8")), inputs_path)
    _limit_memory(spec.limits.memory_bytes)
    context = Context(spec, Cache(Path(cache_root)), lambda phase: _announce(int(events), phase))
    final = Path(outcome_path)
    Disk().write_whole(final, encode(_run(context, inputs, token=final.parent.name)).encode())


def _run(context: Context, inputs: Sequence[Input], token: str) -> Outcome:
    """The outcome of the spec's job. Publishes an artifact only if the run succeeded.

    The inputs must match what was hashed, before and after the run: otherwise the figures describe something else.
    """
    from harness.core.record import Failure
    from harness.execution.import_guard import skip_unused_imports
    from harness.host.machine import fingerprint

    before = fingerprint(context.packages)
    spec, cache = context.spec, context.cache
    run = import_module(f"harness.execution.jobs.{spec.kind}").run
    try:
        _refuse_moved(inputs)
        if spec.needs:
            context.verify_artifacts()
        _use_threads(spec.job.conditions.threads)
        skip_unused_imports(context.packages)
        if not spec.job.cached:
            run(spec.job, context, Path())
            _refuse_moved(inputs)
            return _believable(_outcome(context, before, "ok"))
        with cache.filling(spec, token) as part:
            run(spec.job, context, part)
            _refuse_moved(inputs)
            outcome = _believable(_outcome(context, before, "ok"))
            if any(label.code == "suspect" for label in outcome.labels):
                shutil.rmtree(part)  # not published: the record keeps it, other sweeps measure again
            else:
                cache.publish(spec, part, outcome)
        return outcome
    except Exception as error:  # noqa: BLE001 - whatever a library raises becomes a record
        traceback.print_exc()
        told = _moved(inputs) or error  # a file replaced while being read causes all kinds of errors
        failure = Failure(context.current, type(told).__name__, str(told))
        return _without_not_finite(_outcome(context, before, classify(told), failure))


def _outcome(context: Context, before: Fingerprint, status: Status, failure: Failure | None = None) -> Outcome:
    from harness.core.record import Outcome
    from harness.host.machine import fingerprint

    return Outcome(
        status=status,
        failure=failure,
        measurements=context.findings(),
        labels=tuple(context.labels),
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


def _without_not_finite(outcome: Outcome) -> Outcome:
    """The outcome of a run that ended early, without parts that hold NaN or infinity, so that it can be written."""
    from harness.core.json_values import not_finite

    return replace(
        outcome,
        measurements=tuple(each for each in outcome.measurements if not_finite(each) is None),
        labels=tuple(each for each in outcome.labels if not_finite(each) is None),
        facts=tuple(each for each in outcome.facts if not_finite(each) is None),
        phases=tuple(each for each in outcome.phases if not_finite(each) is None),
        moments=tuple(each for each in outcome.moments if not_finite(each) is None),
        before=None if not_finite(outcome.before) is not None else outcome.before,
        after=None if not_finite(outcome.after) is not None else outcome.after,
    )


def classify(error: Exception) -> Status:
    """The status for an exception."""
    from harness.errors import InvalidRunError, UnsupportedError

    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in OOM_WORDS):
        return "out_of_memory"
    if isinstance(error, UnsupportedError | ImportError):
        return "unsupported"
    return "invalid" if isinstance(error, InvalidRunError) else "failed"


def _die_with_the_parent() -> None:
    """Makes Linux kill this process when its parent ends for any reason."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory(limit_bytes: int | None) -> None:
    """Caps the process's private memory. Address space is not capped: CUDA reserves far more than it uses."""
    if limit_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _announce(events: int, phase: str) -> None:
    os.write(events, f"{phase}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
