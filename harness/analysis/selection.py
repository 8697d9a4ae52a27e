"""Which attempt and session of a run counts, and which records may share a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache

from harness.analysis.kept import NOTHING, KeptEntries
from harness.core.identity import Scalar, digest
from harness.core.record import Measurement, RunRecord
from harness.core.run import RunSpec
from harness.core.workload import PerplexityWorkload

Protocol = tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True)
class ComparisonSetting:
    """What variants must share before their figures are compared, apart from the perplexity protocol.

    A model is identified by its content, because two recipes may give it different names.
    """

    model: str = field(compare=False)
    model_id: str
    hardware: str
    device: str
    threads: int | None
    attention: str | None
    baseline: str
    devices: int = 1

    @property
    def hardware_text(self) -> str:
        threads = f"{self.threads} threads" if self.threads else None
        attention = f"attention {self.attention}" if self.attention else None
        devices = f"{self.devices} devices" if self.devices > 1 else None
        return " · ".join(part for part in (self.hardware, self.device, devices, threads, attention) if part)


def setting(spec: RunSpec) -> ComparisonSetting:
    return ComparisonSetting(
        spec.model.label,
        spec.model.content_id,
        spec.hardware,
        spec.device,
        spec.job.conditions.threads,
        spec.job.conditions.attention,
        spec.baseline.content_id,
        spec.job.conditions.devices,
    )


def in_order(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Oldest first."""
    return sorted(records, key=lambda record: (record.started_at, record.attempt))


AttemptKey = tuple[str, str, str]
"""``RunRecord.key``."""


def withdrawn(records: Iterable[RunRecord]) -> frozenset[AttemptKey]:
    """The attempts that are invalid: what its owner withdrew in one place counts in no copy elsewhere."""
    return frozenset(record.key for record in records if record.status == "invalid")


def without(gone: Set[AttemptKey], records: Iterable[RunRecord]) -> list[RunRecord]:
    """The records without those that are copies of ``gone`` attempts, but are not invalid themselves."""
    return [record for record in records if record.status == "invalid" or record.key not in gone]


def current(records: Iterable[RunRecord]) -> tuple[RunRecord, ...]:
    """For each run, the attempt that counts: the latest successful one, otherwise the latest. Oldest first."""
    return _latest(records, lambda record: record.spec.run_id)


def current_in_session(records: Iterable[RunRecord]) -> tuple[RunRecord, ...]:
    """As ``current``, but per session and node: speeds of two are never mixed."""
    return _latest(records, lambda record: (record.spec.run_id, *record.timed_within))


def best_session(performance: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """The records of the session, and of its node, with the most successful ones; of two equal ones, the later.

    A resumed sweep runs only the missing repetitions, which must not replace the rest.
    """
    sessions: dict[tuple[str, str], list[RunRecord]] = {}
    for record in in_order(performance):
        sessions.setdefault(record.timed_within, []).append(record)
    ordered = reversed(list(sessions.values()))
    return tuple(max(ordered, key=lambda records: sum(r.status == "ok" for r in records), default=[]))


def protocols(quality: Sequence[RunRecord], kept: KeptEntries = NOTHING) -> dict[Protocol, tuple[RunRecord, ...]]:
    """The quality records, grouped by what was really scored.

    A run that gave no figure is grouped with those that scored the same workload.
    """
    measured = [_measured(record, kept) for record in quality]
    scored = {
        _workload_key(record.spec.perplexity): found for record, found in zip(quality, measured, strict=True) if found
    }
    groups: dict[Protocol, list[RunRecord]] = {}
    for record, found in zip(quality, measured, strict=True):
        workload = record.spec.perplexity
        protocol = found or scored.get(_workload_key(workload)) or _planned(workload)
        groups.setdefault(protocol, []).append(record)
    return {protocol: tuple(group) for protocol, group in groups.items()}


def same_workload(one: RunSpec, other: RunSpec) -> bool:
    """Whether both should score the same windows of the same text."""
    return _workload_key(one.perplexity) == _workload_key(other.perplexity)


def protocol_text(protocol: Protocol) -> str:
    """``gptq · bos none · context 512 …``: every condition that the figures depend on."""
    if not protocol:
        return "no text was scored"
    named = dict(protocol)
    first = str(named.pop("protocol", "perplexity"))
    return " · ".join([first, *(f"{name.replace('_', ' ')} {_shown(name, value)}" for name, value in named.items())])


def _shown(name: str, value: Scalar) -> str:
    if "sha256" in name:
        return str(value)[:12]
    return repr(value) if (isinstance(value, str) and value != value.strip()) or value == "" else str(value)


def _latest(records: Iterable[RunRecord], key: Callable[[RunRecord], Hashable]) -> tuple[RunRecord, ...]:
    chosen: dict[Hashable, RunRecord] = {}
    for record in in_order(records):
        earlier = chosen.get(key(record))
        if earlier is None or record.status == "ok" or earlier.status != "ok":
            chosen[key(record)] = record
    return tuple(in_order(chosen.values()))


def _measured(record: RunRecord, kept: KeptEntries) -> Protocol:
    """What was kept need not be looked for among all that the run measured."""
    if record.status != "ok":
        return ()
    return kept.take(
        kept.key("protocol", (record,)),
        lambda: record.outcome.remember("protocol", lambda: _protocol(record.find("nll"))),
        lambda found: json.dumps(dict(found)),
        lambda text: tuple(json.loads(text).items()),
    )


def _protocol(nll: Measurement | None) -> Protocol:
    return () if nll is None else (*sorted(nll.protocol.items()), ("metric version", nll.version))


def _planned(workload: PerplexityWorkload | None) -> Protocol:
    if workload is None:
        return ()
    settings = {**workload.settings(), "text": workload.text.id, "windows": workload.windows or "all"}
    return tuple(sorted(settings.items()))


@lru_cache(1000)
def _workload_key(workload: PerplexityWorkload | None) -> str | None:
    """Identifies the text by its content, independent of its location."""
    if workload is None:
        return None
    text = workload.text
    content = text.sha256 or [text.id, text.hub, text.config, text.split, text.revision]
    return digest([content, text.field, workload.settings()])
