"""The child process: one spec file in, one outcome file out.

``python -m harness.execution.worker SPEC OUTCOME CACHE EVENTS_FD``. Only the standard library is
imported up here; what else is needed is imported by the job that needs it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.execution.bench import Bench
    from harness.record import Failure, Fingerprint, Outcome, Status

PR_SET_PDEATHSIG = 1
OOM_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "_alloc_failed")


def main(spec_path: str, outcome_path: str, cache_root: str, events: str) -> None:
    """Runs the spec and writes its outcome, whatever happens short of a signal."""
    from harness.cache import Cache
    from harness.execution.bench import Bench
    from harness.json_codec import decode, encode
    from harness.spec import RunSpec

    _die_with_the_parent()
    spec = decode(RunSpec, json.loads(Path(spec_path).read_text(encoding="utf-8")), spec_path)
    _limit_memory(spec.limits.memory_bytes)
    bench = Bench(spec, Cache(Path(cache_root)), lambda phase: _announce(int(events), phase))
    final = Path(outcome_path)
    part = final.with_suffix(".part")
    part.write_text(encode(_run(bench, token=final.parent.name)), encoding="utf-8")
    part.replace(final)


def _run(bench: Bench, token: str) -> Outcome:
    """The outcome of the spec's job. An artifact is published only where its run ended well."""
    from harness.cache import KINDS
    from harness.execution.jobs import JOBS
    from harness.execution.lean import spare_imports
    from harness.execution.suspect import SUSPECT
    from harness.machine import fingerprint
    from harness.record import Failure

    before = fingerprint(bench.packages)
    spec, cache = bench.spec, bench.cache
    try:
        _use_threads(spec.threads)
        spare_imports(bench.packages)
        if spec.kind not in KINDS:
            JOBS[spec.kind](bench, Path())
            return _believable(_outcome(bench, before, "ok"))
        with cache.filling(spec, token) as part:
            JOBS[spec.kind](bench, part)
            outcome = _believable(_outcome(bench, before, "ok"))
            if any(label.startswith(SUSPECT) for label in outcome.labels):
                shutil.rmtree(part)  # it stands in its own record alone
            else:
                cache.publish(spec, part, outcome)
        return outcome
    except Exception as error:  # noqa: BLE001 - whatever a library raises becomes a record
        traceback.print_exc()
        failure = Failure(bench.current, type(error).__name__, str(error))
        return _without_not_finite(_outcome(bench, before, classify(error), failure))


def _outcome(bench: Bench, before: Fingerprint, status: Status, failure: Failure | None = None) -> Outcome:
    from harness.machine import fingerprint
    from harness.record import Outcome

    return Outcome(
        status=status,
        failure=failure,
        measurements=bench.findings(),
        labels=tuple(bench.labels),
        facts=bench.facts,
        phases=tuple(bench.phases),
        moments=tuple(bench.moments),
        before=before,
        after=fingerprint(bench.packages),
    )


def _believable(outcome: Outcome) -> Outcome:
    """The outcome itself. Raises InvalidRunError, with the place, for NaN and infinity: no record may hold them."""
    from harness.errors import InvalidRunError
    from harness.json_codec import not_finite

    place = not_finite(outcome)
    if place is not None:
        part, _, rest = place.partition(".")
        if part == "measurements":
            index, _, rest = rest.partition(".")
            part = outcome.measurements[int(index)].metric
        raise InvalidRunError(f"{part}: {rest or 'its value'} is not finite")
    return outcome


def _without_not_finite(outcome: Outcome) -> Outcome:
    """The outcome of a run that ended early, less what holds NaN or infinity: the rest can be written."""
    from harness.json_codec import not_finite

    return replace(
        outcome,
        measurements=tuple(each for each in outcome.measurements if not_finite(each) is None),
        facts={name: value for name, value in outcome.facts.items() if not_finite(value) is None},
        phases=tuple(each for each in outcome.phases if not_finite(each) is None),
        moments=tuple(each for each in outcome.moments if not_finite(each) is None),
        before=None if not_finite(outcome.before) is not None else outcome.before,
        after=None if not_finite(outcome.after) is not None else outcome.after,
    )


def classify(error: Exception) -> Status:
    """The status that an exception means."""
    from harness.errors import InvalidRunError, UnsupportedError

    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in OOM_WORDS):
        return "out_of_memory"
    if isinstance(error, UnsupportedError | ImportError):
        return "unsupported"
    return "invalid" if isinstance(error, InvalidRunError) else "failed"


def _die_with_the_parent() -> None:
    """Asks Linux to end this process when its parent ends, however that happens."""
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
