"""Changes around the figures: libraries, drivers, machines, kernels, labels. They prevent no verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.analysis.regression.findings import Change
from harness.analysis.regression.matching import HASH_DIGITS, Match
from harness.core.label import FactCode, LabelCode
from harness.core.record import RunRecord

FACTS: tuple[FactCode, ...] = ("kernels", "attention", "cpu_threads", "layers")
"""Facts of a run whose change explains other changes."""
NONE = "none"


def changes(matches: Sequence[Match]) -> tuple[Change, ...]:
    """One entry for each change and each pair of values, with the variants in which it occurred."""
    seen: dict[Change, list[str]] = {}
    for match in matches:
        if match.same_runs:
            continue
        label = f"{match.head.spec.model.label} × {match.head.spec.method.label}"
        for change in _of(match):
            seen.setdefault(change, []).append(label)
    everyone = {f"{m.head.spec.model.label} × {m.head.spec.method.label}" for m in matches if not m.same_runs}
    return tuple(
        replace(change, variants=() if set(who) == everyone else tuple(dict.fromkeys(who)))
        for change, who in sorted(seen.items(), key=lambda each: (each[0].what, each[0].base, each[0].head))
    )


def _of(match: Match) -> Iterable[Change]:
    base, head = match.base.runs[-1], match.head.runs[-1]
    yield from _unlike("", {"machine": base.spec.hardware}, {"machine": head.spec.hardware})
    if _started(base) and _started(head):
        yield from _unlike("", _surroundings(base), _surroundings(head))
    yield from _unlike("harness: ", _versions(base), _versions(head))
    yield from (
        Change(name.replace(".", " "), old[:HASH_DIGITS], new[:HASH_DIGITS])
        for name, (old, new) in match.tracked.items()
    )
    if base.status == head.status == "ok":
        yield from _unlike_facts(base, head)
        old, new = (_labels(run) for run in (base, head))
        yield from (Change("label", label, NONE, code) for label, code in old.items() if label not in new)
        yield from (Change("label", NONE, label, code) for label, code in new.items() if label not in old)


def _unlike_facts(base: RunRecord, head: RunRecord) -> Iterable[Change]:
    for code in FACTS:
        old, new = (run.outcome.fact(code) for run in (base, head))
        name = next((fact.name for fact in (old, new) if fact), "")
        before, after = (fact.value if fact else NONE for fact in (old, new))
        if before != after:
            yield Change(name, before, after, code)


def _labels(run: RunRecord) -> Mapping[str, LabelCode]:
    """By their shown text: records of schema 1 hold their figures no more precisely."""
    return {label.sentence: label.code for label in run.outcome.labels if label.code != "suspect"}


def _unlike(prefix: str, base: Mapping[str, str], head: Mapping[str, str]) -> Iterable[Change]:
    for name in sorted(base.keys() | head.keys()):
        if base.get(name) != head.get(name):
            yield Change(prefix + name, base.get(name, NONE), head.get(name, NONE))


def _started(run: RunRecord) -> bool:
    return run.outcome.before is not None


def _surroundings(run: RunRecord) -> dict[str, str]:
    """Hardware, drivers and software at the time of the run."""
    assert run.outcome.before is not None
    found = {**run.outcome.before.hardware, **run.outcome.before.software}
    return {name: str(value) for name, value in found.items()}


def _versions(run: RunRecord) -> dict[str, str]:
    own = {f"method {run.spec.method.name}": str(run.spec.method.version)}
    return own | {name: str(version) for name, version in run.spec.environment.versions.items()}
