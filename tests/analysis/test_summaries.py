"""Rows that were derived before: they are what is derived anew, and nothing that is kept can change an answer."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from harness import recommend, write_report
from harness.analysis import kept_tables
from harness.analysis.summaries import Summaries
from harness.analysis.tradeoff import tradeoff
from harness.core.exact_text import as_text
from harness.core.record import RunRecord
from harness.figures import summary
from harness.figures.evidence import Evidence
from harness.storage import index
from harness.storage.reading import read_records
from harness.storage.store import Store
from harness.storage.summaries import SUMMARIES, SummaryFile

DATA = Path(__file__).parents[1] / "data" / "golden"
Bench = Any  # the class in conftest.py, which cannot be imported
Seals = dict[int, str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Sequence[RunRecord]:
    """A real sweep of all methods."""
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(DATA / "records.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return read_records(folder)


def seals(records: Sequence[RunRecord]) -> Seals:
    return {id(record): f"seal {number}" for number, record in enumerate(records)}


def rows_in(summaries: Summaries) -> list[str]:
    """The rows among what was used; beside them are figures of whole tables."""
    return [text for text in summaries.used.values() if "\t" in text]


def test_rows_are_read_back_to_the_last_bit(kept: Sequence[RunRecord]) -> None:
    """``repr`` tells 0 from 0.0, and -0.0 from both."""
    first = Summaries(seals(kept), {})
    derived = tradeoff(kept, first)
    again = Summaries(seals(kept), first.used)
    read = tradeoff(kept, again)
    assert again.used == first.used
    assert len(rows_in(again)) == sum(len(table.rows) for table in derived)
    assert repr(read) == repr(derived) == repr(tradeoff(kept))
    assert read == derived == read


def test_tables_are_read_back_to_the_last_bit(kept: Sequence[RunRecord]) -> None:
    first = Summaries(seals(kept), {})
    derived = tradeoff(kept, first)
    text = kept_tables.written(derived, kept, first)
    assert text is not None
    again = Summaries({}, first.used)
    read = kept_tables.read(text, kept, again)
    assert repr(read) == repr(derived)
    assert read == derived
    for table, anew in zip(read, derived, strict=True):
        for row, same in zip(table.rows, anew.rows, strict=True):
            assert row.front_probability == same.front_probability
            assert row.evidence is not None
            for each in fields(Evidence):
                assert getattr(row.evidence, each.name) == getattr(same.evidence, each.name)
            assert again.row_key(row) == first.row_key(same)
    assert again.used.items() <= first.used.items()
    assert len(rows_in(again)) == sum(len(table.rows) for table in derived)
    lost = next(key for key, entry in first.used.items() if "\t" in entry)
    left = {key: entry for key, entry in first.used.items() if key != lost}
    assert kept_tables.read(text, kept, Summaries({}, left)) is None


def test_tables_are_kept_only_of_sealed_records(bench: Bench) -> None:
    records = bench.sweep()
    summaries = Summaries(seals(records[1:]), {})
    assert kept_tables.written(tradeoff(records, summaries), records, summaries) is None


def test_a_figure_of_kept_rows_is_decoded_when_it_is_used_and_once_for_all_that_have_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = bench.sweep()
    first = Summaries(seals(records), {})
    derived = tradeoff(records, first)[0].rows[1]
    decoded: list[str] = []

    def spy(text: str) -> Any:
        decoded.append(text)
        return json.loads(text), len(text)

    monkeypatch.setattr(summary, "_decode", spy)
    vars(summary._KeptRow)["kl_by_position"]._built.cache_clear()
    row = tradeoff(records, Summaries(seals(records), first.used))[0].rows[1]
    assert as_text(derived.kl_by_position) not in decoded
    assert row.altered(front=not row.front).kl_by_position is row.kl_by_position
    assert row.kl_by_position == derived.kl_by_position
    assert decoded.count(as_text(derived.kl_by_position)) == 1


def test_numbers_that_json_lacks_are_kept(bench: Bench) -> None:
    rows = tradeoff(bench.sweep())[0].rows
    broken = replace(rows[1], coverage=math.inf, bits_per_weight=math.nan, size_ratio=-0.0)
    evidence = broken.evidence
    assert evidence is not None
    read, notes = summary.read(summary.written((broken, ("a note",))), evidence, "its label")
    assert (read.coverage, notes, read.label) == (math.inf, ("a note",), "its label")
    assert read.bits_per_weight is not None
    assert math.isnan(read.bits_per_weight)
    assert repr(read.size_ratio) == "-0.0"
    assert read.evidence is evidence


def test_a_row_is_used_only_for_the_records_that_it_was_derived_from(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = bench.sweep()
    first = Summaries(seals(records), {})
    tradeoff(records, first)
    derived: list[str] = []

    def spy(evidence: Evidence, label: str) -> summary.Derived:
        derived.append(label)
        return original(evidence, label)

    from harness.analysis import summaries as module

    original = module.row
    monkeypatch.setattr(module, "row", spy)
    tradeoff(records, Summaries(seals(records), first.used))
    assert derived == []
    changed = records[-1]
    tradeoff(records, Summaries(seals(records) | {id(changed): "another"}, first.used))
    assert len(derived) == 1
    derived.clear()
    unsealed = {key: seal for key, seal in seals(records).items() if key != id(changed)}
    partly = Summaries(unsealed, first.used)
    tradeoff(records, partly)
    assert len(derived) == 1
    assert len(rows_in(partly)) == len(rows_in(first)) - 1


def test_a_file_that_is_not_what_was_written_here_is_not_used(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    file = SummaryFile(here, "code")
    assert file.read() == {}
    file.add({"a": "[1, 2]", "b": "{}"}, 2)
    assert SummaryFile(here, "code").read() == {"a": "[1, 2]", "b": "{}"}
    assert SummaryFile(here, "other code").read() == {}
    assert SummaryFile(here, "code", "other file").read() == {}
    shutil.copytree(here, tmp_path / "copy")
    assert SummaryFile(tmp_path / "copy", "code").read() == {}
    whole = (here / SUMMARIES).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        (here / SUMMARIES).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert SummaryFile(here, "code").read() == {}
    (here / SUMMARIES).write_bytes(whole[:-3])
    assert SummaryFile(here, "code").read() == {}
    (here / SUMMARIES).unlink()
    (here / SUMMARIES).symlink_to(tmp_path / "elsewhere")
    assert SummaryFile(here, "code").read() == {}


def test_a_file_grows_by_what_is_new_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def added(entries: dict[str, str], records: int = 10) -> dict[str, str]:
        file = SummaryFile(tmp_path, "code")
        file.read()
        file.add(entries, records)
        return SummaryFile(tmp_path, "code").read()

    path = tmp_path / SUMMARIES
    added({"a": "1"})
    first = path.read_bytes()
    assert added({"b": "2"}) == {"a": "1", "b": "2"}
    assert path.read_bytes().startswith(first)
    both = path.read_bytes()
    assert added({"a": "1"}) == {"a": "1", "b": "2"}
    assert path.read_bytes() == both
    path.write_bytes(both[:-1])  # as a writer that was killed leaves it
    assert SummaryFile(tmp_path, "code").read() == {"a": "1"}
    assert added({"c": "3", "a": "1"}) == {"a": "1", "c": "3"}
    monkeypatch.setattr("harness.storage.summaries.SPARE_ENTRIES", 0)
    assert added({"d": "4"}, records=0) == {"d": "4"}  # with too many, those of the last command are kept


def test_what_two_processes_add_at_once_is_all_kept(tmp_path: Path) -> None:
    SummaryFile(tmp_path, "code").add({"a": "1"}, 9)
    one, other = SummaryFile(tmp_path, "code"), SummaryFile(tmp_path, "code")
    one.read()
    other.read()
    one.add({"b": "2"}, 9)
    other.add({"b": "2", "c": "3"}, 9)
    assert SummaryFile(tmp_path, "code").read() == {"a": "1", "b": "2", "c": "3"}


ADDER = """
import sys
from pathlib import Path
from harness.storage.summaries import SummaryFile
folder, name = sys.argv[1:]
file = SummaryFile(Path(folder), "code")
file.read()
print("ready", flush=True)
sys.stdin.readline()
for number in range(200):
    file.add({f"{name}{number}": name * 9_000}, 999)
