"""Entries: attempts as the index of results keeps them, and segments, of which an index consists.

A segment has three columns: texts, integers and floats. Each text is in it once, however many records share it, and so
is each part: the places of the fields of a dataclass, of a record's spec for example, and of that spec's variant. An
entry is a row that names its places there: from them its record is built when it is used, and its measurements when
those are used. Everything in it was read from files that were checked, so it is decoded, but not checked again.
"""

from __future__ import annotations

import hashlib
import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from harness.core.assembly import assembler
from harness.core.column import LazyColumn
from harness.core.job import JOBS, VariantJob
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.storage.evidence import FEW_VALUES, EvidenceFile
from harness.storage.json_codec import encode
from harness.storage.seal import EVIDENCE, FileSeal

T = TypeVar("T")
_HEAD = struct.Struct("<32sQQQ")
"""The sha256 of the three columns, and the bytes of each."""
MAX_SHARED = 50_000
"""Values of each sort that records share in memory."""
COLUMNS = 5
"""Integers of a measurement: its kind, its values, ``WEIGHTED`` and ``ELSEWHERE``, places of items and clusters."""
WEIGHTED, ELSEWHERE = 1, 2
"""Whether the values have weights, and whether all columns are read from the evidence when they are used."""
_JOB = RunSpec, "job"
MAX_CHARACTERS = 2**14
"""Of the items of a measurement with few values. Texts of answers have more, and would make the index large."""


@dataclass(frozen=True)
class Arrays:
    """Of each measurement of a record, its values, weights, items and clusters."""

    values: list[Sequence[float]]
    weights: list[Sequence[float]]
    item_ids: list[Sequence[str]]
    cluster_ids: list[Sequence[str]]


class MeasuredPlace(NamedTuple):
    """Where the measurements of an entry are among the integers and the floats of its segment.

    The integers are column by column, ``COLUMNS`` of them. The means come first among the floats; the values and
    weights of each measurement follow, unless they are ``ELSEWHERE``.
    """

    first_integer: int
    first_float: int
    measurements: int


Names = dict[str, str | int | None]
"""A run's description for programs."""


Stamps = list[list[int]]
"""Inode, size, and both times of change in ns: of the attempt's folder, and of each of its files."""


class DamagedIndexError(Exception):
    """What follows in an index is not what was written."""


