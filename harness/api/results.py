"""Finds the records that a user names: of a folder, session, run or baseline; and ``harness.load_results``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.baselines import Baselines
from harness.api.locations import read_location
from harness.core.record import Damaged, Measurement, RunRecord
from harness.errors import ResultsError, UsageError
from harness.report.redact import Redaction
from harness.storage.anonymizer import Anonymizer
from harness.storage.entry import Arrays, kind_of, kind_text, names_of, protocol_of
from harness.storage.objects import is_url, local_path
from harness.storage.reading import Contents, uncollected
from harness.storage.summaries import SummaryFile

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.summaries import Summaries


@dataclass(frozen=True)
class NamedRecords:
    """The records that a name refers to; ``damaged`` are the attempts that are not as they were written.

    ``seals`` are the hashes of the records, in their order, if they are all that is in ``folder`` and its index knows
    them.
    """

    name: str
    records: tuple[RunRecord, ...]
    damaged: tuple[Damaged, ...]
    folder: Path | None = None
    seals: tuple[str | None, ...] = ()

    @contextmanager
    def summaries(self) -> Iterator[Summaries | None]:
        """What was derived from these records before; what is derived meanwhile is kept for the next time."""
        if self.folder is None:
            with uncollected():
                yield None
            return
        from harness.analysis.summaries import Summaries
        from harness.figures.summary import code

        kept = SummaryFile(self.folder, code())
        found = Summaries(self._sealed(), kept.read())
        with uncollected():
            yield found
        if found.used and found.changed:
            kept.write(found.used)

    def _sealed(self) -> dict[tuple[str, str, str], str]:
        """The seals by what identifies an attempt; none of copies that differ, which have the same key."""
        seals: dict[tuple[str, str, str], set[str | None]] = {}
        for record, seal in zip(self.records, self.seals, strict=True):
            seals.setdefault(record.key, set()).add(seal)
        return {key: seal for key, each in seals.items() if len(each) == 1 for seal in each if seal is not None}


def read_named(word: str, results: str | Path, baselines: Path) -> NamedRecords:
    """The records of a baseline, of a results folder, or of a session or run: the first of these that ``word`` names.

    Raises UsageError if it names none of them.
    """
    kept = Baselines(baselines)
    if word in kept:
        baseline = kept.read(word)
        return _named(f"baseline {word}", baseline.records, baseline.damaged)
    folder, at, wanted = word.rpartition("@")
    if is_url(word) and "/" in wanted:  # the @ is a part of the URL
        folder, at, wanted = "", "", word
    if Path(word).exists() or (is_url(word) and not at):
        return read_folder(word)
    root = folder if at else results
    if at or is_url(root) or Path(root).is_dir():
        return _read_part(word, root, wanted)
    raise UsageError(
        f"{word}: neither a results folder nor a baseline in {baselines}, and there is no folder {results}"
    )


def read_folder(folder: str | Path, wanted: str | None = None) -> NamedRecords:
    """The records of a results folder, or those of one session or run in it."""
    if wanted:
        return _read_part(f"{folder}@{wanted}", folder, wanted)
    found = read_location(folder)
    named = _named(str(folder), found.records, found.damaged)
    if found.entries is None or is_url(folder):
        return named
    return replace(named, folder=local_path(folder), seals=tuple(each.seal for each in found.entries))


def _read_part(word: str, folder: str | Path, wanted: str) -> NamedRecords:
    """The records of one session or one run, by its id or a unique prefix of it."""
    found = read_location(folder)
    records = found.records
    ids = {record.session for record in records} | {record.spec.run_id for record in records}
    matches = [wanted] if wanted in ids else sorted(each for each in ids if wanted and each.startswith(wanted))
    if len(matches) > 1:
        shown = ", ".join(matches[:4])
        raise UsageError(f"{word}: {len(matches)} sessions and runs in {folder} begin with {wanted}: {shown}")
    if not matches:
        sessions = ", ".join(sorted({record.session for record in records})[-4:])
        raise ResultsError(
            f"{word}: neither a folder, a baseline, nor a session or run in {folder}; sessions: {sessions}"
        )
    chosen = tuple(record for record in records if matches[0] in (record.session, record.spec.run_id))
    return _named(f"{folder}@{matches[0]}", chosen, found.damaged)


def _named(name: str, records: Sequence[RunRecord], damaged: tuple[Damaged, ...]) -> NamedRecords:
    """As comparisons and histories show them: they are published, so they do not name the user."""
    anonymizer = Anonymizer.for_terminals()
    return NamedRecords(anonymizer.path(name), tuple(records), tuple(map(anonymizer.damaged, damaged)))


def redacted(sides: Sequence[NamedRecords]) -> list[NamedRecords]:
    """The same without what ``harness.report.redact`` leaves out; equal names get equal numbers on all sides."""
    redaction = Redaction()
    return [
        NamedRecords(
            redaction.name("results", side.name),
            redaction.records(side.records),
            tuple(map(redaction.damaged, side.damaged)),
        )
        for side in sides
    ]


def load_results(path: str | Path) -> pd.DataFrame:
    """One row per measurement of every attempt.

    ``value`` is the mean of the raw values (weighted if they have weights), and ``values`` holds them all. A run that
    measured nothing has one row with its status and no metric.
    Warns of damaged records, which have no rows. Raises ResultsError if the folder holds no readable record.
    """
    found = read_location(path)
    for each in found.damaged:
        warnings.warn(each.remark, stacklevel=2)
    with uncollected():
        return _frame(found)


def _frame(found: Contents) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    if found.entries is not None:
        measured = [(each.kinds, each.counts, each.means, each.values()) for each in found.entries]
        names = [each.names for each in found.entries]
    else:
        measured = [_measured(record.outcome.measurements) for record in found.records]
        names = [names_of(record) for record in found.records]
    rows = [max(len(kinds), 1) for kinds, *_ in measured]
    runs = pd.DataFrame(names).take(np.repeat(np.arange(len(rows)), rows)).reset_index(drop=True)
    kinds = list(chain.from_iterable(kinds or (None,) for kinds, *_ in measured))
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    described = pd.DataFrame([_description(kind) for kind in places]).take([places[kind] for kind in kinds])
    columns = [runs, described.reset_index(drop=True)]
    if any(measured_kinds for measured_kinds, *_ in measured):
        lacking = ((math.nan, math.nan, (math.nan,) * 3),)
        value, count, raw = zip(
            *chain.from_iterable(
                zip(means, counts, values, strict=True) if kinds else lacking
                for kinds, counts, means, values in measured
            ),
            strict=True,
        )
        columns.append(pd.DataFrame({"value": value, "n": count}))
        for name, column in (("values", 0), ("item_ids", 2)):
            columns.append(pd.DataFrame({name: np.fromiter((each[column] for each in raw), object, len(raw))}))
        protocols = (math.nan if kind is None else dict(protocol_of(kind)) for kind in kinds)
        columns.append(pd.DataFrame({"protocol": np.fromiter(protocols, object, len(kinds))}))
    return pd.concat(columns, axis=1)


def _measured(measurements: Sequence[Measurement]) -> tuple[list[str], list[int], list[float], list[Arrays]]:
    return (
        [kind_text(m) for m in measurements],
        [len(m.values) for m in measurements],
        [m.mean for m in measurements],
        [(m.values, m.weights, m.item_ids, m.cluster_ids) for m in measurements],
    )


def _description(kind: str | None) -> dict[str, str | None]:
    """The columns that say what a row is; a run that measured nothing has one row without."""
    if kind is None:
        return {"metric": None}
    metric, _, unit, direction, evidence = kind_of(kind)
    return {"metric": metric, "unit": unit, "direction": direction, "evidence": evidence}
