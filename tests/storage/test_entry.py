"""Records as an index keeps them, in parts that records share: they are what they were, whatever their fields hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from random import Random
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from run_specs import run_spec

from harness.core.job import JOBS
from harness.core.label import FACTS, LABELS, Fact, Label
from harness.core.record import Outcome, RunRecord
from harness.core.run import RunSpec
from harness.storage.entry import IndexEntry, Segment
from harness.storage.json_codec import encode

PLAIN: dict[Any, Sequence[Any]] = {
    str: ("", "a", "kind", "é"),
    int: (0, 1, 2),
    float: (0.0, 0.5, 1.0),
    bool: (False, True),
    NoneType: (None,),
    Any: (None, True, 1, 1.0, "kind", ["a", 1], {"kind": ["a list is no key"]}, {"kind": "quality"}),
    Label: [Label(code, form.example) for code, form in LABELS.items()],
    Fact: [Fact(code, form.example) for code, form in FACTS.items()],
}
"""Few values of each type, so that records have equal parts."""


def drawn(hint: Any, random: Random) -> Any:
    """A value of a type; every field of a dataclass has one, so that no field can be forgotten here."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return random.choice(PLAIN[hint])
    if is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return hint(**{each.name: drawn(hints[each.name], random) for each in fields(hint) if each.name in hints})
    if hint == RECORD_HINTS["measurements"]:
        return ()
    if origin is Annotated:
        return drawn(arguments[0], random)
    if origin is Literal:
        return random.choice(arguments)
    if origin in (Union, UnionType):
        return drawn(random.choice(arguments), random)
    some = range(random.randrange(3))
    if origin is tuple:
        return tuple(drawn(arguments[0], random) for _ in some)
    assert issubclass(origin, Mapping), hint
    return {drawn(arguments[0], random): drawn(arguments[1], random) for _ in some}


RECORD_HINTS = get_type_hints(Outcome, include_extras=True)


def read_back(records: Sequence[RunRecord]) -> list[RunRecord]:
    """As a segment has them that was written, read, copied to another segment, and written and read again."""
    first, second = Segment(Path("results")), Segment(Path("results"))
    for number, record in enumerate(records):
        first.add(f"run/{number}", [], record, None, {})
    for entry in reread(first):
        second.copy(entry, [])
    return [entry.record for entry in reread(second)]


def reread(segment: Segment) -> Iterator[IndexEntry]:
    content = segment.written()
    found, size = Segment.read(segment.folder, memoryview(content))
    assert size == len(content)
    return found.entries()


def assert_same(found: RunRecord, record: RunRecord) -> None:
    assert found == record
    assert encode(found) == encode(record)  # which tells 1, 1.0 and true apart
    assert found.spec.names() == replace(record.spec).names()  # nothing of the copy was computed before


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_a_record_of_any_kind_is_what_it_was(kind: str) -> None:
    """Its neighbours are of any kind, and have some parts in common with it."""
    random = Random(kind)
    for _ in range(10):
        jobs = [drawn(JOBS[each], random) for each in (kind, kind, random.choice(sorted(JOBS)))]
        records = [
            RunRecord(replace(drawn(RunSpec, random), job=job), drawn(Outcome, random), "s", number, f"{number}", 1.0)
            for number, job in enumerate(jobs, 1)
        ]
        for found, record in zip(read_back(records), records, strict=True):
            assert_same(found, record)


def test_records_of_a_variant_share_it_and_nothing_of_one_is_in_another() -> None:
    records = [RunRecord(run_spec("performance", repetition=n), Outcome("ok"), "s", 1, f"{n}", 1.0) for n in range(3)]
    found = read_back(records)
    assert len({id(each.spec.variant) for each in found}) == 1
    assert len({each.spec.run_id for each in found}) == len(found)
    found[0].outcome.remember("of the first", lambda: 1)
    assert [each.outcome.remember("of the first", lambda: 2) for each in found] == [1, 2, 2]
