"""The events of a sweep as they are printed: each as a line of JSON, and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

from harness.cli.render.forecast import expected_words, forecast_and_fact, span_entry, too_long_lines
from harness.core.foreign import shown
from harness.core.record import Failure
from harness.execution.debris import Debris
from harness.execution.events import (
    ArtifactDamaged,
    Cleared,
    DamageFound,
    Ended,
    Event,
    Expected,
    Forecasted,
    GpuUnused,
    Lost,
    NotFetched,
    NotShared,
    PhaseBegan,
    ReadingResults,
    Remaining,
    Started,
    TakenIn,
    Verifying,
    Waiting,
    Withdrawn,
)


@dataclass(frozen=True)
class Rendered:
    """``entry`` is the line of JSON. Events that the next one replaces have no ``lines``."""

    entry: Mapping[str, object]
    lines: Sequence[str] = ()
    style: str = ""
    """The colour of the lines on a terminal."""


@singledispatch
def rendered(event: Event) -> Rendered:
    """What is printed of an event. Raises TypeError for anything else."""
    raise TypeError(f"{type(event).__name__} is no event of a sweep")


@rendered.register
def _(event: Waiting) -> Rendered:
    return Rendered({"event": "waiting", "message": event.message}, [event.message])


@rendered.register
def _(event: GpuUnused) -> Rendered:
    line = f"the GPU is not used: {event.problem}"
    return Rendered({"event": "gpu_unused", "problem": event.problem}, [line], "yellow")


@rendered.register
def _(event: Cleared) -> Rendered:
    debris = event.debris
    counts = {"processes": debris.processes, "paths": len(debris.paths), "unknown": len(debris.unknown)}
    return Rendered({"event": "cleared", **counts}, _cleared_lines(debris))


@rendered.register
def _(event: DamageFound) -> Rendered:
    entry = {"event": "damaged", **event.damaged.entry(), "moved_to": event.moved_to}
    if event.moved_to is None:
        return Rendered(entry, [event.damaged.remark], "red")
    line = f"damaged, so moved to {shown(event.moved_to)} and made again: {event.damaged.sentence}"
    return Rendered(entry, [line], "red")


@rendered.register
def _(event: ReadingResults) -> Rendered:
    return Rendered({"event": "reading_results", "recipe": event.recipe})


@rendered.register
def _(event: Verifying) -> Rendered:
    return Rendered({"event": "verifying", **event.spec.names()})


@rendered.register
def _(event: NotShared) -> Rendered:
    lines = [f"{event.spec.title}: not sent to the shared cache", f"    {event.reason}"]
    return Rendered({"event": "not_shared", **event.spec.names(), "reason": event.reason}, lines, "yellow")


@rendered.register
def _(event: NotFetched) -> Rendered:
    lines = [f"{event.spec.title}: its artifact cannot be fetched from the shared cache", f"    {event.reason}"]
    return Rendered({"event": "not_fetched", **event.spec.names(), "reason": event.reason}, lines, "yellow")


@rendered.register
def _(event: ArtifactDamaged) -> Rendered:
    lines = [f"{event.spec.title}: its artifact in the cache was damaged and is removed", f"    {event.reason}"]
    return Rendered({"event": "artifact_damaged", **event.spec.names(), "reason": event.reason}, lines, "yellow")


@rendered.register
def _(event: Lost) -> Rendered:
    lost = {"node": event.node, "reason": event.reason, "for_good": event.for_good, "again": event.again}
    then = "it is made once more" if event.again else "it had been made once more already"
    left = "; nothing more runs there" if event.for_good else ""
    lines = [f"{event.spec.title}: lost with {event.node}, {then}{left}", f"    {event.reason}"]
    return Rendered({"event": "lost", **event.spec.names(), **lost}, lines, "yellow")


@rendered.register
def _(event: TakenIn) -> Rendered:
    spec = event.record.spec
    line = f"{spec.title}: taken in; an earlier sweep could not save it"
    return Rendered({"event": "taken_in", **spec.names()}, [line])


@rendered.register
def _(event: Withdrawn) -> Rendered:
    record = event.record
    message = _message(record.outcome.failure)
    entry = {"event": "withdrawn", "run_id": record.spec.run_id, "status": record.status, "failure": message}
    return Rendered(entry, [f"{record.spec.title}: withdrawn, invalid", f"    {message or ''}"], "red")


@rendered.register
def _(event: Expected) -> Rendered:
    forecast, cost = event.forecast, event.forecast.cost
    entry = {
        "event": "expected",
        **span_entry(forecast.total_s),
        "runs": len(forecast.runs),
        "disk_bytes": forecast.disk_bytes,
        "bases": dict(forecast.bases),
        "cost": None if cost is None else [cost.expected, cost.low, cost.high],
        "currency": forecast.price.currency if forecast.price else None,
        "lent_s": forecast.lent_s,
        "beyond_limit": sum(run.outlasts_its_limit for run in forecast.runs.values()),
    }
    return Rendered(entry, [f"expected: {expected_words(forecast)}", *too_long_lines(forecast)])


@rendered.register
def _(event: Remaining) -> Rendered:
    return Rendered({"event": "remaining", **span_entry(event.left_s)})


@rendered.register
def _(event: Forecasted) -> Rendered:
    counts = {"runs": event.runs, "within": event.within, "others": event.others}
    entry = {"event": "forecast_and_fact", **span_entry(event.expected_s), "took_s": event.took_s, **counts}
    return Rendered(entry, [forecast_and_fact(event)])


@rendered.register
def _(event: PhaseBegan) -> Rendered:
    return Rendered({"event": "phase", "name": event.name, "run_id": event.spec.run_id})


@rendered.register
def _(event: Started) -> Rendered:
    node = {"node": event.node} if event.node else {}
    return Rendered({"event": "started", "run": event.index, "of": event.total, **event.spec.names(), **node})


@rendered.register
def _(event: Ended) -> Rendered:
    record = event.record
    failure = record.outcome.failure
    entry = {
        **{"event": "ended", "run": event.index, "of": event.total, **record.spec.names()},
        **({"node": record.node} if record.node else {}),
        **{"status": record.status, "reused": event.reused, "wall_s": record.wall_s, "failure": _message(failure)},
    }
    took = "reused" if event.reused else f"{record.wall_s:.1f} s"
    lines = [f"[{event.index}/{event.total}] {record.spec.title}: {record.status} ({took})"]
    if failure is not None:
        lines.append(f"    in {failure.phase}: {(failure.message.splitlines() or [failure.type])[0]}")
    style = "" if record.status == "ok" else "yellow" if record.status == "unsupported" else "red"
    return Rendered(entry, lines, style)


def _message(failure: Failure | None) -> str | None:
    return failure.message if failure else None


def _cleared_lines(debris: Debris) -> list[str]:
    lines = []
    if debris.processes or debris.paths:
        processes = f"{debris.processes} process{'es' * (debris.processes != 1)}"
        lines = [f"removed what interrupted sweeps left: {processes}, {_count(len(debris.paths))}"]
    if debris.unknown:
        of = "of other machines or containers, which may still need them"
        lines.append(f"left alone: {_count(len(debris.unknown))} {of}, such as {shown(debris.unknown[0])}")
    return lines


def _count(paths: int) -> str:
    return f"{paths} unfinished file{'s' * (paths != 1)} or folder{'s' * (paths != 1)}"
