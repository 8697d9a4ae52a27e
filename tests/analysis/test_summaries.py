"""Rows that were derived before: they are what is derived anew, and nothing that is kept can change an answer."""

from __future__ import annotations

import math
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import recommend, write_report
from harness.analysis.summaries import Summaries
from harness.analysis.tradeoff import tradeoff
from harness.core.record import RunRecord
from harness.figures import summary
from harness.figures.evidence import Evidence
from harness.storage import index
from harness.storage.reading import read_records
from harness.storage.store import Store
from harness.storage.summaries import SUMMARIES, SummaryFile

DATA = Path(__file__).parents[1] / "data" / "golden"
Bench = Any  # the class in conftest.py, which cannot be imported
Seals = dict[tuple[str, str, str], str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Sequence[RunRecord]:
    """A real sweep of all methods."""
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(DATA / "records.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return read_records(folder)


def seals(records: Sequence[RunRecord]) -> Seals:
    return {record.key: f"seal {number}" for number, record in enumerate(records)}


def test_rows_are_read_back_to_the_last_bit(kept: Sequence[RunRecord]) -> None:
    """``repr`` tells 0 from 0.0, and -0.0 from both."""
    first = Summaries(seals(kept), {})
    derived = tradeoff(kept, first)
    again = Summaries(seals(kept), first.used)
    read = tradeoff(kept, again)
    assert first.changed
    assert not again.changed
    assert len(again.used) == sum(len(table.rows) for table in derived)
    assert repr(read) == repr(derived) == repr(tradeoff(kept))
    assert read == derived


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
    tradeoff(records, Summaries(seals(records) | {changed.key: "another"}, first.used))
    assert len(derived) == 1
    derived.clear()
    unsealed = {key: seal for key, seal in seals(records).items() if key != changed.key}
    partly = Summaries(unsealed, first.used)
    tradeoff(records, partly)
    assert len(derived) == 1
    assert len(partly.used) == len(first.used) - 1


def test_a_file_that_is_not_what_was_written_here_is_not_used(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    file = SummaryFile(here, "code")
    assert file.read() == {}
    file.write({"a": "[1, 2]", "b": "{}"})
    assert file.read() == {"a": "[1, 2]", "b": "{}"}
    assert SummaryFile(here, "other code").read() == {}
    shutil.copytree(here, tmp_path / "copy")
    assert SummaryFile(tmp_path / "copy", "code").read() == {}
    whole = (here / SUMMARIES).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        (here / SUMMARIES).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert file.read() == {}
    (here / SUMMARIES).write_bytes(whole[:-3])
    assert file.read() == {}
    (here / SUMMARIES).unlink()
    (here / SUMMARIES).symlink_to(tmp_path / "elsewhere")
    assert file.read() == {}


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
