"""What around the figures is not what it was: libraries, drivers, machines, kernels, labels. Told, and no bar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.analysis.regression.findings import Change
from harness.analysis.regression.matching import HASH_DIGITS, Match
from harness.core.label import FactCode
from harness.core.record import RunRecord

FACTS: tuple[FactCode, ...] = ("kernels", "attention", "cpu_threads", "layers")
"""Findings of a run whose change explains others."""
NONE = "none"


def changes(matches: Sequence[Match]) -> tuple[Change, ...]:
    """One entry for each thing that changed and each pair of its values, with the variants it was seen in."""
    seen: dict[tuple[str, str, str], list[str]] = {}
    for match in matches:
        if match.same_runs:
            continue
        label = f"{match.head.spec.model.label} × {match.head.spec.method.label}"
        for what, base, head in _of(match):
            seen.setdefault((what, base, head), []).append(label)
    everyone = {f"{m.head.spec.model.label} × {m.head.spec.method.label}" for m in matches if not m.same_runs}
    return tuple(
        Change(*change, () if set(who) == everyone else tuple(dict.fromkeys(who)))
        for change, who in sorted(seen.items())
    )


def _of(match: Match) -> Iterable[tuple[str, str, str]]:
    base, head = match.base.runs[-1], match.head.runs[-1]
    yield from _unlike("", {"machine": base.spec.hardware}, {"machine": head.spec.hardware})
    if _started(base) and _started(head):
        yield from _unlike("", _surroundings(base), _surroundings(head))
    yield from _unlike("harness: ", _versions(base), _versions(head))
    yield from (
        (name.replace(".", " "), old[:HASH_DIGITS], new[:HASH_DIGITS]) for name, (old, new) in match.tracked.items()
    )
    if base.status == head.status == "ok":
        yield from _unlike("", _facts(base), _facts(head))
        old, new = (_labels(run) for run in (base, head))
        yield from (("label", label, NONE) for label in old - new)
        yield from (("label", NONE, label) for label in new - old)


def _facts(run: RunRecord) -> dict[str, str]:
    found = [fact for code in FACTS if (fact := run.outcome.fact(code)) is not None]
    return {fact.name: fact.value for fact in found}


def _labels(run: RunRecord) -> set[str]:
    """As they are shown: records of schema 1 hold their figures no more precisely."""
    return {label.sentence for label in run.outcome.labels if label.code != "suspect"}


def _unlike(prefix: str, base: Mapping[str, str], head: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    for name in sorted(base.keys() | head.keys()):
        if base.get(name) != head.get(name):
            yield prefix + name, base.get(name, NONE), head.get(name, NONE)


def _started(run: RunRecord) -> bool:
    return run.outcome.before is not None


def _surroundings(run: RunRecord) -> dict[str, str]:
    """Hardware, drivers and software as the run found them."""
    assert run.outcome.before is not None
    found = {**run.outcome.before.hardware, **run.outcome.before.software}
    return {name: str(value) for name, value in found.items()}


def _versions(run: RunRecord) -> dict[str, str]:
    own = {f"method {run.spec.method.name}": str(run.spec.method.version)}
    return own | {name: str(version) for name, version in run.spec.environment.versions.items()}
