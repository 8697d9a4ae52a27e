"""Changes around the figures: libraries, drivers, machines, kernels, labels. They prevent no verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from harness.analysis.regression.cases import named
from harness.analysis.regression.findings import Change
from harness.analysis.regression.matching import HASH_DIGITS, Match
from harness.core.label import FactCode, LabelCode
from harness.core.record import RunRecord
from harness.core.variant import shown_variant

FACTS: tuple[FactCode, ...] = ("kernels", "attention", "cpu_threads", "layers")
"""Facts of a run whose change explains other changes."""
NONE = "none"


def changes(matches: Sequence[Match]) -> tuple[Change, ...]:
    """One entry for each change and each pair of values, with the variants in which it occurred."""
    new = [match for match in matches if not match.same_runs]
    names = named({match.head.spec.case_id: match.head for match in new})
    seen: dict[Change, dict[str, list[str]]] = {}
    for match in new:
        spec = match.head.spec
        for change in _of(match):
            name = shown_variant(spec.model.label, names[spec.case_id], spec.engine_label)
            seen.setdefault(change, {}).setdefault(spec.variant.key, []).append(name)
    everyone = {match.head.spec.variant.key for match in new}
    return tuple(
        replace(
            change, variants=() if who.keys() == everyone else tuple(dict.fromkeys(chain.from_iterable(who.values())))
        )
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
