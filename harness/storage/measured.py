"""The measurements of many records as columns, read from their index at once: ten thousand records have half a million.

Imported by what shows all of them alone: the commands that derive figures need not wait for numpy because of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.core.record import RunRecord
from harness.storage.entry import COLUMNS, ELSEWHERE, WEIGHTED, IndexEntry, Segment, ids_of, kind_text

Integers = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]


@dataclass(frozen=True)
class MeasuredColumns:
    """A row for each measurement, record by record; ``per_record`` says how many each record has.

    ``kinds`` are numbers of ``kind_texts``, for ``kind_of`` and ``protocol_of``; ``counts`` says how many values there
    are. ``values`` and ``item_ids`` hold sequences.
    """

    per_record: Integers
    kind_texts: list[str]
    kinds: Integers
    counts: Integers
    means: npt.NDArray[np.float64]
    values: Objects
    item_ids: Objects


def of_records(records: Sequence[RunRecord]) -> MeasuredColumns:
    """Those of records that were read without an index."""
    found = [m for record in records for m in record.outcome.measurements]
    numbers: dict[str, int] = {}
    kinds = [numbers.setdefault(kind_text(m), len(numbers)) for m in found]
    return MeasuredColumns(
        _integers(len(record.outcome.measurements) for record in records),
        list(numbers),
        _integers(kinds),
        _integers(len(m.values) for m in found),
        np.array([m.mean for m in found], dtype=np.float64),
        _objects(m.values for m in found),
        _objects(m.item_ids for m in found),
    )


def of_entries(entries: Sequence[IndexEntry]) -> MeasuredColumns:
    """Those of records as their index has them; long columns are read from the evidence when they are used."""
    per_record = _integers(entry.place.measurements for entry in entries)
    total = int(per_record.sum())
    begins = np.cumsum(per_record) - per_record
    found = MeasuredColumns(
        per_record,
        kind_texts=[],
        kinds=np.empty(total, dtype=np.int64),
        counts=np.empty(total, dtype=np.int64),
        means=np.empty(total, dtype=np.float64),
        values=np.empty(total, dtype=np.object_),
        item_ids=np.empty(total, dtype=np.object_),
    )
    by_segment: dict[int, list[int]] = {}
    for number, entry in enumerate(entries):
        by_segment.setdefault(id(entry.segment), []).append(number)
    numbers: dict[str, int] = {}
    for own in by_segment.values():
        _fill(found, entries[own[0]].segment, [entries[number] for number in own], begins[own], numbers)
    found.kind_texts.extend(numbers)
    return found


def _fill(
    found: MeasuredColumns,
    segment: Segment,
    entries: Sequence[IndexEntry],
    begins: Integers,
    numbers: dict[str, int],
) -> None:
    """Fills in the rows of a segment's entries, which begin at ``begins``; ``numbers`` are those of kinds."""
    places = [entry.place for entry in entries]
    first, first_float, counts = (_integers(each) for each in zip(*places, strict=True))
    starts = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(starts, counts)
    rows = np.repeat(begins, counts) + within
    integers, floats = np.asarray(segment.integers), np.asarray(segment.floats)
    kinds, sizes, flags, items, _ = (
        integers[np.repeat(first + column * counts, counts) + within].astype(np.int64) for column in range(COLUMNS)
    )
    is_elsewhere = (flags & ELSEWHERE) != 0
    held = np.where(is_elsewhere, 0, sizes)
    ends = np.cumsum(held * (1 + (flags & WEIGHTED)))
    before = np.concatenate([[0], ends])  # floats of the measurements before each, of all entries
    begin = np.repeat(first_float + counts - before[starts], counts) + before[:-1]
    values = np.empty(len(within), dtype=np.object_)
    singles = held == 1  # nearly all: their tuples are made at once
    values[singles] = _objects(zip(floats[begin[singles]].tolist()))
    for place in np.flatnonzero(~singles).tolist():
        values[place] = tuple(floats[begin[place] : begin[place] + held[place]].tolist())
    ids: list[Sequence[str]] = [()] * len(values)
    for place in np.flatnonzero(items).tolist():
        ids[place] = () if is_elsewhere[place] else ids_of(segment.texts[items[place] - 1])
    owners = np.repeat(np.arange(len(entries)), counts)
    for place in np.flatnonzero(is_elsewhere).tolist():
        present = {name: int(sizes[place]) for name, has in (("values", True), ("item_ids", items[place])) if has}
        columns = entries[owners[place]].evidence.columns(int(within[place]), present)
        values[place], ids[place] = columns["values"], columns.get("item_ids", ())
    found.kinds[rows] = _numbered(kinds, segment.texts, numbers)
    found.counts[rows] = sizes
    found.means[rows] = floats[np.repeat(first_float, counts) + within]
    found.values[rows] = values
    found.item_ids[rows] = _objects(ids)


def _numbered(places: Integers, texts: Sequence[str], numbers: dict[str, int]) -> Integers:
    """The number of each text at these places; a text that has none gets the next."""
    found = np.zeros(len(texts), dtype=np.int64)
    for place in np.flatnonzero(np.bincount(places, minlength=len(texts))).tolist():
        found[place] = numbers.setdefault(texts[place], len(numbers))
    return found[places]


def _integers(numbers: Iterable[int]) -> Integers:
    return np.fromiter(numbers, dtype=np.int64)


def _objects(values: Iterable[object]) -> Objects:
    return np.fromiter(values, dtype=np.object_)