@dataclass
class Segment:
    """``folder`` is the recipe's, where the evidence is. ``began_ns`` is a time of its file system's clock, before the
    files were read. A part begins with the number of a shape, the names of its class and fields; their places follow:
    one in ``texts``, or -1 minus the number of another part. The first shape are the names of ``names_of``, of which
    each row has the values. ``runs`` maps a run's folder to its stamp and the attempts in it.
    """

    folder: Path
    began_ns: int = 0
    texts: list[str] = field(default_factory=list)
    shapes: list[list[str]] = field(default_factory=list)
    parts: list[list[int]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    runs: dict[str, list[Any]] = field(default_factory=dict)
    integers: Any = field(default_factory=lambda: array("i"))
    floats: Any = field(default_factory=lambda: array("d"))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {text: place for place, text in enumerate(self.texts)}

    @cached_property
    def _part_numbers(self) -> dict[tuple[int, ...], int]:
        return {tuple(part): number for number, part in enumerate(self.parts)}

    @cached_property
    def _made(self) -> dict[int, Any]:
        return {}

    @cached_property
    def _fields(self) -> dict[int, dict[str, Any]]:
        return {}

    @cached_property
    def _copied(self) -> dict[tuple[int, int], int]:
        """By ``id`` of another segment and a number of a part there, the part's number here."""
        return {}

    @cached_property
    def name_places(self) -> Mapping[str, int]:
        """The place of each name among the values of a row's names."""
        return {name: place for place, name in enumerate(self.shapes[0])}

    def made(self, kind: type[T], number: int) -> T:
        """The dataclass that a part is of, built once: variants, models and methods have many runs."""
        if number not in self._made:
            self._made[number] = assembler(kind)(self._read_fields(kind, number))  # type: ignore[arg-type]
        found: T = self._made[number]
        return found

    def fields(self, kind: type, number: int) -> Mapping[str, Any]:
        """The fields of the dataclass that a part is of. Many outcomes have the same."""
        if number not in self._fields:
            self._fields[number] = self._read_fields(kind, number)
        return self._fields[number]

    def _read_fields(self, kind: type, number: int) -> dict[str, Any]:
        shape, *places = self.parts[number]
        return {
            name: self._nested(kind, name, -1 - place) if place < 0 else _value(kind, name, self.texts[place])
            for name, place in zip(self.shapes[shape][1:], places, strict=True)
        }

    def _nested(self, kind: type, name: str, number: int) -> Any:
        if number in self._made:
            return self._made[number]
        inner = _job_of(self.shapes[self.parts[number][0]][0]) if (kind, name) == _JOB else _dataclass_of(kind, name)
        return self.made(inner, number)

    def entries(self) -> Iterator[IndexEntry]:
        return (IndexEntry(self, row) for row in self.rows)

    def text(self, text: str) -> int:
        """The place of a text, which is added if it is new."""
        place = self._places.setdefault(text, len(self.texts))
        if place == len(self.texts):
            self.texts.append(text)
        return place

    def _shape(self, names: Iterable[str]) -> int:
        """The number of a list of names, which is added if it is new."""
        shape = list(names)
        if shape not in self.shapes:
            self.shapes.append(shape)
        return self.shapes.index(shape)

    def part(self, kind: type, raw: Mapping[str, Any]) -> int:
        """The number of the part of a dataclass, from its fields as JSON has them; it is added if it is new."""
        shape = self._shape([kind.__name__, *raw])
        return self._part(shape, [self._place(kind, name, value) for name, value in raw.items()])

    def _place(self, kind: type, name: str, value: Any) -> int:
        inner = JOBS[value["kind"]] if (kind, name) == _JOB else _dataclass_of(kind, name)
        if inner is None:
            return self.text(json.dumps(value, ensure_ascii=False))
        return -1 - self.part(inner, value)

    def _copy_part(self, old: Segment, number: int) -> int:
        """The number of a part of another segment, which is added if it is new."""
        key = id(old), number
        if key not in self._copied:
            shape, *places = old.parts[number]
            moved = [-1 - self._copy_part(old, -1 - p) if p < 0 else self.text(old.texts[p]) for p in places]
            self._copied[key] = self._part(self._shape(old.shapes[shape]), moved)
        return self._copied[key]

    def _part(self, shape: int, places: Iterable[int]) -> int:
        part = shape, *places
        number = self._part_numbers.setdefault(part, len(self.parts))
        if number == len(self.parts):
            self.parts.append(list(part))
        return number

    def add(
        self, key: str, stamps: Stamps, record: RunRecord, seal: str | None, files: Mapping[str, FileSeal]
    ) -> IndexEntry:
        """Adds an attempt that was read; ``key`` is its folder in the recipe's."""
        raw = json.loads(encode(_without_measurements(record)))
        outcome, spec = raw.pop("outcome"), raw.pop("spec")
        outcome.pop("measurements")
        measured = record.outcome.measurements
        places = [len(self.integers), len(self.floats), len(measured)]
        columns: list[list[int]] = [[] for _ in range(COLUMNS)]
        self.floats.extend(m.mean for m in measured)
        for m in measured:
            few = _is_short(m)
            columns[0].append(self.text(kind_text(m)))
            columns[1].append(len(m.values))
            columns[2].append(WEIGHTED * bool(m.weights) + ELSEWHERE * (not few))
            for column, ids in ((3, m.item_ids), (4, m.cluster_ids)):
                columns[column].append(1 + self.text(_ids_text(tuple(ids))) if ids and few else bool(ids))
            if few:
                self.floats.extend(m.values)
                self.floats.extend(m.weights)
        for each in columns:
            self.integers.extend(each)
        names = names_of(record)
        self._shape(names)
        parts = [
            self.part(kind, {name: value for name, value in each.items() if name not in NAMED})
            for kind, each in ((RunSpec, spec), (Outcome, outcome), (RunRecord, raw))
        ]
        sealed = {name: [each.bytes, each.sha256] for name, each in files.items()}
        row = [key, stamps, sealed, seal, list(names.values()), *parts, *places]
        self.rows.append(row)
        return IndexEntry(self, row)

    def copy(self, entry: IndexEntry, stamps: Stamps) -> None:
        """Adds an entry of another segment, with the stamps that its files have now."""
        key, _, sealed, seal, names, *parts, begin, begin_floats, count = entry.row
        old = entry.segment
        self._shape(old.shapes[0])
        moved = [self._copy_part(old, number) for number in parts]
        columns = [
            old.integers[begin + count * number : begin + count * (number + 1)].tolist() for number in range(COLUMNS)
        ]
        few = [not flags & ELSEWHERE for flags in columns[2]]
        kept = [
            [self.text(old.texts[place]) for place in columns[0]],
            columns[1],
            columns[2],
            *(
                [
                    1 + self.text(old.texts[place - 1]) if place and is_few else place
                    for place, is_few in zip(columns[number], few, strict=True)
                ]
                for number in (3, 4)
            ),
        ]
        places = [len(self.integers), len(self.floats), count]
        for each in kept:
            self.integers.extend(each)
        self.floats.extend(old.floats[begin_floats : begin_floats + entry.float_count])
        self.rows.append([key, stamps, sealed, seal, names, *moved, *places])

    def written(self) -> bytes:
        content = [self.began_ns, self.texts, self.shapes, self.parts, self.rows, self.runs]
        text = json.dumps(content, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        columns = text, self.integers.tobytes(), self.floats.tobytes()
        padded = [each + b"\0" * (-len(each) % 8) for each in columns]
        return b"".join([_HEAD.pack(_hash(padded), *map(len, columns)), *padded])

    @classmethod
    def read(cls, folder: Path, content: memoryview) -> tuple[Segment, int]:
        """The segment at the beginning of a content, and its bytes. Raises DamagedIndexError if it is not whole."""
        if len(content) < _HEAD.size:
            raise DamagedIndexError
        digest, *sizes = _HEAD.unpack_from(content)
        padded = [size + -size % 8 for size in sizes]
        if sum(padded) > len(content) - _HEAD.size:
            raise DamagedIndexError
        columns, begin = [], _HEAD.size
        for size in padded:
            columns.append(content[begin : begin + size])
            begin += size
        if _hash(columns) != digest:
            raise DamagedIndexError
        integers, floats = columns[1][: sizes[1]].cast("i"), columns[2][: sizes[2]].cast("d")
        began_ns, texts, shapes, parts, rows, runs = json.loads(bytes(columns[0]))
        return cls(folder, began_ns, texts, shapes, parts, rows, runs, integers, floats), begin


@dataclass(frozen=True, eq=False)
class IndexEntry:
    """An attempt that was read. ``row`` is as ``Segment.add`` makes it."""

    segment: Segment
    row: list[Any]

    @property
    def key(self) -> str:
        """Its folder in the recipe's: run id and attempt."""
        key: str = self.row[0]
        return key

    @property
    def stamps(self) -> Stamps:
        stamps: Stamps = self.row[1]
        return stamps

    @property
    def file_names(self) -> Iterable[str]:
        names: dict[str, Any] = self.row[2]
        return names

    @property
    def files(self) -> dict[str, FileSeal]:
        """Its files, as they were read."""
        return {name: FileSeal(*each) for name, each in self.row[2].items()}

    @property
    def seal(self) -> str | None:
        """The sha256 of its record's seal; None for a record without."""
        seal: str | None = self.row[3]
        return seal

    @property
    def order(self) -> tuple[str, int]:
        places, names = self.segment.name_places, self.row[4]
        return names[places["started_at"]], names[places["attempt"]]

    @property
    def names(self) -> Names:
        return dict(zip(self.segment.shapes[0], self.row[4], strict=True))

    @property
    def recipe(self) -> str:
        recipe: str = self.row[4][self.segment.name_places["recipe"]]
        return recipe

    @property
    def float_count(self) -> int:
        """Floats that it has in its segment: means, and the values and weights of short measurements."""
        return self._float_count(self._special())

    def _float_count(self, special: Sequence[tuple[int, ...]]) -> int:
        few = (count * (1 + flags) for _, count, flags, *_ in special if not flags & ELSEWHERE)
        return 2 * self._count - len(special) + sum(few)

    def _special(self) -> list[tuple[int, ...]]:
        """The measurements with other than one value or anything beside it, as few have: each with its integers."""
        columns = (self._integers(column) for column in range(1, COLUMNS))
        return [each for each in zip(range(self._count), *columns, strict=True) if each[1:] != (1, 0, 0, 0)]

    @cached_property
    def record(self) -> RunRecord:
        """The record. Its measurements are built when they are used."""
        segment, names, (spec, outcome, rest) = self.segment, self.row[4], self.row[5:8]
        places = segment.name_places
        made = segment.made(RunSpec, spec)
        # computing them takes longer than all else
        vars(made).update(run_id=names[places["run_id"]], case_id=names[places["case_id"]])
        if isinstance(made.job, VariantJob):
            vars(made.job.variant)["key"] = names[places["variant"]]
        named = {name: names[places[name]] for name in NAMED}
        ended = assembler(Outcome)({**segment.fields(Outcome, outcome), "measurements": Measured(self)})
        found: RunRecord = assembler(RunRecord)(
            {"spec": made, "outcome": ended, **named, **segment.fields(RunRecord, rest)}
        )
        return found

    @property
    def kinds(self) -> list[str]:
        """Of each measurement, what ``kind_of`` reads."""
        texts = self.segment.texts
        return [texts[place] for place in self._integers(0)]

    @property
    def place(self) -> MeasuredPlace:
        return MeasuredPlace(*self.row[8:])

    def arrays(self) -> Arrays:
        """The values, weights, items and clusters of its measurements."""
        special = self._special()
        begin, end = self.row[9] + self._count, self.row[9] + self._float_count(special)
        own: list[float] = self.segment.floats[begin:end].tolist()
        singles = list(zip(own, strict=True))
        values = list[Sequence[float]]()
        weights: list[Sequence[float]] = [()] * self._count
        items: list[Sequence[str]] = [()] * self._count
        clusters: list[Sequence[str]] = [()] * self._count
        place = 0
        for number, count, flags, *ids in special:
            weighted = flags & WEIGHTED
            before = number - len(values)
            values += singles[place : place + before]
            place += before
            if not flags & ELSEWHERE:
                middle, end = place + count, place + count * (1 + weighted)
                values.append(tuple(own[place:middle]))
                weights[number] = tuple(own[middle:end])
                items[number], clusters[number] = (ids_of(self._text(each - 1)) if each else () for each in ids)
                place = end
            else:
                there = {"values": True, "weights": weighted, "item_ids": ids[0], "cluster_ids": ids[1]}
                columns = self.evidence.columns(number, {name: count for name, has in there.items() if has})
                values.append(columns["values"])
                weights[number] = columns.get("weights", ())
                items[number], clusters[number] = columns.get("item_ids", ()), columns.get("cluster_ids", ())
        values += singles[place:]
        return Arrays(values, weights, items, clusters)

    @cached_property
    def evidence(self) -> EvidenceFile:
        return EvidenceFile(self.segment.folder.absolute() / self.key / EVIDENCE, self.files[EVIDENCE])

    @property
    def _count(self) -> int:
        count: int = self.row[10]
        return count

    def _integers(self, column: int) -> list[int]:
        begin = self.row[8] + column * self._count
        found: list[int] = self.segment.integers[begin : begin + self._count].tolist()
        return found

    def _text(self, place: int) -> str:
        return self.segment.texts[place]


class Measured(LazyColumn[Measurement]):
    """The measurements of an entry, built when one of them is used, and kept."""

    __slots__ = ("_built", "_entry")

    def __init__(self, entry: IndexEntry) -> None:
        super().__init__(entry.row[10], self._all)
        self._entry = entry
        self._built: tuple[Measurement, ...] | None = None

    def _all(self) -> tuple[Measurement, ...]:
        if self._built is None:
            found = self._entry.arrays()
            columns = zip(found.values, found.weights, found.item_ids, found.cluster_ids, strict=True)
            self._built = tuple(
                Measurement(*kind_of(kind), values, protocol_of(kind), weights, items, clusters)
                for kind, (values, weights, items, clusters) in zip(self._entry.kinds, columns, strict=True)
            )
        return self._built


NAMED = ("session", "attempt", "node", "started_at")
"""Fields of a record that are among its names."""


def names_of(record: RunRecord) -> Names:
    """What ``load_results`` shows of a run: hashing it takes long, so that an entry has it."""
    spec, failure = record.spec, record.outcome.failure
    return {
        "recipe": spec.recipe,
        "case_id": spec.case_id,
        "variant": spec.variant.key if isinstance(spec.job, VariantJob) else None,
        **spec.names(),
        "attempt": record.attempt,
        "session": record.session,
        "node": record.node,
        "started_at": record.started_at,
        "status": record.status,
        "failure": failure.message if failure else None,
    }


@lru_cache(MAX_SHARED)
def kind_of(kind: str) -> tuple[Any, Any, Any, Any, Any]:
    """Metric, version, unit, direction and evidence of a measurement."""
    metric, version, unit, direction, evidence, _ = json.loads(kind)
    return metric, version, unit, direction, evidence


@lru_cache(MAX_SHARED)
def protocol_of(kind: str) -> dict[str, Any]:
    """The protocol of a measurement."""
    protocol: dict[str, Any] = json.loads(kind)[5]
    return protocol


def kind_text(m: Measurement) -> str:
    """What measurements of the same thing share, for ``kind_of`` and ``protocol_of``."""
    return _kind_text(m.metric, m.version, m.unit, m.direction, m.evidence, tuple(_typed(m.protocol)))


def _typed(protocol: Mapping[str, Any]) -> Iterator[tuple[str, type, Any]]:
    """The entries with their types: as keys of a cache, 1, 1.0 and true are the same."""
    return ((name, type(value), value) for name, value in protocol.items())


@lru_cache(MAX_SHARED)
def _kind_text(
    metric: str, version: int, unit: str, direction: str, evidence: str, typed: tuple[tuple[str, type, Any], ...]
) -> str:
    protocol = {name: value for name, _, value in typed}
    return json.dumps([metric, version, unit, direction, evidence, protocol], ensure_ascii=False)


@lru_cache(MAX_SHARED)
def _ids_text(ids: tuple[str, ...]) -> str:
    return json.dumps(ids)


def _is_short(measured: Measurement) -> bool:
    """Whether its columns are in the index. A single value is not in the evidence."""
    if len(measured.values) < 2:
        return True
    return len(measured.values) <= FEW_VALUES and sum(map(len, measured.item_ids)) <= MAX_CHARACTERS


def _without_measurements(record: RunRecord) -> RunRecord:
    """The same record; its measurements, which may have millions of values, are encoded apart."""
    outcome = {each.name: getattr(record.outcome, each.name) for each in fields(Outcome)}
    rest = {each.name: getattr(record, each.name) for each in fields(RunRecord)}
    return RunRecord(**{**rest, "outcome": Outcome(**{**outcome, "measurements": ()})})


@cache
def _job_of(name: str) -> Any:
    """The class of jobs with this name."""
    return next(each for each in JOBS.values() if each.__name__ == name)


@cache
def _dataclass_of(kind: type, name: str) -> Any:
    """The dataclass that a field is always of; None for any other value."""
    hint = _hints(kind)[name]
    return hint if is_dataclass(hint) else None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _adapter(kind: type, name: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(_hints(kind)[name])


@lru_cache(MAX_SHARED)
def _value(kind: type, name: str, text: str) -> Any:
    """A field of a dataclass. Equal texts give one value, which records share."""
    return _adapter(kind, name).validate_json(text, strict=True)


@lru_cache(MAX_SHARED)
def ids_of(text: str) -> tuple[str, ...]:
    """The items or clusters of a measurement with few values."""
    return tuple(json.loads(text))


def _hash(columns: Sequence[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for each in columns:
        digest.update(each)
    return digest.digest()
