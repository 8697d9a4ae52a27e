"""The index of results: whatever happens to the files or to the index, what is read is what is there."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imported_files import all_imported
from run_specs import run_spec

from harness import load_results
from harness.api.verify import verify
from harness.core.record import Measurement, Outcome, RunRecord
from harness.storage import index, reading
from harness.storage.evidence import FEW_VALUES
from harness.storage.index import INDEX
from harness.storage.reading import Contents, read_contents
from harness.storage.seal import EVIDENCE, LOG, RECORD
from harness.storage.store import Store

RUNS = 4
WHOLE = TemporaryDirectory()
"""A results folder with an index, made once and copied by each example."""


@pytest.fixture(autouse=True, scope="module")
def _small_indexes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "MIN_RUNS", 1)
        yield


def record(seed: int, attempt: int = 1, values: int = 3) -> RunRecord:
    some = tuple(float(seed + n) for n in range(values))
    items = tuple(f"{n}" for n in range(values))
    measured = (
        Measurement("windows", 1, "count", "neither", "exact", (float(seed),), {"role": "all", "part": None}),
        Measurement("nll", 1, "nat", "lower", "paired", some, {"context": 8}, some, items, ("d",) * values),
    )
    outcome = Outcome("ok", measurements=measured)
    return RunRecord(run_spec("performance", repetition=seed), outcome, f"s{seed}", attempt, f"2026-01-0{seed}", 1.0)


def filled(results: Path) -> Path:
    store = Store(results)
    for seed in range(1, 1 + RUNS):
        store.save(record(seed, values=3 if seed % 2 else FEW_VALUES + 1), log=b"log\n")
    return results


def unindexed(results: Path) -> Contents:
    """The same folder, read without an index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.storage.reading.Index.of", lambda folder: None)
        return read_contents(results, results)


def edit_bytes(path: Path, draw: Any) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    path.write_bytes(content)


