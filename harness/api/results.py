"""Finds the records that a user names: of a folder, session, run or baseline; and ``harness.load_results``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from harness.api.baselines import Baselines
from harness.api.locations import read_location
from harness.core.collector import uncollected
from harness.core.exact_text import as_text, builder
from harness.core.identity import full_digest
from harness.core.record import Damaged, RunRecord
from harness.errors import ResultsError, UsageError
from harness.plugins import plugin_figures
from harness.report.code import report_code
from harness.storage.anonymizer import Anonymizer
from harness.storage.bundle import is_bundle
from harness.storage.entry import kind_of, names_of, protocol_of
from harness.storage.objects import is_url, local_path
from harness.storage.reading import Contents
from harness.storage.summaries import SUMMARIES, TABLES, SummaryFile, code

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from harness.analysis.kept import KeptEntries
    from harness.analysis.summaries import Summaries
    from harness.figures.table import Table
    from harness.report.redact import Redaction

K = TypeVar("K", bound="KeptEntries")
T = TypeVar("T")


@dataclass(frozen=True)
class NamedRecords:
    """The records that a name refers to; ``damaged`` are the attempts that are not as they were written.

    ``seals`` are the hashes of the records, in their order, if their index knows them. What is derived from them is
    kept in ``folder``, or in that of the other side: nothing is kept in a baseline's, which may be under version
    control. ``in_folder`` counts the records beside which it is kept, these among them.
    """

    name: str
    records: Sequence[RunRecord]
    damaged: tuple[Damaged, ...]
    folder: Path | None = None
    seals: tuple[str | None, ...] = ()
    in_folder: int = 0

    def of_recipe(self, recipe: str) -> NamedRecords:
        """The records of one recipe, and the damaged attempts that are not in the folder of another one."""
        chosen = [record.spec.recipe == recipe for record in self.records]
        seals = tuple(compress(self.seals, chosen))
        others = {record.spec.recipe for record in self.records} - {recipe}
        damaged = tuple(each for each in self.damaged if others.isdisjoint(each.path.parts[-3:-2]))
        return replace(self, records=tuple(compress(self.records, chosen)), damaged=damaged, seals=seals)

    @property
    def is_sealed(self) -> bool:
        """Whether the hash of every record is known."""
        return bool(self.seals) and None not in self.seals

    @contextmanager
    def tables(self) -> Iterator[tuple[Sequence[Table], Summaries | None]]:
        """The trade-off tables of these records, and what else was derived from them, as it was kept if it was.

        Only the last tables are kept. No record is built to read them.
        """
        from harness.analysis.kept_tables import read, written
        from harness.analysis.tradeoff import tradeoff

        file = SummaryFile(self.folder, code(), TABLES) if self.folder is not None and self.is_sealed else None
        key = full_digest(self.seals)
        known = None if file is None else file.read(key).get(key)
        if known is not None:
            # Summaries map each record to its seal, for which all records would be built; rows are found by their keys.
            with replace(self, seals=()).summaries() as derived:
                assert derived is not None
                tables = read(known, self.records, derived)
                if tables is not None:
                    yield tables, derived
                    return
        with self.summaries() as derived:
            tables = tradeoff(self.records, derived)
            if file is not None and derived is not None:
                text = written(tables, self.records, derived)
                if text is not None:
                    file.replace({key: text})
            yield tables, derived

    def summaries(self) -> AbstractContextManager[Summaries | None]:
        """Rows of variants that were derived from these records before; those derived meanwhile are kept."""
        from harness.analysis.summaries import Summaries

        return _kept([self], SUMMARIES, Summaries)


@contextmanager
def kept_of(sides: Sequence[NamedRecords], file: str) -> Iterator[KeptEntries]:
    """What comparisons or histories derived from these records before; what they derive meanwhile is kept.

    Nothing is kept if a plugin declares figures: whether its code is still the same is not known.
    """
    from harness.analysis.kept import NOTHING, KeptEntries

    with _kept([] if plugin_figures() else sides, file, KeptEntries) as kept:
        yield NOTHING if kept is None else kept


@contextmanager
def _kept(sides: Sequence[NamedRecords], file: str, kind: type[K]) -> Iterator[K | None]:
    """What was derived from these records before; what is derived meanwhile is kept for the next time.

    It is kept in a ``file`` of the last folder among the sides, and used while the code that derives it is the same;
    None if no side has a folder.
    """
    folder = _kept_in(sides)
    if folder is None:
        with uncollected():
            yield None
        return
    summaries = SummaryFile(folder, code(), file)
    pairs = (zip(side.records, side.seals, strict=True) for side in sides if side.seals)
    with uncollected():
        seals = {id(record): seal for record, seal in chain.from_iterable(pairs) if seal is not None}
        found = kind(seals, summaries.read())
        yield found
        summaries.add(found.used, sum(side.in_folder for side in sides))


def kept_answer(sides: Sequence[NamedRecords], file: str, about: str, kind: type[T], make: Callable[[], T]) -> T:
    """What ``make`` derives from all records of the sides and ``about``, or the same as it was kept by the same code.

    Only the last answer is kept in a file: that to ten thousand records has megabytes. No record is built to read it.
    """
    folder = _kept_in(sides)
    if folder is None or plugin_figures() or not all(side.is_sealed for side in sides):
        return make()
    key = full_digest([about, [side.seals for side in sides]])
    answers = SummaryFile(folder, report_code(), file)
    with uncollected():
        known = answers.read(key).get(key)
        if known is not None:
            found: T = builder(kind)(json.loads(known))  # type: ignore[arg-type]
            return found
    made = make()
    answers.replace({key: as_text(made)})
    return made


def _kept_in(sides: Sequence[NamedRecords]) -> Path | None:
    """The last folder among the sides; None if no side has one."""
    return next((side.folder for side in reversed(sides) if side.folder is not None), None)


def read_named(word: str, results: str | Path, baselines: Path) -> NamedRecords:
    """The records of a baseline, of a results folder, or of a session or run: the first of these that ``word`` names.

    Raises UsageError if it names none of them.
    """
    kept = Baselines(baselines)
    if word in kept:
        baseline = kept.read(word)
        named = _named(f"baseline {word}", baseline.records, baseline.damaged)
        return replace(named, seals=baseline.seals, in_folder=len(baseline.seals))
    folder, at, wanted = word.rpartition("@")
    if is_url(word) and "/" in wanted:  # the @ is a part of the URL
        folder, at, wanted = "", "", word
    if local_path(word).exists() or (is_url(word) and not at):
        return read_folder(word)
    root = folder if at else results
    if at or is_url(root) or local_path(root).is_dir():
        return _read_part(word, root, wanted)
    raise UsageError(
        f"{word}: neither a results folder nor a baseline in {baselines}, and there is no folder {results}"
    )


def read_folder(folder: str | Path, wanted: str | None = None) -> NamedRecords:
    """The records of a results folder, or those of one session or run in it."""
    if wanted:
        return _read_part(f"{folder}@{wanted}", folder, wanted)
    found = read_location(folder)
    return _named(str(folder), found.records, found.damaged, folder, found.seals, len(found.seals))


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
    chosen = [matches[0] in (record.session, record.spec.run_id) for record in records]
    seals, part = found.seals, tuple(compress(records, chosen))
    name = f"{folder}@{matches[0]}"
    return _named(name, part, found.damaged, folder, tuple(compress(seals, chosen)), len(seals))


def _named(
    name: str,
    records: Sequence[RunRecord],
    damaged: tuple[Damaged, ...],
    location: str | Path = "",
    seals: tuple[str | None, ...] = (),
    in_folder: int = 0,
) -> NamedRecords:
    """As comparisons and histories show them: they are published, so they do not name the user."""
    anonymizer = Anonymizer.for_terminals()
    named = NamedRecords(anonymizer.path(name), records, tuple(map(anonymizer.damaged, damaged)))
    if not seals or is_url(location) or is_bundle(location):
        return named
    return replace(named, folder=local_path(location), seals=seals, in_folder=in_folder)


def redacted(sides: Sequence[NamedRecords], redaction: Redaction | None = None) -> list[NamedRecords]:
    """The same without what ``harness.report.redact`` leaves out; equal names get equal numbers on all sides.

    They do so as well on sides that the same ``redaction`` saw before.
    """
    from harness.report.redact import Redaction

    redaction = redaction or Redaction()
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
    with uncollected():
        found = read_location(path)
        frame = _frame(found)
    for each in found.damaged:
        warnings.warn(each.remark, stacklevel=2)
    return frame


def _frame(found: Contents) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    from harness.storage.measured import of_entries, of_records

    if found.entries is not None:
        every, measured = [each.names for each in found.entries], of_entries(found.entries)
    else:
        every, measured = [names_of(record) for record in found.records], of_records(found.records)
    names = pd.DataFrame({name: [each[name] for each in every] for name in every[0]})
    rows = np.maximum(measured.per_record, 1)  # a run that measured nothing has one too, without a kind
    is_measured = np.repeat(measured.per_record > 0, rows)
    kinds = [*measured.kind_texts, None]
    of_kind = _spread(measured.kinds, is_measured, len(measured.kind_texts))
    columns = [
        _repeated(names, np.repeat(np.arange(len(rows)), rows)),
        _repeated(pd.DataFrame([_description(kind) for kind in kinds]), of_kind),
    ]
    if measured.kind_texts:
        protocols = np.empty(len(kinds), dtype=object)
        for place, kind in enumerate(kinds):
            protocols[place] = math.nan if kind is None else _Protocol(protocol_of(kind))
        shown: dict[str, npt.NDArray[Any]] = {
            "value": _spread(measured.means, is_measured, math.nan),
            "n": _spread(measured.counts, is_measured, math.nan),
            "values": _spread(measured.values, is_measured, math.nan),
            "item_ids": _spread(measured.item_ids, is_measured, math.nan),
            "protocol": protocols[of_kind],
        }
        columns += [pd.DataFrame({name: column}) for name, column in shown.items()]
    return pd.concat(columns, axis=1)


def _spread(column: npt.NDArray[Any], places: npt.NDArray[np.bool_], blank: float) -> npt.NDArray[Any]:
    """The column at these places, and blanks at the others."""
    import numpy as np

    if places.all():
        return column
    found = np.full(len(places), blank, dtype=np.result_type(column.dtype, type(blank)))
    found[places] = column
    return found


def _repeated(frame: pd.DataFrame, places: npt.NDArray[np.intp] | Sequence[int]) -> pd.DataFrame:
    """Its rows at these places. A text that many rows have is one object: as Arrow's, each would have a copy."""
    import pandas as pd

    texts = [name for name, kind in frame.dtypes.items() if isinstance(kind, pd.StringDtype)]
    shared = frame.astype({name: pd.StringDtype("python", na_value=math.nan) for name in texts})
    return shared.take(places).reset_index(drop=True)


class _Protocol(dict[str, Any]):
    """A protocol that many rows share: it cannot be changed, but ``dict(protocol)`` makes one that can."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("many rows share this protocol: make one of your own with dict(protocol)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _description(kind: str | None) -> dict[str, str | None]:
    """The columns that say what a row is; a run that measured nothing has one row without."""
    if kind is None:
        return {"metric": None}
    metric, _, unit, direction, evidence = kind_of(kind)
    return {"metric": metric, "unit": unit, "direction": direction, "evidence": evidence}
