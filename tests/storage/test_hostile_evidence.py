"""Records and evidence that strangers made: each is refused in one line, and before it takes memory."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzzing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.column import ArrayColumn
from harness.core.protocols import fault_of
from harness.core.record import Measurement, RunRecord
from harness.core.upgrade import upgrade
from harness.errors import NewerRecordError, ResultsError
from harness.storage.evidence import FEW_VALUES, read_evidence, write_evidence
from harness.storage.json_codec import decode, encode
from harness.storage.reading import read_results
from harness.storage.seal import EVIDENCE, RECORD, file_seal, seal

EMPTY = Measurement("nll", 1, "nat/token", "lower", "paired", ())
COUNT = Measurement("windows", 1, "count", "neither", "exact", (3.0,))
TYPES = {"measurement": pa.int32(), "value": pa.float64(), "weight": pa.float64()} | {
    name: pa.dictionary(pa.int32(), pa.string()) for name in ("item_id", "cluster_id")
}
VERSIONS = [path for path in fuzzing.kept("record") if path.name.startswith("version-")]


def evidence(rows: int = 2, types: dict[str, Any] = TYPES, compression: str = "snappy", **columns: Any) -> bytes:
    held = {"measurement": [0] * rows, "value": [1.5] * rows} | columns
    arrays = {name: pa.array(held.get(name, [None] * rows), kind) for name, kind in types.items()}
    file = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), file, compression=compression)
    content: bytes = file.getvalue().to_pybytes()
    return content


def test_evidence_comes_back_as_it_was() -> None:
    whole = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 2.0), {}, (3.0, 0.0), ("a", "b"), ("x", "x"))
    content = write_evidence([COUNT, whole])
    assert content is not None
    assert read_evidence(content, "e", [COUNT, EMPTY]) == (COUNT, whole)


def test_many_values_come_back_in_columns() -> None:
    values = tuple(map(float, range(FEW_VALUES + 1)))
    long = replace(EMPTY, values=values, item_ids=tuple(map(str, values)))
    content = write_evidence([long])
    assert content is not None
    (found,) = read_evidence(content, "e", [EMPTY])
    assert found == long
    assert (type(found.values), type(found.item_ids), found.weights) == (ArrayColumn, ArrayColumn, ())


def test_many_equal_values_come_back_as_they_were() -> None:
    whole = replace(EMPTY, values=(1.0,) * 250_000)
    content = write_evidence([whole])
    assert content is not None
    assert read_evidence(content, "e", [EMPTY]) == (whole,)


def test_texts_that_measurements_share_are_written_once() -> None:
    items = tuple(f"a question with a name of sixty characters, number {n:08d}" for n in range(275_000))
    content = write_evidence([replace(EMPTY, values=(float(n),) * len(items), item_ids=items) for n in range(4)])
    assert content is not None
    footer = pq.ParquetFile(pa.BufferReader(content)).metadata
    assert (footer.num_rows, footer.num_row_groups) == (1_100_000, 1)
    found = read_evidence(content, "e", [EMPTY] * 4)
    assert [(each.values[-1], each.item_ids == items) for each in found] == [(float(n), True) for n in range(4)]


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.storage.parquet_bounds.MAX_UNCOMPRESSED_BYTES", 1000)
    with pytest.raises(ValueError, match=r"too large to be read again: a page of \d+ bytes"):
        write_evidence([replace(EMPTY, values=tuple(map(float, range(1000))))])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"value": [1.0, math.nan]}, "not a finite number"),
        ({"value": [1.0, math.inf]}, "not a finite number"),
        ({"value": [1.0, None]}, "value: 1 of 2 are missing"),
        ({"weight": [1.0, -2.0]}, "negative weight"),
        ({"weight": [1.0, None]}, "weight: 1 of 2 are missing"),
        ({"item_id": ["a", None]}, "item_id: 1 of 2 are missing"),
        ({"measurement": [0, 1]}, "has values of measurement 1, which the record does not lack"),
        ({"measurement": [0, 9]}, "has values of measurement 9"),
        ({"measurement": [0, -1]}, "has values of measurement -1"),
        ({"measurement": [0, None]}, "1 values belong to no measurement"),
        ({"measurement": [1, 1]}, "has values of measurement 1"),
    ],
)
def test_rows_that_belong_nowhere_or_mean_nothing(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        read_evidence(evidence(**columns), "e", [EMPTY, COUNT])


@pytest.mark.parametrize(
    "types",
    [
        {**TYPES, "value": pa.float32()},
        {**TYPES, "item_id": pa.string()},
        {name: kind for name, kind in TYPES.items() if name != "weight"},
        {**TYPES, "more": pa.int32()},
        {**TYPES, "measurement": pa.uint32()},
    ],
)
def test_other_columns_than_ours(types: dict[str, Any]) -> None:
    with pytest.raises(ResultsError, match=r"columns are not those|columns instead of 5|of another type"):
        read_evidence(evidence(types=types), "e", [EMPTY])


@pytest.mark.parametrize("compression", ["gzip", "zstd", "brotli"])
def test_a_codec_that_compresses_too_well(compression: str) -> None:
    with pytest.raises(ResultsError, match="compressed by another codec than Snappy"):
        read_evidence(evidence(compression=compression), "e", [EMPTY])


def test_a_small_file_of_many_rows_takes_no_memory() -> None:
    rows = 1_000_000
    zeros = pa.array(bytearray(8 * rows), pa.uint8()).buffers()[1]
    content = evidence(
        rows,
        measurement=pa.Array.from_buffers(pa.int32(), rows, [None, zeros]),
        value=pa.Array.from_buffers(pa.float64(), rows, [None, zeros]),
    )
    assert len(content) < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ResultsError, match=f"{rows} rows in 1 groups"):
        read_evidence(content, "e", [EMPTY])
    assert pa.total_allocated_bytes() == before


def test_a_page_that_says_it_becomes_large() -> None:
    """A page header is: its type, and its size when decompressed as a zigzag number of 7 bits a byte (here 4)."""
    content = write_evidence([replace(EMPTY, values=tuple(map(float, range(140_000))))])
    assert content is not None
    lying, count = re.subn(
        rb"(\x15[\x00\x04]\x15)[\x80-\xff]{3}[\x01-\x7f](?=\x15)", rb"\1" + b"\xfe\xff\xff\x7f", content, count=1
    )
    assert count == 1
    with pytest.raises(ResultsError, match="a page of 134217727 bytes when decompressed"):
        read_evidence(lying, "e", [EMPTY])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 4, b"PAR1\xff\xff\xff\x7fPAR1", b"x" * 100])
def test_no_parquet_file(content: bytes) -> None:
    with pytest.raises(ResultsError, match=r"no whole Parquet file|longer than its place"):
        read_evidence(content, "e", [EMPTY])


def test_a_measurement_has_one_weight_and_id_for_each_value() -> None:
    with pytest.raises(ValueError, match="nll has 2 values and 1 weights"):
        Measurement("nll", 1, "x", "lower", "paired", (1.0, 2.0), {}, (1.0,))
    with pytest.raises(ValueError, match="nll has 1 values and 2 items"):
        Measurement("nll", 1, "x", "lower", "paired", (1.0,), {}, (), ("a", "b"))


def raw(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path.read_bytes().partition(b"\0")[0])
    return held


def changed(path: Path, place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    held = inner = raw(path)
    for step in place[:-1]:
        inner = inner[step]  # type: ignore[index]
    inner[place[-1]] = value  # type: ignore[index]
    return held


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.name)
@pytest.mark.parametrize("value", ["1", "9" * 400, True, 1.5, None, [1], {}], ids=lambda value: repr(value)[:9])
def test_no_value_is_converted(path: Path, value: object) -> None:
    """An attempt is a whole number, and neither a word, a truth value nor a fraction becomes one."""
    with pytest.raises(ResultsError, match="attempt: "):
        decode(RunRecord, upgrade(changed(path, ("attempt",), value), "record.json"), "record.json")


@pytest.mark.parametrize("version", [-1, 0, "2", None, True, 1.0, 10**30, [2]], ids=repr)
def test_what_no_harness_wrote_as_a_version(version: object) -> None:
    with pytest.raises(ResultsError, match="has no schema_version") as caught:
        upgrade(changed(VERSIONS[-1], ("schema_version",), version), "record.json")
    assert not isinstance(caught.value, NewerRecordError)


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.name)
@pytest.mark.parametrize("key", ["spec", "outcome", "session", "started_at", "wall_s"])
@pytest.mark.parametrize("value", [None, [], {}, "x" * 10**6, {"kind": {}}, {"labels": [{}], "facts": {"layers": [1]}}])
def test_a_part_of_another_kind(path: Path, key: str, value: object) -> None:
    held = changed(path, (key,), value)
    if key in ("session", "started_at") and isinstance(value, str):  # these are any text
        assert decode(RunRecord, upgrade(held, "record.json"), "record.json")
        return
    with pytest.raises(ResultsError, match=r"^record\.json: ") as caught:
        decode(RunRecord, upgrade(held, "record.json"), "record.json")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "fact",
    [
        {"code": "layers", "arguments": {"Linear": [1]}},
        {"code": "calibration_overlap", "arguments": {"shared": 10**400, "run_tokens": 1}},
        {"code": "kernels", "arguments": {"x": 1}},
        {"code": "attention", "arguments": {"implementation": "a", "self": 1}},
        {"code": "\x1b[31m", "arguments": {}},
    ],
    ids=lambda fact: repr(fact["code"]),
)
def test_a_fact_that_no_sentence_can_be_made_of(fact: dict[str, Any]) -> None:
    held = changed(VERSIONS[-1], ("outcome", "facts"), [fact])
    with pytest.raises(ResultsError) as caught:
        decode(RunRecord, upgrade(held, "record.json"), "record.json")
    assert str(caught.value).isprintable()


def test_more_notes_than_a_run_has() -> None:
    notes = [{"code": "other", "arguments": {"text": ""}}] * 1001
    with pytest.raises(ResultsError, match=r"outcome\.labels: "):
        decode(RunRecord, upgrade(changed(VERSIONS[-1], ("outcome", "labels"), notes), "r"), "r")


@pytest.mark.parametrize(
    ("metric", "protocol", "items", "message"),
    [
        ("stored_bytes", {"role": "linear"}, (), "the protocol of stored_bytes has no part"),
        ("stored_bytes", {"role": "linear", "part": 1}, (), "the protocol of stored_bytes has the part 1"),
        ("decode_step_s", {"batch_size": 1}, (), "the protocol of decode_step_s has no prompt_tokens"),
        ("prefill_s", {"batch_size": "a", "prompt_tokens": 8}, (), "the protocol of prefill_s has the batch_size 'a'"),
        ("prefill_s", {"batch_size": True, "prompt_tokens": 8}, (), "has the batch_size True"),
        ("peak_memory_bytes", {"phase": "load", "source": "VmHWM", "prompt_tokens": 8}, (), "has no batch_size"),
        ("kl", {}, ("0:a",), "an item of kl is '0:a', which is not of its form"),
        ("router_kl", {}, ("0",), "an item of router_kl is '0', which is not of its form"),
        ("expert_tokens", {"starved": 256}, ("mlp",), "an item of expert_tokens is 'mlp', which is not of its form"),
        ("expert_tokens", {}, (), "the protocol of expert_tokens has no starved"),
    ],
)
def test_a_protocol_that_figures_could_not_use(
    metric: str, protocol: dict[str, Any], items: tuple[str, ...], message: str
) -> None:
    fault = fault_of(Measurement(metric, 1, "x", "lower", "exact", (1.0,), protocol, (), items))
    assert fault is not None
    assert message in fault


def test_a_plugin_s_protocol_is_its_own() -> None:
    assert fault_of(Measurement("mine", 1, "x", "lower", "exact", (1.0,), {"batch_size": "a", "part": 1})) is None


def test_a_record_with_such_a_protocol_is_damaged(tmp_path: Path) -> None:
    held = raw(VERSIONS[-1])
    held["outcome"]["measurements"].append(
        json.loads(encode(Measurement("stored_bytes", 1, "byte", "lower", "exact", (1.0,))))
    )
    evidence_bytes = VERSIONS[-1].read_bytes().partition(b"\0")[2]
    found = decode(RunRecord, upgrade(held, "r"), "r")
    folder = tmp_path / found.spec.recipe / found.spec.run_id / str(found.attempt)
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(seal(held, {EVIDENCE: file_seal(evidence_bytes)})))
    (folder / EVIDENCE).write_bytes(evidence_bytes)
    with pytest.raises(ResultsError, match="the protocol of stored_bytes has no role"):
        read_results(tmp_path)
