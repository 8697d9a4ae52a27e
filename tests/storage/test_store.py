"""The results folder: whole records or none, every version read, nothing written over."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from run_specs import run_spec

from harness import load_results
from harness.api.pack import pack, unpack
from harness.core.column import LazyColumn
from harness.core.label import Fact
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.core.upgrade import SCHEMA_VERSION
from harness.errors import ResultsError
from harness.storage.evidence import FEW_VALUES, write_evidence
from harness.storage.reading import read_records
from harness.storage.seal import EVIDENCE, FileSeal, file_seal, seal
from harness.storage.store import Store

RECORDS = Path(__file__).parents[1] / "data" / "records"


def record(attempt: int = 1, **outcome: object) -> RunRecord:
    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    spec = run_spec("quality", "sweep", ModelRef("m", "m", "abc", "directory", "/m"), none, none)
    nll = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.0), {"context": 8}, (10.0, 30.0), ("0", "1"))
    coverage = Measurement("coverage", 1, "fraction", "higher", "exact", (1.0,))
    return RunRecord(
        spec,
        replace(Outcome("ok", measurements=(nll, coverage), facts=(Fact("layers", {"Linear": 2}),)), **outcome),  # type: ignore[arg-type]
        "session",
        attempt,
        "2026-01-01T00:00:00+00:00",
        1.5,
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(record())
    assert store.read().records == (record(),)


def test_attempts_are_added_and_never_written_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.save(record())
    before = first.read_bytes()
    attempt = store.next_attempt("sweep", record().spec.run_id)
    assert attempt == 2
    store.save(record(attempt, status="failed", measurements=(), failure=Failure("load", "OSError", "gone")))
    assert first.read_bytes() == before
    assert [r.status for r in store.read().records] == ["ok", "failed"]
    with pytest.raises(OSError, match="not empty"):
        store.save(record(1))


def test_what_was_cut_short_while_writing_is_not_a_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.save(record())
    part = path.parent.with_name(".2.part")
    part.mkdir()
    (part / "record.json").write_text("{")
    assert len(store.read().records) == 1


def test_many_values_lie_in_parquet_and_one_value_in_json(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = Store(tmp_path).save(record())
    stored = json.loads(path.read_text())["outcome"]["measurements"]
    assert [m["values"] for m in stored] == [[], [1.0]]
    table = pq.read_table(path.with_name("evidence.parquet")).to_pydict()
    assert (table["value"], table["weight"], table["item_id"]) == ([1.0, 3.0], [10.0, 30.0], ["0", "1"])


def test_not_a_number_is_never_stored(tmp_path: Path) -> None:
    bad = Measurement("coverage", 1, "fraction", "higher", "exact", (math.nan,))
    with pytest.raises(ValueError, match="coverage contains NaN or infinity"):
        Store(tmp_path).save(record(measurements=(bad,)))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["values", "weights"])
def test_not_a_number_is_never_stored_beside_the_record(tmp_path: Path, where: str, bad: float) -> None:
    whole = record().outcome.measurements[0]
    holding = replace(whole, **{where: (1.0, bad)})
    with pytest.raises(ValueError, match="nll contains NaN or infinity"):
        Store(tmp_path).save(record(measurements=(holding,)))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999", '"nan"', '"-inf"'])
@pytest.mark.parametrize(
    ("place", "named"),
    [
        (("outcome", "measurements", 1, "values", 0), "outcome.measurements.1.values.0"),
        (("outcome", "measurements", 1, "protocol", "context"), "outcome.measurements.1.protocol.context"),
        (("outcome", "facts", 0, "arguments", "Linear"), "outcome.facts.0.arguments.Linear"),
        (("spec", "readers", "gates", "perplexity"), "spec.readers.gates.perplexity"),
        (("wall_s",), "wall_s"),
    ],
)
def test_not_a_number_is_damage(tmp_path: Path, place: tuple[str | int, ...], named: str, written: str) -> None:
    """Python's own json reads and writes these, and pydantic may make numbers of words. No seal vouches for them."""
    if written.startswith('"') and named in (
        "outcome.facts.0.arguments.Linear",
        "outcome.measurements.1.protocol.context",
    ):
        pytest.skip("a word may stand there")
    path = Store(tmp_path).save(record())
    raw = json.loads(path.read_text())
    *way, last = place
    inner = raw
    for step in way:
        inner = inner[step]
    inner[last] = json.loads(written)
    if isinstance(inner[last], str):
        raw = seal(raw, {name: FileSeal(**each) for name, each in raw["seal"]["files"].items()})
    path.write_text(json.dumps(raw))
    (damaged,) = Store(tmp_path).read().damaged
    assert damaged.path == path.parent
    fault = ": input should be a valid number" if isinstance(inner[last], str) else " is not a finite number"
    assert damaged.reason.startswith(f"record.json: {named}{fault}")
    with pytest.raises(ResultsError, match=re.escape(damaged.sentence)):
        read_records(tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["value", "weight"])
