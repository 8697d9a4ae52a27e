"""Which case of HEAD answers the same question as a case of BASE, and where two that should match differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.analysis.comparability import Comparability, conditions_of_measurement
from harness.analysis.regression.cases import Case
from harness.core.record import Measurement
from harness.core.run import RunSpec

ALSO_MEASURED = ("memory", "divergence", "energy", "throughput.")
"""What was measured beside a figure does not change it; points of the grid are matched one by one."""
TRACKED = ("model.content", "method.checkpoint")
"""A checkpoint that keeps its name is treated like a library: a change is reported but does not prevent comparison."""

HASH_DIGITS = 12
"""Characters of a hash that a reader needs to distinguish two."""


@dataclass(frozen=True)
class Match:
    """A case on both sides. ``bars`` are the differing fields of the questions that make all figures incomparable.

    ``replayed``: HEAD was measured only to see whether BASE's figures come out again.
    """

    base: Case
    head: Case
    bars: tuple[str, ...] = ()
    tracked: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    replayed: bool = False

    @property
    def one_machine(self) -> bool:
        return self.base.spec.hardware == self.head.spec.hardware

    @property
    def same_runs(self) -> bool:
        """Whether nothing was measured again."""
        return self.base is self.head or self.base.identities == self.head.identities

    @property
    def differs_by_rounding(self) -> bool:
        """Whether nothing but rounding may tell two honest measurements of the same items apart.

        It is a replay, and libraries, class of machine and artifacts are the same.
        """
        return self.replayed and self.base.spec.run_id == self.head.spec.run_id


@dataclass(frozen=True)
class Matches:
    both: tuple[Match, ...]
    gone: tuple[Case, ...]
    new: tuple[Case, ...]


def match(base: Mapping[str, Case], head: Mapping[str, Case], replayed: bool = False) -> Matches:
    """By case id; the rest by the names that a reader knows, if these are unambiguous."""
    both = [Match(case, head[case_id], replayed=replayed) for case_id, case in base.items() if case_id in head]
    gone = {case_id: case for case_id, case in base.items() if case_id not in head}
    new = {case_id: case for case_id, case in head.items() if case_id not in base}
    theirs, ours = _by_name(gone), _by_name(new)
    for name in [name for name in theirs if name in ours]:
        old_id, new_id = theirs[name], ours[name]
        both.append(_unlike(gone.pop(old_id), new.pop(new_id)))
    return Matches(tuple(both), tuple(gone.values()), tuple(new.values()))


def _by_name(found: Mapping[str, Case]) -> dict[str, str]:
    """From a name that only one case has to its case id."""
    names: dict[str, list[str]] = {}
    for case_id, case in found.items():
        names.setdefault(_name(case.spec), []).append(case_id)
    return {name: ids[0] for name, ids in names.items() if len(ids) == 1}


def _name(spec: RunSpec) -> str:
    return json.dumps([spec.kind, spec.model.label, spec.method.label, spec.engine_label, workload(spec)])


def workload(spec: RunSpec) -> str:
    """What a run scores: a task's name or a perplexity's protocol; empty if it scores nothing."""
    return spec.job.workload


def _unlike(base: Case, head: Case) -> Match:
    theirs, ours = (dict(_flat(_named(case.spec.question))) for case in (base, head))
    unlike = {
        name: (str(theirs.get(name)), str(ours.get(name)))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name) and not name.startswith(ALSO_MEASURED)
    }
    bars = tuple(f"{name}: {old} → {new}" for name, (old, new) in unlike.items() if name not in TRACKED)
    return Match(base, head, bars, {name: pair for name, pair in unlike.items() if name in TRACKED})


def _named(question: Mapping[str, Any]) -> dict[str, Any]:
    """The question, with names for what it holds by position."""
    named = dict(question)
    named["model"] = dict(zip(("content", "dtype", "degrid", "config", "seed"), question["model"], strict=True))
    for role in ("method", "baseline"):
        if role in question:
            name, chosen, *stack = question[role]
            key = "params" if isinstance(chosen, dict) else "checkpoint"
            named[role] = {"name": name, key: chosen, "stack": stack}
    return named


def _flat(value: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{under}{name}.")
        else:
            yield f"{under}{name}", inner


def differing(pairs: Iterable[tuple[str, object, object]]) -> tuple[str, ...]:
    """``name: BASE → HEAD`` for those that differ; hashes are shortened."""
    return tuple(f"{name}: {_shown(name, old)} → {_shown(name, new)}" for name, old, new in pairs if old != new)


def unlike_conditions(base: Measurement, head: Measurement) -> tuple[str, ...]:
    """The conditions under which only one of two measurements was made."""
    theirs, ours = (Comparability(conditions_of_measurement(each)) for each in (base, head))
    return differing((name.replace("_", " "), old, new) for name, old, new in theirs.differing(ours))


def _shown(name: str, value: object) -> str:
    whole = "none" if value is None else str(value)
    return whole[:HASH_DIGITS] if "sha256" in name else whole
