"""A machine that stops at any moment leaves the old state or the new one: never an error, never a half.

Every operation is recorded once. Then every prefix of its system calls is tried, with everything that was not synced
lost in every way that a file system may lose it (``crash.py``), and the store or the cache is opened from what is left.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from crash import RecordingDisk, crash_states, write_tree
from run_specs import run_spec

from harness.api.baselines import Baselines
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.storage.anonymizer import Anonymizer
from harness.storage.cache import OUTCOME, Cache
from harness.storage.disk import Disk
from harness.storage.spill import Saver
from harness.storage.store import Store

NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn", "offline")
NOBODY = Anonymizer({})
"""Replaces nothing: the folders of these tests are temporary."""
FAILURE = Failure("inputs", "InvalidRunError", "an input changed during the sweep")
LOG = b"a log\n" * 10
ARTIFACT = run_spec("quantize", method=RTN)
MADE = Outcome("ok", measurements=(Measurement("degrid_kl", 1, "nat", "lower", "exact", (0.25,)),))


def record(attempt: int = 1, nll: float = 1.0) -> RunRecord:
    spec = run_spec("quality", "sweep", ModelRef("m", "m", "abc", "directory", "/m"), NONE, NONE)
    values = Measurement("nll", 1, "nat/token", "lower", "paired", (nll, 3.0), {"context": 8}, (1.0, 1.0), ("0", "1"))
    return RunRecord(spec, Outcome("ok", measurements=(values,)), "session", attempt, "2026-01-01T00:00:00+00:00", 1.5)


def store(root: Path, disk: Disk | None = None) -> Store:
    return Store(root / "results", anonymizer=NOBODY, disk=disk or Disk())


def cache(root: Path, disk: Disk | None = None) -> Cache:
    return Cache(root / "cache", disk or Disk())


def nothing(root: Path) -> None:
    pass


def one_record(root: Path) -> None:
    store(root).save(record(), LOG)


def damaged_record(root: Path) -> None:
    store(root).save(record(), LOG)
    path = store(root).save(record(2, 2.0))
    path.write_bytes(path.read_bytes()[:100])


def spilled_record(root: Path) -> None:
    results, saver = _failing(root, Disk())
    results(root)
    saver.save(record(), LOG)


def fill(part: Path, content: bytes) -> None:
    """As a library fills a checkpoint: without any sync."""
    (part / "model.safetensors").write_bytes(content)
    (part / "inner").mkdir()
    (part / "inner" / "config.json").write_bytes(b"{}")


def publish_again(root: Path, disk: Disk) -> None:
    """An artifact of one file, so that fewer states are left of what is damaged and what is new together."""
    with cache(root, disk).filling(ARTIFACT, "worker") as part:
        (part / "model.safetensors").write_bytes(b"weights of a model")
        cache(root, disk).publish(ARTIFACT, part, MADE)


def publish(root: Path, disk: Disk) -> None:
    with cache(root, disk).filling(ARTIFACT, "worker") as part:
        fill(part, b"weights of a model")
        cache(root, disk).publish(ARTIFACT, part, MADE)


def artifact(root: Path) -> None:
    publish(root, Disk())


def damaged_artifact(root: Path) -> None:
    publish_again(root, Disk())
    (cache(root).folder("quantize", ARTIFACT.run_id) / OUTCOME).write_bytes(b"{")


def unsealed_artifact(root: Path) -> None:
    folder = cache(root).folder("quantize", ARTIFACT.run_id)
    folder.mkdir(parents=True)
    fill(folder, b"weights of a model")
    (folder / OUTCOME).write_text('{"schema_version": 2, "outcome": {"status": "ok"}}')


def baseline(root: Path) -> None:
    Baselines(root / "baselines").set("main", [record()])


def _failing(root: Path, disk: Disk) -> tuple[Callable[[Path], None], Saver]:
    """A saver whose store has no room, and what lets it fail. Only what is below the spill roots can be written."""

    def make(root: Path) -> None:
        (root / "results").write_bytes(b"a file in the place of the folder")

    return make, Saver(store(root, disk), [root / "spill"])


def spill(root: Path, disk: Disk) -> None:
    saver = _failing(root, disk)[1]
    saver.save(record(), LOG)
    assert saver.trouble is not None


def results_gone(root: Path) -> None:
    _failing(root, Disk())[0](root)


def spill_and_room(root: Path) -> None:
    """A spilled record, and results that can be written again."""
    spilled_record(root)
    (root / "results").unlink()


def take_in(root: Path, disk: Disk) -> None:
    Saver(store(root, disk), [root / "spill"]).take_in("sweep")


def records(root: Path) -> Hashable:
    found = store(root).read()
    return tuple((each.attempt, each.status, each.outcome.measurements) for each in found.records), len(found.damaged)


def whole_artifact(root: Path) -> Hashable:
    """The content of an artifact, if there is one: then it is whole."""
    assert cache(root).damage(ARTIFACT, read_data=True) is None
    return usable_artifact(root)


def usable_artifact(root: Path) -> Hashable:
    """The content of what a sweep would reuse."""
    own = cache(root)
    if own.outcome(ARTIFACT) is None:
        return None
    folder = own.folder("quantize", ARTIFACT.run_id)
    return tuple(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != OUTCOME)


def figures(root: Path) -> Hashable:
    kept = Baselines(root / "baselines")
    assert kept.names() == (["main"] if "main" in kept else [])
    if "main" not in kept:
        return None
    found = kept.read("main")
    assert found.damaged == ()
    return tuple(each.outcome.measurements for each in found.records)


def everywhere(root: Path) -> Hashable:
    """The records in the results and those that would be taken in, each once."""
    saver = Saver(store(root), [root / "spill"])
    own = store(root).read().records if (root / "results").is_dir() else ()
    found = {(each.session, each.started_at): each.outcome.measurements for each in own}
    for spilled in saver.spilled("sweep"):
        assert spilled.log == LOG
        found[spilled.record.session, spilled.record.started_at] = spilled.record.outcome.measurements
    return tuple(sorted(found.items()))


@dataclass(frozen=True)
class Operation:
    """``make`` does what is recorded, from the state that ``prepare`` makes; ``observe`` is what readers see of it."""

    prepare: Callable[[Path], None]
    make: Callable[[Path, Disk], object]
    observe: Callable[[Path], Hashable]


OPERATIONS = {
    "save the first record": Operation(nothing, lambda root, disk: store(root, disk).save(record(), LOG), records),
    "save another attempt": Operation(
        one_record, lambda root, disk: store(root, disk).save(record(2, 2.0), LOG), records
    ),
    "withdraw a record": Operation(
        one_record, lambda root, disk: store(root, disk).withdraw(record(), FAILURE), records
    ),
    "set a damaged record aside": Operation(
        damaged_record,
        lambda root, disk: store(root, disk).set_aside("sweep", store(root).read().damaged[0]),
        records,
    ),
    "spill a record": Operation(results_gone, spill, everywhere),
    "take a spilled record in": Operation(spill_and_room, take_in, everywhere),
    "publish an artifact": Operation(nothing, publish, whole_artifact),
    "publish over a damaged artifact": Operation(damaged_artifact, publish_again, usable_artifact),
    "remove an artifact": Operation(artifact, lambda root, disk: cache(root, disk).remove(ARTIFACT), whole_artifact),
    "remove an artifact without a seal": Operation(
        unsealed_artifact, lambda root, disk: cache(root, disk).remove(ARTIFACT), whole_artifact
    ),
    "set a baseline": Operation(
        nothing, lambda root, disk: Baselines(root / "baselines", disk).set("main", [record()]), figures
    ),
    "replace a baseline": Operation(
        baseline,
        lambda root, disk: Baselines(root / "baselines", disk).set("main", [record(nll=2.0)], replace=True),
        figures,
    ),
    "remove a baseline": Operation(
        baseline, lambda root, disk: Baselines(root / "baselines", disk).remove("main"), figures
    ),
    "write a manifest": Operation(
        lambda root: (root / "stack.json").write_bytes(b"the old versions"),  # type: ignore[arg-type, return-value]
        lambda root, disk: disk.write_whole(root / "stack.json", b"the new versions"),
        lambda root: (root / "stack.json").read_bytes(),
    ),
}


def violations(operation: Operation, root: Path, disk: type[RecordingDisk]) -> tuple[int, list[str]]:
    """How many states were tried, and those that are neither the old one nor the new one, with how far it was.

    Once the operation has returned, only the new one is right.
    """
    live = root / "live"
    live.mkdir()
    operation.prepare(live)
    old = operation.observe(live)
    recorder = disk(live)
    operation.make(live, recorder)
    new = operation.observe(live)
    shutil.rmtree(live)
    assert recorder.calls
    tried, wrong = 0, []
    seen: dict[tuple[object, ...], Hashable | Exception] = {}
    for count, tree in crash_states(recorder):
        tried += 1
        key = tuple(sorted(tree.items()))
        if key not in seen:
            live.mkdir()  # where it was: a spill folder knows its results by their path
            write_tree(live, tree)
            seen[key] = observed(operation, live)
            shutil.rmtree(live)
        allowed = [new] if count == len(recorder.calls) else [old, new]
        if seen[key] not in allowed:
            wrong.append(f"after {count} of {len(recorder.calls)} calls: {seen[key]!r} from {sorted(tree)}")
    return tried, wrong


def observed(operation: Operation, root: Path) -> Hashable | Exception:
    try:
        return operation.observe(root)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises is what the test looks for
        return error


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_leaves_the_old_state_or_the_new_one(tmp_path: Path, name: str) -> None:
    tried, wrong = violations(OPERATIONS[name], tmp_path, RecordingDisk)
    print(f"{name}: {tried} states")
    assert wrong == []
    assert tried > 5


class NoFileSync(RecordingDisk):
    """Renames files whose content may not be on the disk."""

    def _fsync(self, path: Path) -> None:
        if path.is_dir():
            super()._fsync(path)


class NoFolderSync(RecordingDisk):
    """Returns before names are on the disk."""

    def _fsync(self, path: Path) -> None:
        if not path.is_dir():
            super()._fsync(path)


class LateSync(RecordingDisk):
    """Syncs, but only after the rename."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.waiting: list[Path] = []

    def sync(self, path: Path) -> None:
        if path.is_dir():
            super().sync(path)
        else:
            self.waiting.append(path)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        for path in self.waiting:
            moved = target / path.relative_to(source) if path.is_relative_to(source) else path
            if moved.exists():
                super().sync(moved)
        self.waiting.clear()


