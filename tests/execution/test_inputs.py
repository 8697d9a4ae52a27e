"""What runs read is what was hashed: files that change during a sweep make its runs invalid, by name."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_cache import fill_hub_cache

from harness.api.plan import plan
from harness.core.record import RunRecord
from harness.errors import SourceError
from harness.execution.events import Ended, Event, Withdrawn
from harness.host.machine import installed_version
from harness.models.sources import inspect
from harness.recipe import Model, load_recipe
from harness.storage import checksums
from harness.storage.checksums import compare_content, compare_stat, find_difference, git_blob, hash_file, stat_file
from harness.storage.reading import read_records
from harness.storage.store import Store

WEIGHTS = "model.safetensors"
OTHER_DTYPE = {"none": {"dtype": "bfloat16"}}


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"The river was {word} that day.\n" for word in ("wide", "cold", "old", "low") * 20))
    return path


def content(model: Path, text: Path, *methods: object, **said: object) -> dict[str, object]:
    return {
        "models": [{"id": str(model), "dtype": "float32", "label": "m"}],
        "methods": list(methods),
        "measure": {"perplexity": {"text": str(text), "context": 64, "windows": 2}},
        **said,
    }


def swept(sweeps, said: dict[str, object], after_first: Callable[[], None], paranoid: bool = False):
    """A sweep in which something happens when its first run has ended; its records by label, and its events."""
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Ended) and event.index == 1:
            after_first()

    planned = plan(load_recipe(sweeps.recipe(said)))
    records = sweeps.make(planned, on_event, paranoid=paranoid)
    kept = Store(sweeps.store.root).read().records
    assert all(record in kept for record in records)  # what is withdrawn is so on disk, its evidence beside it
    return {record.spec.title: record for record in records}, events


def other_weights(path: Path) -> bytes:
    """Weights of the same shapes, thus of the same size, that compute something else."""
    from safetensors.numpy import load_file, save

    made = save({name: array * 1.1 for name, array in load_file(path).items()}, {"format": "pt"})
    assert len(made) == path.stat().st_size
    return made


def swap(path: Path, made: bytes) -> None:
    """Another file in its place, as old as it was."""
    before, part = path.stat(), path.with_suffix(".part")
    part.write_bytes(made)
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    part.replace(path)


def edit(path: Path, made: bytes) -> None:
    """The same file with other bytes, as old and as large as it was: only hashing tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(made)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)


def failure(record: RunRecord) -> str:
    assert record.status == "invalid"
    assert record.outcome.failure is not None
    return record.outcome.failure.message


@pytest.mark.heavy
@pytest.mark.thorough
def test_weights_swapped_between_two_runs_are_told_by_the_worker(sweeps, model: Path, text: Path) -> None:
    path = model / WEIGHTS
    made = other_weights(path)
    records, events = swept(sweeps, content(model, text, "none", OTHER_DTYPE), lambda: swap(path, made))
    second = records["quality none dtype=bfloat16"]
    assert f"/model/{WEIGHTS}: another content than when it was hashed" in failure(second)
    assert not second.outcome.measurements
    assert f"/model/{WEIGHTS}: another content than when it was hashed" in failure(records["quality none"])
    assert [event.record.spec.title for event in events if isinstance(event, Withdrawn)] == ["quality none"]


@pytest.mark.heavy
@pytest.mark.parametrize("paranoid", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_an_edit_that_leaves_no_trace_is_found_by_hashing(sweeps, model: Path, text: Path, paranoid: bool) -> None:
    path = model / WEIGHTS
    made, whole = other_weights(path), path.read_bytes()
    said = content(model, text, "none", OTHER_DTYPE)
    records, events = swept(sweeps, said, lambda: edit(path, made), paranoid)
    for record in records.values():
        assert f"/model/{WEIGHTS}: another content than when it was hashed" in failure(record)
    ended = [event.record.status for event in events if isinstance(event, Ended)]
    assert ended == ["ok", "invalid" if paranoid else "ok"]
    assert {record.status for record in read_records(sweeps.store.root)} == {"invalid"}
    edit(path, whole)
    again, _ = swept(sweeps, said, lambda: None)
    assert [(record.status, record.attempt) for record in again.values()] == [("ok", 2), ("ok", 2)]


@pytest.mark.heavy
@pytest.mark.thorough
def test_a_text_that_is_edited_is_found(sweeps, model: Path, text: Path) -> None:
    made = text.read_bytes().replace(b"wide", b"deep")
    records, _ = swept(sweeps, content(model, text, "none", OTHER_DTYPE), lambda: edit(text, made))
    assert all(f"/{text.name}: another content" in failure(record) for record in records.values())


@pytest.mark.heavy
def test_what_was_made_of_changed_weights_is_not_used_again(sweeps, model: Path, text: Path) -> None:
    path = model / WEIGHTS
    made, whole = other_weights(path), path.read_bytes()
    said = content(model, text, {"rtn": {"group_size": 32}}, exclude=[{"method": "none"}])
    changed = {"once": False}

    def change_once() -> None:
        if not changed["once"]:
            changed["once"] = True
            edit(path, made)

    records, _ = swept(sweeps, said, change_once)
    quantize = next(record for record in records.values() if record.spec.kind == "quantize")
    assert all(record.status == "invalid" for record in records.values())
    assert not sweeps.cache.folder("quantize", quantize.spec.run_id).exists()
    edit(path, whole)
    again, events = swept(sweeps, said, change_once)
    assert {record.status for record in again.values()} == {"ok"}
    assert not any(event.reused for event in events if isinstance(event, Ended))


@pytest.mark.heavy
def test_a_touched_file_is_the_same_file_when_resuming(sweeps, model: Path, text: Path) -> None:
    said = content(model, text, "none")
    swept(sweeps, said, lambda: None)
    for path in (model / WEIGHTS, model / "config.json", text):
        os.utime(path)
        shutil.copy(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
    records, events = swept(sweeps, said, lambda: None)
    assert [record.status for record in records.values()] == ["ok"]
    assert all(event.reused for event in events if isinstance(event, Ended))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda model: (model / "generation_config.json").write_text("{}"),
            "files added since it was hashed: generation_config",
        ),
        (lambda model: (model / WEIGHTS).unlink(), f"{WEIGHTS}: gone"),
        (
            lambda model: (model / "tokenizer.json").write_text("{}"),
            "tokenizer.json: another size and modification time",
        ),
    ],
)
def test_files_that_come_go_or_grow_before_a_run_are_named(sweeps, model: Path, text: Path, change, expected) -> None:
    """A loader that fails of it is no fault of the method's."""
    generation = model / "generation_config.json"
    generation.unlink(missing_ok=True)
    planned = plan(load_recipe(sweeps.recipe(content(model, text, "none"))))
    change(model)
    (record,) = sweeps.make(planned)
    assert expected in failure(record)


