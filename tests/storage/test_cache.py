"""The cache: what is not as it was written is seen, named, and made again; nothing of it ends a command."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from run_specs import run_spec

from harness.core.job import JOBS
from harness.core.model import MethodRef
from harness.core.owner import current_owner
from harness.core.record import Measurement, Outcome
from harness.core.run import RunSpec
from harness.core.workload import CalibrationRef, TextRef
from harness.errors import DamagedError
from harness.storage.cache import OUTCOME, Cache, CacheFault

RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn", "offline")
MADE = Outcome("ok", measurements=(Measurement("degrid_kl", 1, "nat", "lower", "exact", (0.25,)),))
CACHED = sorted(kind for kind, job in JOBS.items() if job.cached)


CALIBRATION = CalibrationRef(TextRef("t", sha256="1" * 64), "concat", "auto", False, 4, 8, 0)


def artifact(kind: str = "quantize") -> RunSpec:
    return run_spec(kind, method=RTN, **({"calibration": CALIBRATION} if kind == "calibrate" else {}))


def published(cache: Cache, spec: RunSpec, token: str = "worker") -> Path:
    with cache.filling(spec, token) as part:
        (part / "model.safetensors").write_bytes(bytes(range(256)) * 64)
        (part / "inner").mkdir()
        (part / "inner" / "config.json").write_text("{}")
        cache.publish(spec, part, MADE)
    return cache.folder(spec.kind, spec.run_id)


def reader_of(spec: RunSpec) -> RunSpec:
    return replace(run_spec("quality", method=RTN), needs={spec.kind: spec.run_id})


SEEN_AT_ONCE: dict[str, Callable[[Path], object]] = {
    "the outcome is gone": lambda folder: (folder / OUTCOME).unlink(),
    "the outcome is empty": lambda folder: (folder / OUTCOME).write_bytes(b""),
    "the outcome is cut": lambda folder: (folder / OUTCOME).write_bytes((folder / OUTCOME).read_bytes()[:-9]),
    "the outcome is no JSON": lambda folder: (folder / OUTCOME).write_bytes(b"\x00\xff"),
    "the outcome is another JSON": lambda folder: (folder / OUTCOME).write_text("[1, 2]"),
    "the outcome is deep": lambda folder: (folder / OUTCOME).write_text("[" * 100_000),
    "the outcome was edited": lambda folder: (folder / OUTCOME).write_text(
        (folder / OUTCOME).read_text().replace("0.25", "0.35")
    ),
    "the outcome is a folder": lambda folder: ((folder / OUTCOME).unlink(), (folder / OUTCOME).mkdir()),
    "a file is gone": lambda folder: (folder / "model.safetensors").unlink(),
    "a file is cut": lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
    "a file was added": lambda folder: (folder / "model-2.safetensors").write_bytes(b"more"),
    "a folder is gone": lambda folder: shutil.rmtree(folder / "inner"),
}


@pytest.mark.parametrize("kind", CACHED)
def test_an_artifact_of_every_kind_is_sealed_and_comes_back(tmp_path: Path, kind: str) -> None:
    cache, spec = Cache(tmp_path), artifact(kind)
    folder = published(cache, spec)
    assert cache.outcome(spec) == MADE
    assert cache.damage(spec, read_data=True) is None
    sealed = {file["path"]: file for file in json.loads((folder / OUTCOME).read_text())["files"]}
    assert sealed.keys() == {"model.safetensors", "inner/config.json"}
    assert sealed["model.safetensors"]["bytes"] == 2**14
    assert list(cache.faults(read_data=True)) == []


@pytest.mark.parametrize("how", SEEN_AT_ONCE)
def test_what_is_seen_without_reading_the_data_means_make_it_again(tmp_path: Path, how: str) -> None:
    cache, spec = Cache(tmp_path), artifact()
    folder = published(cache, spec)
    SEEN_AT_ONCE[how](folder)
    assert cache.outcome(spec) is None
    reason = cache.damage(spec, read_data=False)
    assert reason is not None
    assert str(folder) in reason
    with pytest.raises(DamagedError, match=r"was removed; run the recipe again"):
        cache.verify(reader_of(spec))
    assert not folder.exists()
    assert published(cache, spec) == folder  # made again
    cache.verify(reader_of(spec))


def test_flipped_bits_of_an_artifact_are_found_before_it_is_used(tmp_path: Path) -> None:
    cache, spec = Cache(tmp_path), artifact()
    folder = published(cache, spec)
    kept = {path: path.read_bytes() for path in (folder / OUTCOME, folder / "inner" / "config.json")}
    kept[folder / "model.safetensors"] = (folder / "model.safetensors").read_bytes()
    unnoticed, tried = [], 0
    for path, content in kept.items():
        for position in range(0, 8 * len(content), 7 if len(content) < 4096 else 1021):
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            path.write_bytes(flipped)
            tried += 1
            if cache.damage(spec, read_data=True) is None:
                unnoticed.append((path.name, position))
        path.write_bytes(content)
    assert unnoticed == []
    assert tried > 800
    assert cache.damage(spec, read_data=True) is None


def test_a_flipped_bit_is_seen_by_whoever_reads_the_data(tmp_path: Path) -> None:
    cache, spec = Cache(tmp_path), artifact()
    folder = published(cache, spec)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[777] ^= 4
    (folder / "model.safetensors").write_bytes(content)
    assert cache.outcome(spec) == MADE  # names and sizes are right
    assert "another sha256" in (cache.damage(spec, read_data=True) or "")
    assert list(cache.faults(read_data=False)) == []
    (fault,) = cache.faults(read_data=True)
    assert (fault.path, fault.kind) == (folder, "damaged")
    assert list(cache.repair(read_data=True)) == [fault]
    assert not folder.exists()


def test_a_folder_in_the_place_of_another_is_not_used(tmp_path: Path) -> None:
    cache, spec, other = Cache(tmp_path), artifact(), artifact("prepare")
    moved = cache.folder(other.kind, other.run_id)
    moved.parent.mkdir()
    published(cache, spec).rename(moved)
    assert cache.outcome(other) is None
    assert f"belongs to another folder, quantize/{spec.run_id}" in (cache.damage(other, read_data=False) or "")


def test_an_artifact_without_a_seal_is_used_and_told(tmp_path: Path) -> None:
    """From before there were seals: a checkpoint of 100 GB is not made again for that alone."""
    cache, spec = Cache(tmp_path), artifact()
    folder = published(cache, spec)
    raw = json.loads((folder / OUTCOME).read_text())
    (folder / OUTCOME).write_text(json.dumps({"schema_version": 2, "outcome": raw["outcome"]}))
    assert cache.outcome(spec) == MADE
    cache.verify(reader_of(spec))
    assert [fault.kind for fault in cache.faults(read_data=True)] == ["not sealed"]
    assert list(cache.repair(read_data=True)) == []
    assert folder.exists()


def test_another_sweep_that_published_first_keeps_its_folder(tmp_path: Path) -> None:
    cache, spec = Cache(tmp_path), artifact()
    with cache.filling(spec, "slow") as part:
        (part / "model.safetensors").write_bytes(b"slow")
        folder = published(cache, spec, "quick")
        cache.publish(spec, part, replace(MADE, facts=()))
    assert (folder / "model.safetensors").stat().st_size == 2**14
    assert [path.name for path in folder.parent.iterdir()] == [spec.run_id]


def test_a_damaged_folder_does_not_bar_the_way_of_a_new_one(tmp_path: Path) -> None:
    cache, spec = Cache(tmp_path), artifact()
    folder = published(cache, spec)
    (folder / OUTCOME).write_bytes(b"")
    published(cache, spec)
    assert cache.damage(spec, read_data=True) is None


def use_and_remove(root: Path, number: int) -> None:
    """Publishes, verifies and removes one artifact again and again, as sweeps that share a cache may."""
    cache, spec = Cache(root), artifact()
    for turn in range(20):
        published(cache, spec, f"{number}-{turn}")
        with suppress(DamagedError):  # another one removed it
            cache.verify(reader_of(spec))
        assert cache.outcome(spec) in (None, MADE)
        if (turn + number) % 3 == 0:
            cache.remove(spec)
    published(cache, spec, f"{number}-last")


def test_processes_that_share_a_cache_publish_read_and_remove_without_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=use_and_remove, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert Cache(tmp_path).damage(artifact(), read_data=True) is None
    assert [path.name for path in (tmp_path / "quantize").iterdir()] == [artifact().run_id]


def test_a_missing_artifact_is_not_damage_but_cannot_be_read(tmp_path: Path) -> None:
    cache, spec = Cache(tmp_path), artifact()
    assert cache.outcome(spec) is None
    assert cache.damage(spec, read_data=True) is None
    with pytest.raises(DamagedError, match="missing from the cache; run the recipe again"):
        cache.verify(reader_of(spec))


def test_faults_names_what_is_left_over(tmp_path: Path) -> None:
    cache, spec = Cache(tmp_path), artifact()
    folder = published(cache, spec)
    part = cache.part(spec, "gone")
    part.mkdir()
    cache.part(spec, f"qharness-{current_owner()}-x").mkdir()  # this process fills it
    unsealed = [tmp_path / "configurations" / "a.json", tmp_path / "windows" / "b.json"]
    for path in unsealed:
        path.parent.mkdir()
        path.write_text("{}")
    debris, *damaged = cache.faults(read_data=False)
    assert debris == CacheFault(part, "debris", f"{part}: left by a run that did not end")
    assert [(fault.path, fault.kind) for fault in damaged] == [(path, "damaged") for path in unsealed]
    assert {fault.path for fault in cache.repair(read_data=False)} == {part, *unsealed}
    assert list(cache.faults(read_data=False)) == []
    assert folder.exists()