@pytest.mark.parametrize("broken", [NoFileSync, NoFolderSync, LateSync])
@pytest.mark.parametrize("name", ["save the first record", "publish an artifact", "write a manifest"])
def test_the_test_finds_a_disk_that_syncs_too_little_or_too_late(
    tmp_path: Path, name: str, broken: type[RecordingDisk]
) -> None:
    assert violations(OPERATIONS[name], tmp_path, broken)[1]


def test_a_crash_while_a_record_is_set_aside_loses_nothing_of_it(tmp_path: Path) -> None:
    """Damaged content may still be worth something to whoever looks at it."""
    damaged_record(tmp_path)
    recorder = RecordingDisk(tmp_path)
    content = (tmp_path / "results" / "sweep" / record().spec.run_id / "2" / "record.json").read_bytes()
    store(tmp_path, recorder).set_aside("sweep", store(tmp_path).read().damaged[0])
    for _, tree in crash_states(recorder):
        assert [path for path, held in tree.items() if held == content]


def test_a_crash_while_a_record_is_taken_in_never_doubles_it(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    spill_and_room(live)
    recorder = RecordingDisk(live)
    take_in(live, recorder)
    for tree in {tuple(sorted(tree.items())): tree for _, tree in crash_states(recorder)}.values():
        shutil.rmtree(live)
        live.mkdir()
        write_tree(live, tree)
        take_in(live, Disk())
        (kept,) = store(live).read().records
        assert replace(kept, attempt=1) == record()
        assert Saver(store(live), [live / "spill"]).spilled("sweep") == ()
