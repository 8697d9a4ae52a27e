"""What a sweep does when its disk fails or its cache is damaged. The executor here starts no worker."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from run_specs import run_spec

from harness.api.pack import pack
from harness.core.inputs import Input
from harness.core.label import Fact
from harness.core.model import MethodRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import HourlyPrice, ReaderSettings, RunSpec
from harness.core.site import HERE, Node
from harness.errors import ExitCode, ResultsError, StorageError
from harness.execution.events import ArtifactDamaged, DamageFound, Ended, Event, TakenIn, Verifying
from harness.execution.local import LocalSite
from harness.execution.resume import done
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.stacks import Stacks
from harness.storage.cache import Cache
from harness.storage.checksums import hash_file
from harness.storage.disk import Disk
from harness.storage.pack import PACK
from harness.storage.spill import Saver
from harness.storage.store import Store

RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn", "offline")
NLL = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.0), {"context": 8}, (1.0, 1.0), ("0", "1"))
SIZE = Measurement("weight_bytes", 1, "byte", "lower", "exact", (9.0,))
LOG = b"the log of the run"


@dataclass
class Pretender:
    """Publishes and measures like a worker, at once; ``during`` may do something while a run is under way."""

    site: LocalSite
    made: list[str] = field(default_factory=list)
    during: dict[str, Callable[[], object]] = field(default_factory=dict)

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        return False

    def nodes(self, device: str) -> tuple[Node, ...]:
        return (HERE,)

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        self.made.append(spec.kind)
        cache = self.site.artifacts
        cache.verify(spec)
        outcome = Outcome("ok", measurements=(NLL, SIZE), facts=(Fact("layers", {"Linear": 2}),))
        if spec.job.cached:
            with cache.filling(spec, "token") as part:
                (part / "model.safetensors").write_bytes(bytes(1000))
                cache.publish(spec, part, outcome)
        self.during.get(spec.kind, lambda: None)()
        return outcome, LOG

    def stop(self) -> None:
        """It runs one at a time."""


class Place:
    """A results folder, a cache and two spill roots; three runs, each of which needs the one before."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "results")
        self.cache = Cache(folder / "cache")
        self.spills = [folder / "cache" / "spill", folder / "state" / "spill"]
        self.events: list[Event] = []
        self.executor = Pretender(LocalSite(self.cache, Stacks(folder / "stacks")))
        self.input = folder / "input.txt"
        self.input.write_text("the text")
        read = (Input((hash_file(self.input),)),)
        prepare = run_spec("prepare")
        quantize = replace(run_spec("quantize", method=RTN), needs={"prepare": prepare.run_id})
        quality = replace(run_spec("quality", method=RTN), needs={"quantize": quantize.run_id})
        self.planned = [PlannedRun(spec, inputs=read) for spec in (prepare, quantize, quality)]

    def run(self) -> tuple[RunRecord, ...]:
        self.events.clear()
        self.executor.made.clear()
        return sweep(self.planned, self.store, self.executor, self.events.append, spill_roots=self.spills)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def repeated(run: PlannedRun) -> PlannedRun:
    """The same question, asked once more: another run."""
    return replace(run, spec=replace(run.spec, environment=replace(run.spec.environment, repetition=1)))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Lets every write below a folder fail with an error number; 0 ends it. Root may write to read-only folders."""
    failures: dict[Path, int] = {}
    write, mkdir = Disk._write, Disk._mkdir

    def check(path: Path) -> None:
        for folder, number in failures.items():
            if number and path.is_relative_to(folder):
                raise OSError(number, os.strerror(number), str(path))

    def failing_write(disk: Disk, path: Path, content: bytes) -> None:
        check(path)
        write(disk, path, content)

    def failing_mkdir(disk: Disk, path: Path, mode: int) -> None:
        check(path)
        mkdir(disk, path, mode)

    monkeypatch.setattr(Disk, "_write", failing_write)
    monkeypatch.setattr(Disk, "_mkdir", failing_mkdir)
    return failures.__setitem__


def test_nothing_is_made_twice_and_what_is_used_is_hashed_once(place: Place) -> None:
    assert [record.status for record in place.run()] == ["ok"] * 3
    assert place.of(Verifying) == []
    place.run()
    assert place.executor.made == []
    assert place.of(Verifying) == []  # nothing that is left needs an artifact
    place.planned.append(repeated(place.planned[2]))
    place.run()
    assert place.executor.made == ["quality"]
    assert [event.spec.kind for event in place.of(Verifying)] == ["quantize"]  # type: ignore[union-attr]


def test_an_artifact_that_was_taken_over_took_no_time(place: Place) -> None:
    """Hashing it may take longer than making it did: a forecast must not learn from that."""
    place.run()
    place.store = Store(place.store.root.with_name("others"))
    assert [record.wall_s > 0 for record in place.run()] == [False, False, True]
    assert place.executor.made == ["quality"]


def test_figures_too_large_for_a_record_are_an_invalid_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.storage.evidence.MAX_ROWS", 1)
    first, *others = place.run()
    assert first.outcome.failure is not None
    assert first.outcome.failure.message == (
        "2 values are more than 1, the most that a record may have; 2 of them are of nll"
    )
    assert first.outcome.measurements == (SIZE,)
    assert first.outcome.facts == (Fact("layers", {"Linear": 2}),)
    assert [first.status, *(each.status for each in others)] == ["invalid", "unsupported", "unsupported"]
    assert place.store.read().damaged == ()


def test_damage_in_the_cache_heals_in_the_same_sweep(place: Place) -> None:
    first = place.run()
    quantize = place.planned[1].spec
    file = place.cache.folder("quantize", quantize.run_id) / "model.safetensors"
    file.write_bytes(bytes(999) + b"\x01")
    place.planned[2] = repeated(place.planned[2])
    records = place.run()
    assert place.executor.made == ["quantize", "quality"]
    (damaged,) = place.of(ArtifactDamaged)
    assert str(file) in damaged.reason  # type: ignore[union-attr]
    assert file.read_bytes() == bytes(1000)
    assert [record.status for record in records] == ["ok"] * 3
    assert records[1].attempt == first[1].attempt + 1


def test_damage_of_what_a_damaged_artifact_is_made_from_heals_too(place: Place) -> None:
    place.run()
    for kind, planned in (("quantize", place.planned[1]), ("prepare", place.planned[0])):
        (place.cache.folder(kind, planned.spec.run_id) / "outcome.json").write_text("{")
    assert set(done(place.planned, place.store.read("sweep").records, place.cache.outcome)) == {
        run.spec.run_id for run in place.planned
    }  # none of them is needed: every figure is recorded
    place.store = Store(place.store.root.with_name("other"))
    assert [record.status for record in place.run()] == ["ok"] * 3
    assert place.executor.made == ["prepare", "quantize", "quality"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("kind", ["prepare", "quantize", "quality"])
def test_a_finished_run_survives_a_disk_that_fails(
    place: Place, failing: Callable[[Path, int], None], kind: str, number: int
) -> None:
    place.executor.during[kind] = lambda: failing(place.store.root, number)
    with pytest.raises(StorageError, match=os.strerror(number)) as caught:
        place.run()
    assert caught.value.exit_code == ExitCode.STORAGE == 74
    kinds = ["prepare", "quantize", "quality"]
    before = kinds[: kinds.index(kind) + 1]
    assert place.executor.made == before  # and it stopped
    (kept,) = place.spills[0].rglob("record.json")
    assert str(kept.parent) in str(caught.value)
    assert (kept.parent / "log.txt").read_bytes() == LOG
    assert not list(place.store.root.rglob("*.part"))

    failing(place.store.root, 0)
    records = place.run()
    assert place.executor.made == kinds[len(before) :]  # nothing is repeated
    assert [record.status for record in records] == ["ok"] * 3
    assert [record.attempt for record in records] == [1, 1, 1]
    (taken,) = place.of(TakenIn)
    assert taken.record.spec.kind == kind  # type: ignore[union-attr]
    assert taken.record.outcome.measurements == (NLL, SIZE)  # type: ignore[union-attr]
    log = place.store.folder("sweep", taken.record.spec.run_id) / "1" / "log.txt"  # type: ignore[union-attr]
    assert log.read_bytes() == LOG
    assert not list(place.spills[0].rglob("record.json"))
    assert place.run() == records
    assert place.of(TakenIn) == []


def test_new_settings_of_a_finished_run_survive_a_disk_that_fails(
    place: Place, failing: Callable[[Path, int], None]
) -> None:
    """Its record is saved again with another price: the spilled one is another record of the same attempt."""
    place.run()
    price = ReaderSettings(price=HourlyPrice(2.0, "EUR"))
    place.planned = [replace(run, spec=replace(run.spec, readers=price)) for run in place.planned]

    def fail(event: Event) -> None:
        failing(place.store.root, errno.ENOSPC)

    with pytest.raises(StorageError):
        sweep(place.planned, place.store, place.executor, fail, spill_roots=place.spills)
    failing(place.store.root, 0)
    taken = Saver(place.store, place.spills).take_in("sweep")
    assert [each.spec.readers for each in taken] == [price]
    kept = [each for each in place.store.read("sweep").records if each.key == taken[0].key]
    assert [(each.attempt, each.spec.readers) for each in kept] == [(1, ReaderSettings()), (2, price)]
    assert not list(place.spills[0].rglob("record.json"))


def test_a_spilled_run_goes_to_the_first_root_that_works(place: Place, failing: Callable[[Path, int], None]) -> None:
    failing(place.spills[0], errno.ENOSPC)
    place.executor.during["quality"] = lambda: failing(place.store.root, errno.ENOSPC)
    with pytest.raises(StorageError, match=str(place.spills[1])):
        place.run()
    failing(place.store.root, 0)
    place.run()
    assert place.executor.made == []


def test_a_run_that_can_be_kept_nowhere_is_said_to_be_lost(place: Place, failing: Callable[[Path, int], None]) -> None:
    for root in place.spills:
        failing(root, errno.ENOSPC)
    place.executor.during["quality"] = lambda: failing(place.store.root, errno.ENOSPC)
    with pytest.raises(StorageError, match="could not be kept anywhere else") as caught:
        place.run()
    assert all(str(root) in str(caught.value) for root in place.spills)


def test_a_spill_folder_that_others_may_write_to_is_not_read(
    place: Place, failing: Callable[[Path, int], None]
) -> None:
    place.executor.during["quality"] = lambda: failing(place.store.root, errno.ENOSPC)
    with pytest.raises(StorageError):
        place.run()
    failing(place.store.root, 0)
    place.executor.during.clear()
    (folder,) = place.spills[0].iterdir()
    folder.chmod(0o777)
    place.run()
    assert place.executor.made == ["quality"]
    assert place.of(TakenIn) == []


def test_a_damaged_spilled_run_is_named_and_made_again(place: Place, failing: Callable[[Path, int], None]) -> None:
    place.executor.during["quality"] = lambda: failing(place.store.root, errno.ENOSPC)
    with pytest.raises(StorageError):
        place.run()
    failing(place.store.root, 0)
    place.executor.during.clear()
    (kept,) = place.spills[0].rglob("record.json")
    kept.write_text(kept.read_text().replace("3.0", "3.5").replace('"ok"', '"OK"'))
    records = place.run()
    (damaged,) = place.of(DamageFound)
    assert damaged.damaged.path == kept.parent  # type: ignore[union-attr]
    assert place.executor.made == ["quality"]
    assert [record.status for record in records] == ["ok"] * 3


def test_a_damaged_pack_stays_and_what_it_lost_is_made_again(place: Place) -> None:
    place.run()
    list(pack(place.store.root))
    (packed,) = place.store.root.rglob(PACK)
    content = bytearray(packed.read_bytes())
    content[100] ^= 1  # in the first header
    packed.write_bytes(content)
    place.executor.made.clear()
    records = place.run()
    assert [each.path for each in place.store.read().damaged] == [packed]
    assert len(place.executor.made) == 1
    assert [record.status for record in records] == ["ok"] * 3
    assert {damaged.moved_to for damaged in place.of(DamageFound) if damaged.damaged.path == packed} == {None}  # type: ignore[union-attr]


def test_what_cannot_be_taken_in_yet_stays_and_nothing_is_run(
    place: Place, failing: Callable[[Path, int], None]
) -> None:
    place.executor.during["quantize"] = lambda: failing(place.store.root, errno.ENOSPC)
    with pytest.raises(StorageError):
        place.run()
    with pytest.raises(ResultsError, match="No space left"):  # seen before anything is run
        place.run()
    assert place.executor.made == []
    run = place.store.root / "sweep" / place.planned[1].spec.run_id
    failing(place.store.root, 0)
    failing(run, errno.ENOSPC)
    with pytest.raises(StorageError, match="Runs that were finished earlier are kept"):
        place.run()
    assert place.executor.made == []
    assert len(list(place.spills[0].rglob("record.json"))) == 1


def test_what_a_baseline_needs_to_be_measured_again_is_there(place: Place) -> None:
    """Its speed is measured again beside a new variant's, after the artifact that it needs was deleted."""
    convert = run_spec("convert")
    base = replace(run_spec("performance"), needs={"convert": convert.run_id})
    place.planned = [PlannedRun(convert), PlannedRun(base)]
    place.run()
    place.cache.remove(convert)
    place.planned.append(PlannedRun(run_spec("performance", method=replace(RTN, stage="on_load"))))
    assert [record.status for record in place.run()] == ["ok"] * 3
    assert place.executor.made == ["convert", "performance", "performance"]