"""


def test_what_processes_add_at_once_does_not_mix(tmp_path: Path) -> None:
    SummaryFile(tmp_path, "code").add({"a": "1"}, 999)
    names = ("x", "y", "z")
    with ExitStack() as running:
        adders = [
            running.enter_context(
                subprocess.Popen([sys.executable, "-c", ADDER, str(tmp_path), name], stdin=PIPE, stdout=PIPE)
            )
            for name in names
        ]
        for each in adders:
            assert each.stdout is not None
            assert each.stdout.readline() == b"ready\n"
        for each in adders:
            assert each.stdin is not None
            each.stdin.write(b"go\n")
            each.stdin.flush()
    added = {f"{name}{number}": name * 9_000 for name in names for number in range(200)}
    assert SummaryFile(tmp_path, "code").read() == {"a": "1", **added}


def test_reports_and_recommendations_are_the_same_with_what_was_kept(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MIN_RUNS", 1)
    results = tmp_path / "results"
    records = bench.sweep()
    for record in records:
        Store(results).save(record)
    written = [
        [path.read_bytes() for path in write_report(results, tmp_path / str(number), ("md", "csv"))]
        for number in range(2)
    ]
    assert (results / SUMMARIES).is_file()
    assert written[0] == written[1]
    answers = recommend(results)
    (results / SUMMARIES).unlink()
    assert recommend(results) == answers
    kept = (results / SUMMARIES).read_bytes()
    more = replace(records[-1], attempt=2, started_at="2027-01-01T00:00:00+00:00", session="later")
    Store(results).save(more)
    after = [path.read_bytes() for path in write_report(results, tmp_path / "2", ("md", "csv"))]
    assert (results / SUMMARIES).read_bytes() != kept
    (results / SUMMARIES).write_bytes(kept)  # out of date
    assert [path.read_bytes() for path in write_report(results, tmp_path / "3", ("md", "csv"))] == after