@pytest.mark.heavy
@pytest.mark.thorough
def test_an_interrupt_withdraws_what_read_a_file_that_was_touched(sweeps, model: Path, text: Path) -> None:
    path = model / WEIGHTS
    made = other_weights(path)

    def interrupt() -> None:
        edit(path, made)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(sweeps, content(model, text, "none", OTHER_DTYPE), interrupt)
    (record,) = read_records(sweeps.store.root)
    assert f"/model/{WEIGHTS}: another content" in failure(record)


def test_what_is_made_beside_the_inputs_is_no_change_of_them(model: Path) -> None:
    source = inspect(Model(id=str(model)), model.parent).files
    assert source is not None
    (model / "notes.md").write_text("mine")
    (model / "model.gguf").write_bytes(b"GGUF")
    assert find_difference(source) is None
    assert {Path(file.path).name for file in source.files} >= {WEIGHTS, "config.json", "tokenizer.json"}


@pytest.mark.skipif(installed_version("gptqmodel") is None, reason="needs gptqmodel: pip install 'qharness[gptq]'")
def test_planning_stamps_what_each_run_depends_on(sweeps, model: Path, text: Path) -> None:
    measure = {"perplexity": {"text": str(text), "context": 64}, "throughput": {"prompt_tokens": 8, "new_tokens": 2}}
    other = shutil.copy(text, text.with_name("calibration.txt"))
    Path(other).write_text(text.read_text().replace("river", "road"))
    said = content(model, text, "none", {"gptq": {"group_size": 32}}, calibration={"text": str(other)}, measure=measure)
    found: dict[str, set[str]] = {}
    for planned in plan(load_recipe(sweeps.recipe(said))):
        names = {Path(file.path).name for each in planned.inputs for file in each.files}
        found[planned.spec.title] = names & {WEIGHTS, text.name, "calibration.txt"}
    assert found[next(title for title in found if title.startswith("machine"))] == set()
    assert found["calibrate m"] == {WEIGHTS, text.name, "calibration.txt"}
    assert found["quality none"] == {WEIGHTS, text.name}
    assert found["quality gptq group_size=32"] == {WEIGHTS, text.name, "calibration.txt"}
    assert found["performance none #1"] == {WEIGHTS}


def test_a_file_that_changes_while_it_is_hashed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    assert hash_file(path).sha256 == hashlib.sha256(b"before").hexdigest()

    def slowly(file: Path) -> str:
        file.write_bytes(b"after, longer")
        return hashlib.sha256(b"before").hexdigest()

    monkeypatch.setattr(checksums, "file_sha256", slowly)
    with pytest.raises(SourceError, match="changed while it was being hashed"):
        hash_file(path)


def test_gits_name_of_a_content_is_gits(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\xc3\xbc"}\r\n')
    told = subprocess.run(["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True)
    assert git_blob(path) == told.stdout.strip()


def test_a_hubs_cache_is_held_against_its_own_names(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link leads to a file that is named by what is in it: git's hash, or the sha256 of a large file."""
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = fill_hub_cache(tmp_path, "someone/tiny", revision, tiny)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = inspect(Model(id="someone/tiny", revision=revision), tmp_path).files
    assert found is not None
    assert find_difference(found) is None
    assert all(file.sha256 or file.blob for file in found.files)
    assert [compare_content(file) for file in found.files] == [None] * len(found.files)
    for name in (WEIGHTS, "config.json"):
        edit((snapshot / name).resolve(), b"other")
        (file,) = (file for file in found.files if Path(file.path).name == name)
        assert compare_stat(file) is None
        assert compare_content(file) is not None


def test_times_and_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    before = stat_file(path)
    assert (before.size, compare_stat(before), compare_stat(before, any_change=True)) == (4, None, None)
    path.chmod(0o600 if path.stat().st_mode & 0o077 else 0o644)
    assert compare_stat(before) is None
    assert "change time" in str(compare_stat(before, any_change=True))
    assert "size" in str(compare_stat(replace(before, size=5)))


def test_a_copy_in_a_files_place_is_the_same_file(tmp_path: Path) -> None:
    """As ``rsync -a`` leaves it: other inode, same bytes."""
    for made, expected in ((b"one", None), (b"two", "another content than when it was hashed")):
        path = tmp_path / made.decode()
        path.write_bytes(b"one")
        found = hash_file(path)
        swap(path, made)
        assert path.stat().st_ino != found.inode
        assert compare_stat(found) == (expected and f"{path}: {expected}")
