"""Results on a real S3 server: nothing lost and nothing doubled, whatever fails, and every reader as on a disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from object_store import ENVIRONMENT, Kind, ObjectStore, impatient, served
from run_specs import run_spec
from thorough import all_thorough_but

from harness.api.pack import pack
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.errors import ResultsError, UsageError
from harness.storage import objects as objects_module
from harness.storage import remote
from harness.storage.mirror import CLAIM
from harness.storage.objects import TRIES, Listed, Objects
from harness.storage.pack import PACK
from harness.storage.remote import LEASE, Lease, open_store
from harness.storage.spill import Saver
from harness.storage.store import Store

NUMBERS = count()
LOG = b"a log\n" * 10


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with served() as store:
        yield store


@pytest.fixture
def url(server: ObjectStore) -> str:
    return server.bucket(f"bucket-{next(NUMBERS)}") + "/team/results"


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Callable[[str], Store]:
    """The results as seen from a machine, which has a copy of its own."""
    return cache(lambda name: open_store(url, tmp_path / name))


@pytest.fixture
def objects(url: str) -> Objects:
    """What is really there."""
    return Objects(url)


def record(attempt: int = 1, session: str = "session", model: str = "abc", **outcome: object) -> RunRecord:
    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    spec = run_spec("quality", "sweep", ModelRef("m", "m", model, "directory", "/m"), none, none)
    nll = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.0), {"context": 8}, (10.0, 30.0), ("0", "1"))
    made = replace(Outcome("ok", measurements=(nll,)), **outcome)  # type: ignore[arg-type]
    return RunRecord(spec, made, session, attempt, "2026-01-01T00:00:00+00:00", 1.5)


FOLDER = f"sweep/{record().spec.run_id}"


def contents(objects: Objects) -> dict[str, bytes]:
    return {each.name: content for each, content in objects.read_all(list(objects.list().values()))}


def test_a_record_comes_back_as_it_was_on_every_machine(machine: Callable[[str], Store], objects: Objects) -> None:
    machine("a").save(record(), LOG)
    assert machine("a").read().records == machine("b").read().records == (record(),)
    assert machine("b").next_attempt("sweep", record().spec.run_id) == 2
    assert contents(objects)[f"{FOLDER}/1/log.txt"] == LOG


def test_it_is_the_same_files_as_on_a_disk(machine: Callable[[str], Store], objects: Objects, tmp_path: Path) -> None:
    machine("a").save(record(), LOG)
    folder = Store(tmp_path / "disk").save(record(), LOG).parent
    on_disk = {f"{FOLDER}/1/{path.name}": path.read_bytes() for path in folder.iterdir()}
    assert {name: each for name, each in contents(objects).items() if not name.endswith(CLAIM)} == on_disk


def test_attempts_never_overwrite_each_other(machine: Callable[[str], Store], objects: Objects) -> None:
    machine("a").save(record(session="one"), LOG)
    before = contents(objects)
    with pytest.raises(FileExistsError):
        machine("b").save(record(session="two"))
    assert contents(objects) == before


def test_attempts_that_were_copied_from_a_disk_are_not_overwritten_either(
    machine: Callable[[str], Store], objects: Objects
) -> None:
    machine("a").save(record(session="one"), LOG)
    objects.delete([f"{FOLDER}/1/{CLAIM}"])
    before = contents(objects)
    with pytest.raises(FileExistsError):
        machine("b").save(record(session="two"))
    assert {name: each for name, each in contents(objects).items() if not name.endswith(CLAIM)} == before


@pytest.mark.parametrize(
    "kind", all_thorough_but(["500", "answer lost"], ["500", "503", "timeout", "lost", "answer lost"])
)
def test_a_request_that_fails_once_is_tried_again(
    machine: Callable[[str], Store], server: ObjectStore, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever request of a save it is, also if the server did what was asked and only its answer was lost."""
    if kind == "timeout":
        impatient(monkeypatch)
    with server.failing(lambda method, path, number: None) as requests:
        machine("a").save(record())
    for failing in range(1, len(requests) + 1):
        again = record(model=f"{kind} {failing}")
        with server.failing(lambda method, path, number, at=failing: kind if number == at else None):  # type: ignore[misc]
            machine("a").save(again, LOG)
        found = [each for each in machine("a").read().records if each.spec.run_id == again.spec.run_id]
        assert found == [again]
    assert machine("b").read().damaged == ()


