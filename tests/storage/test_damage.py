"""What becomes of a stored record that a disk, a copy or an editor changed: it is named, and never read as it is."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from newer_records import make_newer
from run_specs import run_spec

from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.upgrade import SCHEMA_VERSION
from harness.errors import NewerRecordError
from harness.storage.reading import Contents
from harness.storage.seal import seal
from harness.storage.store import Store

LOG = b"loading\nscoring\n"
FILES = ("record.json", "evidence.parquet", "log.txt")


def record(title: str = "m", attempt: int = 1, value: float = 1.0) -> RunRecord:
    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    spec = run_spec("quality", "sweep", ModelRef("m", "m", title, "directory", "/m"), none, none)
    nll = Measurement(
        "nll", 1, "nat/token", "lower", "paired", (value, 3.25, 2.5), {}, (10.0, 30.0, 7.0), ("a", "b", "c")
    )
    coverage = Measurement("coverage", 1, "fraction", "higher", "exact", (1.0,))
    outcome = Outcome("ok", measurements=(nll, coverage))
    return RunRecord(spec, outcome, "session", attempt, "2026-01-01T00:00:00+00:00", 1.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def folder(store: Store) -> Path:
    return store.save(record(), LOG).parent


def flips(content: bytes, most: int) -> Iterator[bytes]:
    """Copies with one bit flipped: every bit, or as many as ``most`` drawn evenly from the whole file."""
    bits = range(8 * len(content))
    for bit in bits if len(bits) <= most else sorted(random.Random(len(content)).sample(bits, most)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("record.json", 200),
        ("evidence.parquet", 200),
        ("log.txt", 10**6),
        *(pytest.param(name, 800, marks=pytest.mark.thorough) for name in ("record.json", "evidence.parquet")),
    ],
)
def test_a_flipped_bit_is_found_or_changes_nothing(store: Store, folder: Path, name: str, most: int) -> None:
    whole, path = store.read(), folder / name
    harmless, count = 0, 0
    for changed in flips(path.read_bytes(), most):
        count += 1
        path.write_bytes(changed)
        now = store.read()
        if now == whole:
            harmless += 1
            continue
        (damaged,) = now.damaged
        assert damaged.path == folder
        assert name in damaged.reason
        assert damaged.log_only == (name == "log.txt")
        assert now.records == (whole.records if damaged.log_only else ())
    assert count >= 8 * len(LOG)
    assert harmless <= (0.01 * count if name == "record.json" else 0), "only white space between JSON tokens"


def test_the_version_of_a_sealed_record_cannot_be_lowered(store: Store, folder: Path) -> None:
    """Or its seal would not be checked: 3 and 2 differ by one bit."""
    path = folder / "record.json"
    text = path.read_text()
    for version in range(1, SCHEMA_VERSION):
        path.write_text(text.replace(f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {version}'))
        (damaged,) = store.read().damaged
        assert damaged.reason == f"record.json: has a seal, which records of schema version {version} never had"
    raw = json.loads(text)
    del raw["seal"]
    path.write_text(json.dumps(raw))
    assert store.read().damaged[0].reason == "record.json: its seal is missing"


def test_a_newer_record_is_damaged_only_where_its_seal_is_broken(store: Store, folder: Path) -> None:
    path = folder / "record.json"
    raw = {**json.loads(path.read_text()), "schema_version": SCHEMA_VERSION + 1}
    path.write_text(json.dumps(raw))
    assert "not what was sealed" in store.read().damaged[0].reason
    make_newer(path)
    with pytest.raises(NewerRecordError):
        store.read()
    path.write_text(json.dumps({**raw, "seal": {"algorithm": "another"}}))  # nobody knows what a later one is
    with pytest.raises(NewerRecordError):
        store.read()


def test_every_edited_digit_is_found(store: Store, folder: Path) -> None:
    path = folder / "record.json"
    text = path.read_text()
    places = [match.start() for match in re.finditer(r"\d", text)]
    assert len(places) > 168
    for place in places:
        digit = str((int(text[place]) + 1) % 10)
        path.write_text(text[:place] + digit + text[place + 1 :])
        now = store.read()
        assert [each.path for each in now.damaged] == [folder]
        assert not now.records


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_found(store: Store, folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for length in {0, 1, 7, len(content) // 2, len(content) - 2}:
        (folder / name).write_bytes(content[:length])
        found = store.read()
        (damaged,) = found.damaged
        assert name in damaged.reason
        assert bool(found.records) == (name == "log.txt")


def test_lost_added_and_swapped_files_are_found(store: Store, folder: Path) -> None:
    other = store.save(record("other", value=1.25), b"another log\n").parent
    bare = store.save(replace(record("bare"), outcome=Outcome("ok"))).parent
    whole = shutil.copytree(store.root, store.root.with_name("whole"))

    def reasons(change: Callable[[], object]) -> dict[str, str]:
        shutil.rmtree(store.root)
        shutil.copytree(whole, store.root)
        change()
        return {each.path.parent.name: each.reason for each in store.read().damaged}

    own, second, third = (each.parent.name for each in (folder, other, bare))
    for name in FILES:
        assert reasons((folder / name).unlink) == {own: f"{name}: no such file"}
        if name != "record.json":
            message = f"{name}: the record was sealed without such a file"
            assert reasons(lambda name=name: shutil.copy(folder / name, bare / name)) == {third: message}

        def swap(name: str = name) -> None:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes((other / name).read_bytes())
            (other / name).write_bytes(content)

        assert reasons(swap).keys() == {own, second}
    swapped = reasons(lambda: (folder.rename(store.root / "x"), other.rename(folder), (store.root / "x").rename(other)))
    assert swapped.keys() == {own, second}
    assert all("its run id is" in reason for reason in swapped.values())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"schema_version": 3, "schema_version": 3}', "the key 'schema_version' appears twice"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "not a record"),
        (b"9" * 5000, "not valid JSON"),
        (b" " * (16 * 2**20 + 1), "larger than 16777216 bytes"),
    ],
)
def test_hostile_json_is_damage(store: Store, folder: Path, content: bytes, expected: str) -> None:
    (folder / "record.json").write_bytes(content)
    (damaged,) = store.read().damaged
    assert expected in damaged.reason


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_a_folder_in_place_of_a_file_neither_blocks_nor_counts(store: Store, folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    (damaged,) = store.read().damaged
    assert damaged.reason == f"{name}: not a regular file"
    (folder / name).unlink()
    (folder / name).mkdir()
    (damaged,) = store.read().damaged
    assert re.match(rf"{name}: .*(folder|directory)", damaged.reason)


def test_a_reason_cannot_write_to_a_terminal(store: Store, folder: Path) -> None:
    raw = json.loads((folder / "record.json").read_text())
    raw["outcome"]["measurements"][1]["protocol"]["\x1b[2J\n"] = [1]
    (folder / "record.json").write_text(json.dumps(seal(raw, {})))
    (damaged,) = store.read().damaged
    assert "measurements.1.protocol" in damaged.reason
    assert damaged.sentence.isprintable()


def test_what_is_set_aside_is_kept_and_its_number_not_used_again(store: Store, folder: Path) -> None:
    run_id = folder.parent.name
    second = store.save(record(attempt=2), LOG).parent
    (second / "evidence.parquet").unlink()
    (damaged,) = store.read().damaged
    kept = Path(store.set_aside("sweep", damaged))
    assert kept == store.root / "sweep" / ".damaged" / f"{run_id}.2"
    assert sorted(path.name for path in kept.iterdir()) == ["log.txt", "record.json"]
    assert store.read() == Contents((record(),))
    assert store.next_attempt("sweep", run_id) == 3
    again = store.save(record(attempt=2), LOG).parent
    (again / "record.json").unlink()
    assert Path(store.set_aside("sweep", store.read().damaged[0])).name == f"{run_id}.2.2", "nothing is written over"


def test_a_record_where_none_belongs_is_set_aside_alone(store: Store, folder: Path) -> None:
    """What lies beside it is not its own: here other attempts of the run."""
    shutil.copy(folder / "record.json", folder.parent / "record.json")
    (damaged,) = store.read().damaged
    kept = Path(store.set_aside("sweep", damaged))
    assert [path.name for path in kept.iterdir()] == ["record.json"]
    assert store.read() == Contents((record(),))