def test_not_a_number_in_the_evidence_is_damage(tmp_path: Path, column: str, bad: float) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Store(tmp_path).save(record())
    evidence = path.with_name("evidence.parquet")
    table = pq.read_table(evidence)

    def reason(values: list[float | None]) -> str:
        changed = table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.float64()))
        pq.write_table(changed, evidence)
        (unsealed,) = Store(tmp_path).read().damaged
        assert unsealed.reason.startswith("evidence.parquet: its content is not what was sealed")
        raw = seal(json.loads(path.read_text()), {"evidence.parquet": file_seal(evidence.read_bytes())})
        path.write_text(json.dumps(raw))
        (damaged,) = Store(tmp_path).read().damaged
        return damaged.reason

    for row in range(2):
        values = table[column].to_pylist()
        values[row] = bad
        assert reason(values).startswith(f"evidence.parquet: nll: {column}: {row} is not a finite number")
    assert f"{column}: 1 of 2 are missing" in reason([None, 1.0])


def test_load_results_weighs_the_mean(tmp_path: Path) -> None:
    Store(tmp_path).save(replace(record(), node="node-2"))
    frame = load_results(tmp_path)
    nll = frame[frame.metric == "nll"].iloc[0]
    assert nll["value"] == pytest.approx((1 * 10 + 3 * 30) / 40)
    assert (nll["n"], nll["method"], nll["status"], nll["node"]) == (2, "none", "ok", "node-2")


def test_a_failed_run_is_a_row(tmp_path: Path) -> None:
    Store(tmp_path).save(
        record(status="crashed", measurements=(), failure=Failure("load", "SIGKILL", "ended by signal 9"))
    )
    frame = load_results(tmp_path)
    assert list(frame.status) == ["crashed"]
    assert frame.failure[0] == "ended by signal 9"


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_records_of_every_schema_version_are_read(version: int) -> None:
    (found,) = read_records(RECORDS / f"version-{version}")
    assert found.status == "ok"
    assert found.find("nll").values == (1.0, 3.0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("from-the-future", "written by a newer qharness"),
        ("cut-short", "record.json: not valid JSON"),
        ("no-version", "it has no schema_version"),
        ("a-list", "not a record"),
        ("wrong-type", "outcome.status: input should be 'ok'"),
        ("evidence-gone", "evidence.parquet: no such file"),
    ],
)
def test_what_is_no_record_is_refused_with_its_path(folder: str, expected: str) -> None:
    with pytest.raises(ResultsError, match=expected) as caught:
        read_records(RECORDS / folder)
    assert folder in str(caught.value)


def test_two_sweeps_do_not_write_to_one_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        store.locked("sweep"),
        pytest.raises(ResultsError, match="another 'qharness run' is writing here"),
        Store(tmp_path).locked("sweep"),
    ):
        pass


def test_long_evidence_is_read_again_when_it_is_used_and_must_be_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.storage.evidence.MAX_RECENT_VALUES", 0)  # only what was read last stays in memory
    values = tuple(float(n) for n in range(FEW_VALUES + 1))
    long = Measurement("nll", 1, "nat", "lower", "paired", values, {}, values, tuple(map(str, range(len(values)))))
    store = Store(tmp_path)
    paths = [store.save(record(number, measurements=(long,))).parent / EVIDENCE for number in (1, 2)]
    found = [kept.outcome.measurements[0] for kept in read_records(tmp_path)]
    assert all(isinstance(each.values, LazyColumn) for each in found)
    assert found == [long, long]
    content = write_evidence([replace(long, values=values[::-1])])
    assert content is not None
    paths[0].write_bytes(content)
    with pytest.raises(ResultsError, match="was changed while it was used"):
        found[0].values[0]


def test_other_recipes_are_read_as_long_as_they_are_few(tmp_path: Path) -> None:
    store = Store(tmp_path)
    own = record()
    others = [replace(own, spec=replace(own.spec, recipe=name)) for name in ("a", "b", "c")]
    for each in (own, *others):
        store.save(each)
    assert store.read_others("sweep", 3) == tuple(others)
    assert store.read_others("sweep", 2) == tuple(others[:2])
    assert store.read_others("b", 0) == ()
    list(pack(tmp_path))
    assert store.read_others("sweep", 3) == tuple(others)
    assert store.read_others("sweep", 2) == tuple(others[:2]), "packed runs count too"
    list(unpack(tmp_path))
    (tmp_path / "a" / "not a run").mkdir()
    damaged = tmp_path / "a" / own.spec.run_id / "1" / "record.json"
    damaged.write_text(damaged.read_text().replace("quality", "quantity"))
    assert store.read_others("sweep", 3) == tuple(others[1:])
