"""``repair`` and ``store pack`` at URLs, on a real S3 server: as in a folder, and an interruption loses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import count
from pathlib import Path

import pytest
from object_store import ObjectStore, served
from run_specs import run_spec
from typer.testing import CliRunner, Result

from harness.api.locations import open_results
from harness.api.pack import pack, unpack
from harness.api.repair import repair
from harness.api.verify import verify
from harness.cli.app import app
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.errors import ResultsError, StorageError
from harness.storage.mirror import CLAIM
from harness.storage.objects import Objects
from harness.storage.pack import PACK
from harness.storage.remote import LEASE
from harness.storage.store import Store

NUMBERS = count()
LOG = b"a log\n"
NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
SOME_OR_ALL = pytest.mark.parametrize(
    "step",
    [pytest.param(3, id="some", marks=pytest.mark.thorough), pytest.param(1, id="all", marks=pytest.mark.slow)],
)
"""Every third of the requests that write fails for good, or each of them."""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with served() as store:
        yield store


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def url(server: ObjectStore) -> str:
    return server.bucket(f"changed-{next(NUMBERS)}") + "/results"


def record(content: str, attempt: int = 1) -> RunRecord:
    spec = run_spec("quality", "sweep", ModelRef("m", "m", content, "directory", "/m"), NONE, NONE)
    nll = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.25), item_ids=("a", "b"))
    return RunRecord(
        spec, Outcome("ok", measurements=(nll,)), f"session {attempt}", attempt, "2026-01-01T00:00:00+00:00", 1.5
    )


RECORDS = tuple(record(each) for each in ("one", "two", "three"))
FOLDERS = tuple(f"sweep/{each.spec.run_id}/1" for each in RECORDS)


def saved(url: str, records: Sequence[RunRecord]) -> Store:
    store = open_results(url)
    for each in records:
        store.save(each, LOG)
    return store


@pytest.fixture
def store(url: str) -> Store:
    return saved(url, RECORDS)


@pytest.fixture
def two(url: str) -> Store:
    """As few as make several, where each request is to fail in turn."""
    return saved(url, RECORDS[:2])


def contents(url: str) -> dict[str, bytes]:
    """What is there, but for claims, which only writers need."""
    objects = Objects(url)
    found = {each.name: content for each, content in objects.read_all(list(objects.list().values()))}
    return {name: content for name, content in found.items() if not name.endswith(CLAIM)}


def by_key(*records: RunRecord) -> dict[object, RunRecord]:
    return {each.key: each for each in records}


def read(url: str, tmp_path: Path) -> dict[object, RunRecord]:
    """As another machine reads it."""
    found = open_results(url, tmp_path / f"machine-{next(NUMBERS)}").read()
    assert found.damaged == ()
    assert len(found.records) == len(by_key(*found.records)), "nothing is doubled"
    return by_key(*found.records)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def failing_from(server: ObjectStore, first: int) -> AbstractContextManager[object]:
    """The store refuses every request from this one on."""
    return server.failing(lambda method, path, number: "500" if number >= first else None)


class TestPack:
    def test_nothing_is_lost_on_the_way_into_a_pack_and_out_of_it(self, store: Store, url: str, tmp_path: Path) -> None:
        before = contents(url)
        packed = command("store", "pack", url)
        assert (packed.exit_code, packed.stdout) == (0, f"{url}/sweep: 3 attempts packed\n")
        assert list(Objects(url).list()) == [f"sweep/{PACK}"]
        assert read(url, tmp_path) == by_key(*RECORDS)
        store.read()
        assert store.next_attempt("sweep", RECORDS[0].spec.run_id) == 2
        store.save(record("one", 2), LOG)
        assert [step.moved for step in pack(url)] == [1]
        assert read(url, tmp_path) == by_key(*RECORDS, record("one", 2))
        assert [step.moved for step in unpack(url)] == [4]
        assert contents(url).items() >= before.items()
        assert read(url, tmp_path) == by_key(*RECORDS, record("one", 2))

    @SOME_OR_ALL
    @pytest.mark.parametrize("change", [pack, unpack])
    def test_whichever_request_fails_for_good_nothing_is_lost(
        self,
        two: Store,
        url: str,
        tmp_path: Path,
        server: ObjectStore,
        change: Callable[[str], Iterator[object]],
        step: int,
    ) -> None:
        objects = Objects(url)
        if change is unpack:
            list(pack(url))
        with server.failing(lambda method, path, number: None) as requests:
            list(change(url))
        written = [number for number, (method, _) in enumerate(requests, 1) if method in ("PUT", "POST", "DELETE")]
        list((unpack if change is pack else pack)(url))
        for failing in written[::step]:
            with failing_from(server, failing), suppress(StorageError, ResultsError):
                list(change(url))
            objects.delete([name for name in objects.list() if name.endswith(LEASE)])  # it could not be released
            assert read(url, tmp_path) == by_key(*RECORDS[:2]), failing
            list(change(url))
            assert read(url, tmp_path) == by_key(*RECORDS[:2]), failing
            list((unpack if change is pack else pack)(url))

    def test_while_a_sweep_writes_there_nothing_is_changed(self, store: Store, url: str) -> None:
        with store.locked("sweep"):
            before = contents(url)
            for name in (("store", "pack"), ("store", "unpack"), ("repair",)):
                ended = command(*name, url)
                assert isinstance(ended.exception, ResultsError)
                assert "another 'qharness run' is writing here" in str(ended.exception)
            assert contents(url) == before


class TestRepair:
    def damage(self, url: str, folder: str, name: str = "evidence.parquet") -> None:
        Objects(url).write(f"{folder}/{name}", b"damaged")

    def test_a_damaged_attempt_is_restored_from_a_copy(self, store: Store, url: str, tmp_path: Path) -> None:
        before = contents(url)
        shutil.copytree(store.place.local(), tmp_path / "copy")
        self.damage(url, FOLDERS[0])
        ended = command("repair", url, "--from", tmp_path / "copy")
        assert ended.exit_code == 0
        aside = f"sweep/.damaged/{RECORDS[0].spec.run_id}.1"
        assert f"restored: {url}/{FOLDERS[0]}: " in ended.stdout
        assert f"what was there is in {url}/{aside}" in ended.stdout
        now = contents(url)
        assert {name: now[name] for name in before} == before
        assert now[f"{aside}/evidence.parquet"] == b"damaged"
        assert read(url, tmp_path) == by_key(*RECORDS)

    def test_what_cannot_be_restored_is_set_aside_and_no_name_is_taken_twice(
        self, store: Store, url: str, tmp_path: Path
    ) -> None:
        for number in (1, 2):
            self.damage(url, FOLDERS[1], "record.json")
            (step,) = repair(url)
            assert (step.path, step.action) == (f"{url}/{FOLDERS[1]}", "set aside")
            assert not [name for name in Objects(url).list() if name.startswith(FOLDERS[1])]
            assert read(url, tmp_path) == by_key(RECORDS[0], RECORDS[2])
            assert len({name.split("/")[2] for name in contents(url) if "/.damaged/" in name}) == number
            Objects(url).write(f"{FOLDERS[1]}/record.json", b"")
        self.damage(url, FOLDERS[2], "log.txt")
        assert {step.action for step in repair(url)} == {"set aside", "resealed"}
        assert {each.state for each in verify(url)} == {"ok", "set aside"}

    @SOME_OR_ALL
    def test_whichever_request_fails_for_good_a_repair_can_be_repeated(
        self, two: Store, url: str, tmp_path: Path, server: ObjectStore, step: int
    ) -> None:
        copy = shutil.copytree(two.place.local(), tmp_path / "copy")
        objects = Objects(url)
        self.damage(url, FOLDERS[0])
        with server.failing(lambda method, path, number: None) as requests:
            list(repair(url, copy))
        written = [number for number, (method, _) in enumerate(requests, 1) if method in ("PUT", "POST", "DELETE")]
        for failing in written[::step]:
            self.damage(url, FOLDERS[0])
            with failing_from(server, failing), suppress(StorageError, ResultsError):
                list(repair(url, copy))
            objects.delete([name for name in objects.list() if name.endswith(LEASE)])
            list(repair(url, copy))
            assert read(url, tmp_path) == by_key(*RECORDS[:2]), failing

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_attempts_in_each_others_folders_return_to_their_own(
        self, url: str, tmp_path: Path, server: ObjectStore, interrupted: bool
    ) -> None:
        records = sorted((record(str(each)) for each in range(5)), key=lambda each: each.spec.run_id)
        folders = [f"sweep/{each.spec.run_id}/1" for each in records]
        store, objects = open_results(url), Objects(url)
        for each in records:
            store.save(each, LOG)
        before = contents(url)
        for here, there in zip(folders, folders[1:] + folders[:1], strict=True):
            for name in ("record.json", "evidence.parquet", "log.txt"):
                objects.write(f"{there}/{name}", before[f"{here}/{name}"])
        if interrupted:
            copies = count(1)

            def fourth_copy(method: str, path: str, number: int) -> str | None:
                return "500" if method == "PUT" and "evidence" in path and next(copies) >= 4 else None

            with server.failing(fourth_copy), pytest.raises(StorageError):
                list(repair(url))
            objects.delete([name for name in objects.list() if name.endswith(LEASE)])
        list(repair(url))
        found = open_results(url, tmp_path / "machine").read()
        assert found.damaged == ()
        assert by_key(*found.records) == by_key(*records[:-1]), "the last one had no free place"
        aside = {content for name, content in contents(url).items() if "/.damaged/" in name}
        assert aside >= {before[f"{folders[-1]}/{name}"] for name in ("record.json", "evidence.parquet")}

    def test_what_an_interrupted_write_left_is_removed(self, store: Store, url: str) -> None:
        objects = Objects(url)
        objects.create("sweep/0123456789abcdef/1/.claim", b"an interrupted write")
        objects.write("sweep/0123456789abcdef/1/log.txt", b"half")
        assert [(step.path, step.action) for step in repair(url)] == [(f"{url}/sweep/0123456789abcdef/1", "removed")]
        assert not [name for name in objects.list() if "0123456789abcdef" in name]
        assert list(repair(url)) == []

    def test_one_recipes_url_will_do(self, store: Store, url: str) -> None:
        self.damage(url, FOLDERS[0], "record.json")
        (step,) = repair(f"{url}/sweep")
        assert (step.path, step.action) == (f"{url}/{FOLDERS[0]}", "set aside")
        assert f"{url}/sweep/.damaged/" in step.detail

    def test_an_empty_url_is_neither_results_nor_a_cache(self, url: str) -> None:
        for change in (repair, pack):
            with pytest.raises(ResultsError, match=r"neither a results folder|no such folder|no records"):
                list(change(url))

    def test_a_shared_cache_is_cleaned(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        Objects(url).write("quantize/0123456789abcdef/0123456789abcdef/model.safetensors", b"of a push that ended")
        assert list(repair(url)) == [], "it may be on its way"
        monkeypatch.setattr("harness.storage.cache.LEFT_OVER_S", -1.0)
        assert [each.state for each in verify(url)] == ["debris"]
        assert [(step.path, step.action) for step in repair(url)] == [(f"{url}/quantize/0123456789abcdef", "removed")]
        assert not Objects(url).list()
