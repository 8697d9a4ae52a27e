"""Evidence is written from columns: the same file as from tuples, and no Python object for each value."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_specs import run_spec

from harness.core.column import ArrayColumn, numbers, texts
from harness.core.record import Measurement, Outcome, RunRecord
from harness.errors import ResultsError
from harness.storage.disk import Disk
from harness.storage.evidence import COLUMNS, FEW_VALUES, MAX_ROWS, without_evidence, write_evidence
from harness.storage.outcome_file import evidence_of, read_outcome, remove_outcome, write_outcome
from harness.storage.reading import read_records
from harness.storage.seal import EVIDENCE, LOG, RECORD
from harness.storage.store import Store

SCHEMA = pa.schema(
    [("measurement", pa.int32()), ("value", pa.float64()), ("weight", pa.float64())]
    + [(name, pa.dictionary(pa.int32(), pa.string())) for name in ("item_id", "cluster_id")]
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=3)


@st.composite
def measurements(draw: st.DrawFn) -> list[Measurement]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.integers(0, 6))
        columns: dict[str, Any] = {
            name: draw(st.just(()) | st.lists(kind, min_size=count, max_size=count).map(tuple))
            for name, kind in (("weights", st.floats(0, 9)), ("item_ids", TEXTS), ("cluster_ids", TEXTS))
        }
        values = draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=count, max_size=count))
        found.append(Measurement("m", 1, "s", "lower", "paired", tuple(values), **columns))
    return found


def in_columns(m: Measurement) -> Measurement:
    """The same measurement as a metric with many values hands it over."""
    floats = {name: numbers(getattr(m, name), len(getattr(m, name))) for name in ("values", "weights")}
    names = {name: texts(getattr(m, name), len(getattr(m, name))) for name in ("item_ids", "cluster_ids")}
    return replace(m, **floats, **names)


def from_lists(found: list[Measurement]) -> bytes | None:
    """The file as it was written when values were tuples: every column a list of Python objects."""
    many = [(index, m) for index, m in enumerate(found) if len(m.values) > 1]
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for index, m in many:
        blanks = [None] * len(m.values)
        columns["measurement"] += [index] * len(m.values)
        columns["value"] += m.values
        columns["weight"] += m.weights or blanks
        columns["item_id"] += m.item_ids or blanks
        columns["cluster_id"] += m.cluster_ids or blanks
    if not many:
        return None
    file = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), file, row_group_size=MAX_ROWS)
    content: bytes = file.getvalue().to_pybytes()
    return content


@given(measurements())
def test_tuples_and_columns_give_the_same_bytes_as_lists_did(found: list[Measurement]) -> None:
    expected = from_lists(found)
    assert write_evidence(found) == expected
    assert write_evidence([in_columns(m) for m in found]) == expected


def test_a_record_is_the_same_byte_for_byte_from_tuples_and_from_columns(tmp_path: Path) -> None:
    count = 3 * FEW_VALUES
    values, items = tuple(n / 7 for n in range(count)), tuple(f"0:{n}" for n in range(count))
    plain = Measurement("kl", 2, "nat", "lower", "paired", values, {"context": 8}, (), items, ("a",) * count)
    weighted = Measurement("nll", 1, "nat/token", "lower", "paired", values[:5], {}, (1.0,) * 5, items[:5])
    single = Measurement("coverage", 1, "fraction", "higher", "exact", (1.0,))
    outcome = Outcome("ok", measurements=(plain, weighted, single))
    sent = tmp_path / "outcome.json"
    write_outcome(sent, replace(outcome, measurements=(in_columns(plain), weighted, single)), Disk().write_whole)
    ways = {"tuples": outcome, "columns": read_outcome(sent)}
    files: dict[str, dict[str, bytes]] = {}
    for name, each in ways.items():
        spec = run_spec("quality")
        record = RunRecord(spec, each, "session", 1, "2026-01-01T00:00:00+00:00", 1.5)
        folder = Store(tmp_path / name).save(record, b"log").parent
        files[name] = {file: (folder / file).read_bytes() for file in (RECORD, EVIDENCE, LOG)}
        assert [kept.outcome for kept in read_records(tmp_path / name)] == [outcome]
    assert files["tuples"] == files["columns"]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> tuple[Measurement, ...]:
    """Six quantities of 50,000 tokens, whose values nobody may turn into Python objects."""
    count = 50_000
    items = texts((f"{n // 2048}:{n % 2048}" for n in range(count)), count)
    clusters = texts((str(n // 2048) for n in range(count)), count)
    values = np.random.default_rng(0).random((6, count))
    plain = ArrayColumn.__iter__

    def refuse(column: ArrayColumn[Any]) -> Iterator[Any]:
        assert column is not None
        if np.asarray(column).dtype.kind == "f":
            raise AssertionError("a value became a Python object")
        return plain(column)

    monkeypatch.setattr(ArrayColumn, "__iter__", refuse)
    return tuple(
        Measurement(f"q{number}", 1, "nat", "lower", "paired", ArrayColumn(own), {}, (), items, clusters)
        for number, own in enumerate(values)
    )


def test_no_value_becomes_a_python_object_on_its_way_from_a_metric_to_the_disk(
    many: tuple[Measurement, ...], tmp_path: Path
) -> None:
    path = tmp_path / "outcome.json"
    tracemalloc.start()
    try:
        write_outcome(path, Outcome("ok", measurements=many), Disk().write_whole)
        written_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        outcome = read_outcome(path)
        Store(tmp_path / "results").save(RunRecord(run_spec("quality"), outcome, "session", 1, "2026-01-01", 1.0))
        saved_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    values = sum(len(m.values) for m in many)
    assert [type(m.values) for m in outcome.measurements] == [ArrayColumn] * 6
    assert outcome.measurements[5].values[-1] == many[5].values[-1]
    assert written_bytes < 60 * values, "a tuple of Python floats alone takes 32 bytes for each, and JSON 20"
    assert saved_bytes < 140 * values


def test_the_json_of_an_outcome_has_no_long_measurement(many: tuple[Measurement, ...], tmp_path: Path) -> None:
    short = replace(many[0], values=many[0].values[:FEW_VALUES], item_ids=(), cluster_ids=())
    path = tmp_path / "7.ended.json"
    write_outcome(path, Outcome("ok", measurements=(short, *many)), Disk().write_whole)
    assert path.stat().st_size < 20_000
    assert evidence_of(path).name == "7.ended.parquet"
    assert [m.metric for m in read_outcome(path).measurements] == ["q0", *(m.metric for m in many)]
    remove_outcome(path)
    assert list(tmp_path.iterdir()) == []
    remove_outcome(path)


def test_an_outcome_without_its_evidence_is_refused(many: tuple[Measurement, ...], tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    write_outcome(path, Outcome("ok", measurements=many[:2]), Disk().write_whole)
    whole = evidence_of(path).read_bytes()
    for content, message in (
        (None, r"outcome\.parquet"),
        (whole[:-9], r"outcome\.parquet: cannot read the record's evidence"),
        (write_evidence(many[:1]), "has no values of q1"),
        (write_evidence(many[:3]), "has values of measurement 2, which the record does not lack"),
    ):
        evidence_of(path).unlink(missing_ok=True)
        if content is not None:
            evidence_of(path).write_bytes(content)
        with pytest.raises(ResultsError, match=message):
            read_outcome(path)


def test_a_value_that_is_no_number_is_refused_by_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    values = numbers([1.0] * FEW_VALUES + [float("nan")], FEW_VALUES + 1)
    m = Measurement("kl", 1, "nat", "lower", "paired", values)
    write_outcome(path, Outcome("ok", measurements=(m,)), Disk().write_whole)
    with pytest.raises(ResultsError, match="is not a finite number"):
        read_outcome(path)


def test_more_values_than_a_record_may_have_name_the_largest_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", 1_000)
    most = Measurement("kl", 1, "nat", "lower", "paired", numbers([1.0] * 998, 998))
    few = replace(most, metric="nll", values=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"1,001 values are more than 1,000, .*; 998 of them are of kl"):
        write_evidence([few, most])
    assert without_evidence([few, most], above=3) == (few, replace(most, values=()))