def test_a_run_is_kept_although_a_link_leads_out_of_the_results(place: Place, tmp_path: Path) -> None:
    run = place.store.folder("sweep", place.planned[0].spec.run_id)

    def link() -> None:
        (tmp_path / "elsewhere").mkdir()
        run.symlink_to(tmp_path / "elsewhere")

    place.executor.during["prepare"] = link
    with pytest.raises(StorageError, match="is a link to outside"):
        place.run()
    run.unlink()
    place.executor.during.clear()
    place.run()
    assert place.executor.made == ["quantize", "quality"]
    assert len(place.of(TakenIn)) == 1


@pytest.mark.parametrize("spilled", [False, True])
def test_a_changed_input_withdraws_a_run_that_cannot_be_written(
    place: Place, failing: Callable[[Path, int], None], spilled: bool
) -> None:
    """``spilled``: the record itself could not be saved; otherwise only its withdrawal cannot."""

    def change() -> None:
        place.input.write_text("another text")
        if spilled:
            failing(place.store.root, errno.ENOSPC)

    def fail_later(event: Event) -> None:
        place.events.append(event)
        if isinstance(event, Ended) and event.record.spec.kind == "quality":
            failing(place.store.root, errno.ENOSPC)

    place.executor.during["quality"] = change
    with pytest.raises(StorageError):
        sweep(place.planned, place.store, place.executor, fail_later, spill_roots=place.spills)
    failing(place.store.root, 0)
    place.executor.during.clear()
    place.planned = [PlannedRun(run.spec) for run in place.planned]
    records = place.run()
    assert place.executor.made == ["prepare", "quantize", "quality"]  # no figure of another text counts
    assert [record.status for record in records] == ["ok"] * 3
    statuses = sorted((record.attempt, record.status) for record in place.store.read("sweep").records)
    assert statuses == [(1, "invalid")] * 3 + [(2, "ok")] * 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_results_folder_that_cannot_be_written_is_known_before_a_run(
    place: Place, failing: Callable[[Path, int], None], number: int
) -> None:
    failing(place.store.root, number)
    with pytest.raises(ResultsError, match=os.strerror(number)):
        place.run()
    assert place.executor.made == []