@pytest.mark.parametrize("kind", ["500", "lost", "412"])
@pytest.mark.parametrize("last", [CLAIM, "evidence.parquet", "log.txt", "record.json"])
def test_what_fails_for_good_leaves_no_half_of_a_record(
    machine: Callable[[str], Store], server: ObjectStore, tmp_path: Path, kind: Kind, last: str
) -> None:
    """The run is kept on the disk, and the next sweep takes it in, as one attempt."""
    store, spill = machine("a"), tmp_path / "spill"
    saver = Saver(store, [spill])
    with server.failing(lambda method, path, number: kind if path.endswith(last) else None) as requests:
        saver.save(record(), LOG)
    assert saver.trouble is not None
    assert len(requests) <= TRIES * 10, "the number of tries is bounded"
    assert store.read().records == machine("b").read().records == ()
    assert store.read().damaged == (), "what was not finished counts as nothing"
    (taken,) = Saver(store, [spill]).take_in("sweep")
    assert Saver(store, [spill]).take_in("sweep") == ()
    assert machine("b").read().records == (taken,)
    assert taken == replace(record(), attempt=taken.attempt)


@pytest.mark.parametrize("kind", ["truncated", "500", "lost", "timeout"])
def test_a_read_that_fails_once_is_tried_again(
    machine: Callable[[str], Store], server: ObjectStore, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "timeout":
        impatient(monkeypatch)
    machine("a").save(record(), LOG)
    with server.failing(lambda method, path, number: kind if number == 2 else None) as requests:
        assert machine("b").read().records == (record(),)
    assert ("GET", f"/{machine('b').place.title[5:]}/{FOLDER}/1/record.json") in requests


def test_what_cannot_be_read_is_one_message(machine: Callable[[str], Store], server: ObjectStore) -> None:
    machine("a").save(record())
    cut = server.failing(lambda method, path, number: "truncated" if "evidence" in path else None)
    with cut as requests, pytest.raises(ResultsError, match=r"s3://.*evidence\.parquet"):
        machine("b").read()
    assert len(requests) <= TRIES * 5
    with pytest.raises(ResultsError, match="The specified bucket does not exist"):
        open_store("s3://no-such-bucket/x", machine("a").root.parent).read()


def test_only_what_is_new_is_fetched(machine: Callable[[str], Store], server: ObjectStore) -> None:
    machine("a").save(record(), LOG)
    reader = machine("b")
    reader.read()
    kept = reader.root / "sweep" / ".kept"
    kept.write_bytes(b"what a reader keeps beside the results")
    machine("a").save(record(2), LOG)
    with server.failing(lambda method, path, number: None) as requests:
        assert [each.attempt for each in reader.read().records] == [1, 2]
    read = [path for method, path in requests if "/2/" in path or "/1/" in path]
    assert len(read) == 3, "record, evidence and log of the second"
    assert kept.read_bytes() == b"what a reader keeps beside the results"


def test_what_was_withdrawn_or_removed_is_seen_elsewhere(machine: Callable[[str], Store]) -> None:
    for number in (1, 2):
        machine("a").save(record(number), LOG)
    assert len(machine("b").read().records) == 2
    invalid = machine("a").withdraw(record(1), Failure("inputs", "InvalidRunError", "changed"))
    machine("a").place.remove(f"{FOLDER}/2")
    assert machine("b").read() == machine("a").read()
    assert machine("b").read().records == (invalid,)
    assert machine("b").read().damaged == ()


def test_a_pack_that_was_copied_there_is_read(
    machine: Callable[[str], Store], objects: Objects, tmp_path: Path, server: ObjectStore
) -> None:
    disk = Store(tmp_path / "disk")
    for number in (1, 2):
        disk.save(record(number), LOG)
    list(pack(disk.root))
    objects.send(disk.root / "sweep" / PACK, f"sweep/{PACK}")
    store = machine("a")
    with server.failing(lambda method, path, number: "truncated" if number == 2 else None):
        assert store.read().records == (record(1), record(2))
    assert store.next_attempt("sweep", record().spec.run_id) == 3
    store.save(record(3), LOG)
    invalid = store.withdraw(record(2), Failure("inputs", "InvalidRunError", "changed"))
    assert machine("b").read().records == (record(1), invalid, record(3))
    assert machine("b").read().damaged == ()


@pytest.mark.parametrize("later", [b"short", b"longer than it was when it was looked at"])
def test_what_is_replaced_while_it_is_read_is_read_whole(
    objects: Objects, later: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("note", b"as it was at first")
    stat = Objects.stat

    def replaced_after(self: Objects, name: str) -> Listed:
        listed = stat(self, name)
        objects.write(name, later)
        return listed

    monkeypatch.setattr(Objects, "stat", replaced_after)
    assert objects.read("note", 100) == later
    with pytest.raises(ResultsError, match="larger than 4 bytes"):
        objects.read("note", 4)


def test_a_copy_that_lost_its_inventory_or_was_changed_is_fetched_again(machine: Callable[[str], Store]) -> None:
    machine("a").save(record())
    reader = machine("b")
    reader.read()
    (reader.root / FOLDER / "1" / "record.json").write_text("{}")
    assert reader.read().records == (record(),)
    (reader.root / FOLDER / "7").mkdir()
    (reader.root / ".inventory.json").write_text("[")
    assert reader.read() == machine("a").read()


def test_a_damaged_attempt_is_set_aside_by_its_url(machine: Callable[[str], Store], objects: Objects, url: str) -> None:
    store = machine("a")
    store.save(record(), LOG)
    store.place.replace(f"{FOLDER}/1/record.json", b"{")
    (damaged,) = store.read().damaged
    assert damaged.sentence.startswith(f"{url}/{FOLDER}/1: record.json: not valid JSON")
    kept = store.set_aside("sweep", damaged)
    assert kept == f"{url}/sweep/.damaged/{record().spec.run_id}.1"
    assert store.read().damaged == machine("b").read().damaged == ()
    assert store.next_attempt("sweep", record().spec.run_id) == 2
    assert contents(objects)[f"{kept.removeprefix(url)[1:]}/log.txt"] == LOG


def test_names_and_sizes_from_strangers_stay_in_the_copy(
    machine: Callable[[str], Store], objects: Objects, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a").save(record())
    deep = "/".join("x" * 40)
    for name in (
        "x/./record.json",
        "x//1/record.json",
        f"{deep}/record.json",
        f"{'n' * 300}/1/record.json",
        "model.bin",
    ):
        objects._system.pipe_file(f"{objects._root}/{name}", b"{}")
    monkeypatch.setitem(remote.Mirror.refresh.__globals__["MAX_BYTES"], "log.txt", 10)
    objects.write(f"{FOLDER}/2/log.txt", b"0" * 1000)
    objects.write(f"{FOLDER}/2/record.json", b"{}")
    found = machine("b").read()
    assert found.records == (record(),)
    assert [each.url for each in found.damaged] == [f"{url}/{FOLDER}/2"]
    names = {path.name for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert "model.bin" not in names
    assert (machine("b").root / FOLDER / "2" / "log.txt").stat().st_size == 11, (
        "no more than shows that it is too large"
    )


class TestLease:
    def test_a_second_sweep_is_refused_and_the_next_is_not(
        self, machine: Callable[[str], Store], objects: Objects
    ) -> None:
        with machine("a").locked("sweep"):
            with pytest.raises(ResultsError, match="another 'qharness run' is writing"), machine("b").locked("sweep"):
                pass
            with machine("b").locked("other"):
                pass
        with machine("b").locked("sweep"):
            pass
        assert contents(objects) == {}, "nothing stays"

    def test_one_that_expired_is_taken_by_one_alone(
        self, machine: Callable[[str], Store], objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stale = {"owner": "elsewhere", "token": "0", "renewals": 3}
        objects.write(f"sweep/{LEASE}", json.dumps(stale).encode())
        with pytest.raises(ResultsError, match="expires after 5 minutes"), machine("a").locked("sweep"):
            pass
        monkeypatch.setattr(remote, "LEASE_S", -1.0)
        first, second = (Lease(objects, f"sweep/{LEASE}") for _ in range(2))
        version = objects.stat(f"sweep/{LEASE}").version
        assert first._take_over()
        assert not objects.swap(f"sweep/{LEASE}", second._content(), version), "it is no longer that version"

    @pytest.mark.parametrize(("minutes", "expired"), [(1, False), (64, False), (66, True)])
    def test_where_a_store_lists_no_times_the_holders_clock_counts_with_an_allowance(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch, minutes: int, expired: bool
    ) -> None:
        import time

        monkeypatch.setattr(objects_module, "_modified", lambda info: None)
        held = {"owner": "elsewhere", "token": "0", "renewed_unix_s": time.time() - 60 * minutes}
        objects.write(f"sweep/{LEASE}", json.dumps(held).encode())
        assert Lease(objects, f"sweep/{LEASE}")._take_over() == expired

    def test_one_of_a_dead_process_of_this_machine_is_taken_at_once(
        self, machine: Callable[[str], Store], objects: Objects
    ) -> None:
        from harness.core.owner import current_owner

        dead = replace(current_owner(), start=1)
        objects.write(f"sweep/{LEASE}", json.dumps({"owner": str(dead)}).encode())
        with machine("a").locked("sweep"):
            pass

    def test_it_is_renewed_and_a_sweep_that_lost_it_adds_nothing(
        self, machine: Callable[[str], Store], objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import time

        monkeypatch.setattr(remote, "RENEWAL_S", 0.01)
        store = machine("a")
        with store.locked("sweep"):
            first = objects.stat(f"sweep/{LEASE}").version
            while objects.stat(f"sweep/{LEASE}").version == first:
                time.sleep(0.01)
            store.save(record())
            objects.delete([f"sweep/{LEASE}"])
            objects.write(f"sweep/{LEASE}", b"another's")
            while not store.place._leases["sweep"].is_lost:  # type: ignore[attr-defined]
                time.sleep(0.01)
            with pytest.raises(OSError, match="could not renew its lease"):
                store.save(record(2))
        assert contents(objects)[f"sweep/{LEASE}"] == b"another's", "it is not released by who lost it"
        assert len(machine("b").read().records) == 1

    def test_a_renewal_whose_answer_was_lost_is_no_lost_lease(
        self, objects: Objects, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(objects_module, "FIRST_PAUSE_S", 0.0)
        lease = Lease(objects, f"sweep/{LEASE}")
        lease.acquire()
        first = objects.stat(f"sweep/{LEASE}").version
        gone = False

        def outage(method: str, path: str, number: int) -> Kind | None:
            nonlocal gone
            gone, was_gone = gone or method == "PUT", gone
            return "lost" if was_gone else "answer lost" if gone else None

        with server.failing(outage), pytest.raises(OSError, match="lease"):
            lease._renew()
        assert objects.stat(f"sweep/{LEASE}").version != first, "it was written"
        assert lease._renew()
        assert not lease.is_lost
        lease.release()
        assert contents(objects) == {}

    def test_a_sweep_that_was_stopped_for_long_adds_nothing_before_it_looks(
        self, machine: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with machine("a").locked("sweep"):
            monkeypatch.setattr(remote, "LEASE_S", 0.0)
            with pytest.raises(OSError, match="could not renew its lease"):
                machine("a").save(record())

    def test_nothing_can_be_written_is_known_before_a_run(self, tmp_path: Path, server: ObjectStore) -> None:
        with pytest.raises(ResultsError, match=r"cannot write the results: .*bucket does not exist"):
            open_store("s3://no-such-bucket/results", tmp_path).locked("sweep").__enter__()


def test_no_credential_gets_into_results_or_messages(
    machine: Callable[[str], Store], objects: Objects, server: ObjectStore, tmp_path: Path
) -> None:
    secrets = [ENVIRONMENT["AWS_ACCESS_KEY_ID"], ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]]
    leak = " ".join(secrets)
    machine("a").save(
        record(status="failed", measurements=(), failure=Failure("load", "OSError", leak, leak)), leak.encode()
    )
    with machine("a").locked("sweep"):
        stored = b"".join(contents(objects).values())
    machine("b").read()
    stored += b"".join(path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert not [each for each in secrets if each.encode() in stored]
    with pytest.raises(UsageError) as refused:
        open_store(f"s3://{secrets[0]}:{secrets[1]}@bucket/results", tmp_path)
    assert not [each for each in secrets if each in str(refused.value)]
    words = objects._error("read", "x", OSError(f"signature of {leak} does not match"))
    assert not [each for each in secrets if each in str(words)]


def test_any_other_file_system_of_fsspec_will_do(tmp_path: Path) -> None:
    a, b = (open_store("memory://qharness/results", tmp_path / name) for name in "ab")
    with a.locked("sweep"):
        a.save(record(), LOG)
        with pytest.raises(FileExistsError):
            b.save(record(session="two"))
        with pytest.raises(ResultsError, match="another"), b.locked("sweep"):
            pass
    assert b.read().records == (record(),)


@pytest.mark.parametrize("bad", ["s3://", "nothing://bucket/x", "s3:///", "reference://x"])
def test_a_url_that_cannot_be_used_is_a_wrong_command(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UsageError, match=r"://"):
        open_store(bad, tmp_path).read()
    with pytest.raises(UsageError, match=r"://"):
        open_store(bad, tmp_path).locked("sweep").__enter__()


def test_the_scheme_of_a_url_may_be_in_capitals(url: str, objects: Objects, tmp_path: Path) -> None:
    open_store(url.replace("s3://", "S3://"), tmp_path).save(record())
    assert f"{FOLDER}/1/record.json" in objects.list()


@pytest.mark.parametrize(
    "listed",
    [{"LastModified": datetime(2026, 1, 2, tzinfo=UTC)}, {"mtime": 1767312000.0}, {"updated": "2026-01-02T00:00:00Z"}],
)
def test_times_are_read_however_a_library_lists_them(listed: dict[str, object]) -> None:
    assert objects_module._modified(listed) == datetime(2026, 1, 2, tzinfo=UTC)
    assert objects_module._modified({"updated": "yesterday"}) is None


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"gs://bucket/results: .*install gcsfs"):
        Objects("gs://bucket/results").list()