def replaced(path: Path, draw: Any) -> None:
    """The same size, and the time of modification that it had."""
    status = path.stat()
    edit_bytes(path, draw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swapped(path: Path, draw: Any) -> None:
    others = [each for each in path.parents[2].glob(f"*/*/{path.name}") if each != path]
    other = draw(st.sampled_from(sorted(others))) if others else path
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def moved(path: Path, draw: Any) -> None:
    run, others = path.parents[1], [each for each in path.parents[2].iterdir() if not each.name.startswith(".")]
    other, aside = draw(st.sampled_from(sorted(others))), path.parents[2] / "aside"
    for old, new in ((run, aside), (other, run), (aside, other)):
        if old.exists():
            old.rename(new)


EDITS: tuple[Callable[[Path, Any], object], ...] = (
    edit_bytes,
    replaced,
    swapped,
    moved,
    lambda path, draw: path.unlink(),
    lambda path, draw: shutil.rmtree(path.parent),
    lambda path, draw: shutil.copytree(path.parent, path.parent.with_name("2"), dirs_exist_ok=True),
    lambda path, draw: (path.parent / "more").mkdir(exist_ok=True),
    lambda path, draw: shutil.copytree(path.parent, path.parent / "inner", dirs_exist_ok=True),
    lambda path, draw: edit_bytes(path.parents[2] / INDEX, draw),
    lambda path, draw: os.truncate(path.parents[2] / INDEX, draw(st.integers(0, 5000))),
    lambda path, draw: Store(path.parents[3]).save(
        record(9, attempt=Store(path.parents[3]).next_attempt("sweep", record(9).spec.run_id))
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_edit_of_a_file_makes_an_index_change_what_is_read(data: st.DataObject) -> None:
    whole = Path(WHOLE.name) / "results"
    if not whole.exists():
        filled(whole)
    slack_ns = data.draw(st.sampled_from([index.SLACK_NS, -(10**12)]))  # the latter as if all files were old
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "SLACK_NS", slack_ns)
        results = Path(folder) / "results"
        shutil.copytree(whole, results)
        read_contents(results, results)  # makes the index
        for _ in range(data.draw(st.integers(1, 3))):
            paths = sorted(results.glob("*/*/*/*.*"))
            if paths:
                data.draw(st.sampled_from(EDITS))(data.draw(st.sampled_from(paths)), data.draw)
            if data.draw(st.booleans()):
                assert read_contents(results, results) == unindexed(results)
        assert read_contents(results, results) == unindexed(results)


def test_a_second_reader_opens_no_file_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = filled(tmp_path / "results")
    monkeypatch.setattr(index, "SLACK_NS", -(10**12))  # as if the files were old
    first = read_contents(results, results)
    monkeypatch.setattr("harness.storage.reading.read_attempt", None)
    again = read_contents(results, results)
    assert again == first == unindexed_after(monkeypatch, results)
    assert again.entries is not None


def test_an_index_holds_no_long_texts(tmp_path: Path) -> None:
    """As answers are: they are read from the evidence, and the measurements around them are as before."""
    store = Store(tmp_path)
    for seed in range(1, 1 + RUNS):
        made, texts = record(seed), ("x" * 9000, "y" * 9000)
        long = Measurement("answer_text", 1, "score", "neither", "exact", (0.0, 1.0), {}, (), texts, ("a", "b"))
        first, last = made.outcome.measurements
        store.save(replace(made, outcome=replace(made.outcome, measurements=(first, long, last))), log=b"log\n")
    expected = unindexed(tmp_path)
    for _ in range(2):
        found = read_contents(tmp_path, tmp_path)
        assert [each.outcome for each in found.records] == [each.outcome for each in expected.records]
        assert found.records[0].outcome.measurements[1].item_ids[1] == "y" * 9000
    (written,) = tmp_path.rglob(INDEX)
    assert b"y" * 99 not in written.read_bytes()


def unindexed_after(monkeypatch: pytest.MonkeyPatch, results: Path) -> Contents:
    monkeypatch.undo()
    return unindexed(results)


def mixed(results: Path) -> Path:
    """Records with an answer of each sort: none, single values, weights without items, items without weights."""
    few = record(1).outcome.measurements
    shapes = (
        (),
        few[:1],
        (*few, *(replace(m, metric="again") for m in few)),
        (replace(few[1], item_ids=(), cluster_ids=()), few[0], replace(few[1], weights=(), metric="unweighted")),
        (few[0], record(1, values=FEW_VALUES + 1).outcome.measurements[1], few[0]),
    )
    for seed, measured in enumerate((*shapes, *reversed(shapes)), 1):
        made = record(seed)
        Store(results).save(replace(made, outcome=replace(made.outcome, measurements=measured)))
    return results


@pytest.mark.parametrize("fill", [filled, mixed])
@pytest.mark.parametrize("segments", ["one for each record", "one for all"])
def test_load_results_is_the_same_from_an_index(fill: Callable[[Path], Path], segments: str, tmp_path: Path) -> None:
    results = fill(tmp_path / "results")
    if segments == "one for all":
        for path in results.rglob(INDEX):
            path.unlink()
        read_contents(results, results)
    whole = load_results(results)
    assert read_contents(results, results).entries is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.storage.reading.Index.of", lambda folder: None)
        apart = load_results(results)
    assert list(whole.columns) == list(apart.columns)
    assert (whole.dtypes == apart.dtypes).all()
    for name in whole.columns:
        assert list(map(repr, whole[name])) == list(map(repr, apart[name])), name  # of NaN too


@pytest.mark.filterwarnings("ignore:The .future.infer_string.")
def test_texts_that_pandas_keeps_as_objects_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in pandas 2.2, whose type of texts cannot be made with a missing value of one's own."""
    results = filled(tmp_path / "results")
    whole = load_results(results)

    class OlderStringDtype(pd.StringDtype):
        def __init__(self, storage: str | None = None) -> None:
            super().__init__(storage)

    monkeypatch.setattr(pd, "StringDtype", OlderStringDtype)
    with pd.option_context("future.infer_string", False):
        older = load_results(results)
    assert {str(older[name].dtype) for name in ("model", "metric")} == {"object"}
    assert older.model.tolist() == whole.model.tolist()


def test_rows_share_a_protocol_that_cannot_be_changed(tmp_path: Path) -> None:
    whole = load_results(filled(tmp_path / "results"))
    protocol = next(each for each in whole["protocol"] if isinstance(each, dict) and each)
    for change in (lambda: protocol.update(context=1), lambda: protocol.pop("context"), protocol.clear):
        with pytest.raises(TypeError, match=r"dict\(protocol\)"):
            change()
    mine = pickle.loads(pickle.dumps(protocol))
    assert mine == protocol
    mine["context"] = 1


def test_a_recipe_in_a_folder_of_another_name_is_damaged_although_it_is_indexed(tmp_path: Path) -> None:
    filled(tmp_path / "results")
    (tmp_path / "results" / "sweep").rename(tmp_path / "results" / "other")
    assert len(read_contents(tmp_path / "results" / "other", tmp_path / "results" / "other").records) == RUNS
    assert len(read_contents(tmp_path / "results", tmp_path / "results").damaged) == RUNS


def test_an_index_is_not_written_through_a_link_nor_where_it_must_not_be(tmp_path: Path) -> None:
    results = filled(tmp_path / "results")
    kept = tmp_path / "kept.txt"
    kept.write_text("somebody's file")
    path = results / "sweep" / INDEX
    path.unlink()
    path.symlink_to(kept)
    whole = unindexed(results)
    assert read_contents(results, results) == whole
    Store(results).save(record(7))
    assert kept.read_text() == "somebody's file"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "sweep").symlink_to(results / "sweep")
    path.unlink(missing_ok=True)
    read_contents(tmp_path / "link", tmp_path / "link")
    assert not path.exists()


def test_verify_reads_every_byte_although_there_is_an_index(tmp_path: Path) -> None:
    results = filled(tmp_path / "results")
    read_contents(results, results)
    for name in (RECORD, EVIDENCE, LOG):
        path = next(results.glob(f"*/*/*/{name}"))
        whole, status = path.read_bytes(), path.stat()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert sorted(each.state for each in verify(results)) == ["damaged", *["ok"] * (RUNS - 1)]
        path.write_bytes(whole)
    assert {each.state for each in verify(results)} == {"ok"}


def test_a_damaged_index_is_written_anew_and_does_not_grow(tmp_path: Path) -> None:
    results = filled(tmp_path / "results")
    read_contents(results, results)
    path = results / "sweep" / INDEX
    path.write_bytes(path.read_bytes() + b"cut")
    Store(results).save(record(9))
    size = path.stat().st_size
    for _ in range(3):
        assert read_contents(results, results) == unindexed(results)
        assert path.stat().st_size < size


def test_records_are_read_from_where_they_were_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    read_contents(Path("results"), Path("results"))
    records = read_contents(Path("results"), Path("results")).records
    monkeypatch.chdir("/")
    assert {len(tuple(each.outcome.measurements[1].values)) for each in records} == {3, FEW_VALUES + 1}


def test_an_index_lasts_until_code_changes_that_reads_records() -> None:
    """The code is what reading imports, however deep; what else is in these rooms leaves indexes as they are."""
    assert sorted(all_imported([index.__file__, reading.__file__])) == sorted(index.READERS)
