"""Every command that takes a results folder takes a URL, on a real S3 server: the answers are those of the folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from command_line import qharness
from hub_server import Repository, hub_server
from instant_executor import InstantExecutor
from object_store import Kind, ObjectStore, served
from run_specs import run_spec
from typer.testing import CliRunner, Result

import harness
from harness.api.locations import open_results
from harness.api.merge import merge
from harness.api.results import read_named
from harness.api.verify import verify
from harness.cli.app import app
from harness.core.model import MethodRef, ModelRef
from harness.errors import ExitCode, ResultsError, StorageError, UsageError
from harness.execution.events import ArtifactDamaged, Ended, Event, NotFetched, NotShared
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun
from harness.storage.cache import Cache
from harness.storage.disk import Disk
from harness.storage.objects import Objects
from harness.storage.reading import read_records
from harness.storage.shared_cache import SharedCache
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
NUMBERS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with served() as store:
        yield store


@pytest.fixture(scope="module")
def example(server: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example results, merged into a bucket."""
    url = server.bucket("example") + "/results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QHARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert {each.action for each in merge([EXAMPLE], url)} == {"copied"}
    return url


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def files(root: Path) -> dict[str, bytes]:
    visible = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(root)): path.read_bytes() for path in visible}


def test_what_is_merged_into_a_bucket_and_back_is_the_same_to_the_byte(example: str, tmp_path: Path) -> None:
    first = list(merge([example], tmp_path / "back"))
    assert {each.action for each in first} == {"copied"}
    assert all(each.path.startswith(f"{example}/") for each in first)
    assert files(tmp_path / "back" / "example") == files(EXAMPLE)
    again = command("merge", example, tmp_path / "back", "--into", example.replace("results", "all"), "--json")
    assert [json.loads(line)["action"] for line in again.stdout.splitlines()] == [
        *["copied"] * len(first),
        *["already there"] * len(first),
    ]
    with pytest.raises(UsageError, match="is the target"):
        merge([example], f"{example}/inner")


def test_figures_are_those_of_the_folder(example: str, tmp_path: Path) -> None:
    local, there = harness.load_results(EXAMPLE), harness.load_results(example)
    assert there.drop(columns=["values", "item_ids"]).equals(local.drop(columns=["values", "item_ids"]))
    assert [tuple(each) for each in there["values"]] == [tuple(each) for each in local["values"]]
    assert harness.recommend(example) == harness.recommend(EXAMPLE)
    session = read_records(EXAMPLE)[0].session
    part = read_named(f"{example}@{session}", "results", tmp_path)
    assert part.records == read_named(f"{EXAMPLE}@{session}", "results", tmp_path).records
    assert part.name == f"{example}@{session}"
    ours, theirs = (command("history", place, "--format", "csv").stdout for place in (EXAMPLE, example))
    assert ours == theirs
    compared = command("compare", EXAMPLE, example, "--format", "json")
    assert compared.exit_code == command("compare", EXAMPLE, EXAMPLE).exit_code
    assert example in compared.stdout


def test_a_report_is_named_after_its_recipe(example: str, tmp_path: Path) -> None:
    for place in (EXAMPLE, example):
        out = tmp_path / str(place).partition(":")[0].strip("/").replace("/", "-")
        assert command("report", place, "--out", out, "--format", "csv").exit_code == 0
    ours, theirs = (
        sorted(path.read_bytes() for path in out.rglob("*.csv")) for out in tmp_path.glob("*") if out.name != "cache"
    )
    assert ours == theirs


def test_a_bundle_and_a_baseline_are_those_of_the_folder(example: str, tmp_path: Path) -> None:
    kept = tmp_path / "baselines"
    for name, place in (("here", EXAMPLE), ("there", example)):
        for words in (("bundle", place, "--out", tmp_path / f"{name}.qh.zip"), ("baseline", "set", name, place)):
            ended = command(*words, *(["--baselines", kept] if words[0] == "baseline" else []))
            assert ended.exit_code == 0, ended.output
    assert (tmp_path / "here.qh.zip").read_bytes() == (tmp_path / "there.qh.zip").read_bytes()
    assert files(kept / "here") == files(kept / "there") != {}


def test_verify_reads_every_byte_that_is_there_now(example: str, server: ObjectStore) -> None:
    url = server.bucket(f"verified-{next(NUMBERS)}") + "/results"
    list(merge([EXAMPLE], url))
    assert {each.state for each in verify(url)} == {each.state for each in verify(EXAMPLE)}
    objects = Objects(url)
    edited = next(name for name in objects.list() if name.endswith("record.json"))
    objects.write(edited, objects.read(edited, 2**20).replace(b'"ok"', b'"OK"', 1))
    found = [each for each in verify(url) if each.state == "damaged"]
    assert [each.path for each in found] == [objects.at(edited.rpartition("/")[0])]
    assert command("verify", url).exit_code == ExitCode.GATE_FAILED
    objects.create("sweep/0123456789abcdef/1/.claim", b"an interrupted write")
    assert [each.path for each in verify(url) if each.state == "debris"] == [f"{url}/sweep/0123456789abcdef/1"]
    repaired = command("repair", url, "--from", EXAMPLE, "--json")
    assert repaired.exit_code == ExitCode.GATE_FAILED, (
        "these old records have no seal, so nothing is proven to be the same"
    )
    assert {json.loads(line)["action"] for line in repaired.stdout.splitlines()} == {"set aside", "removed"}
    assert {each.state for each in verify(url)} == {*(each.state for each in verify(EXAMPLE)), "set aside"}


def test_a_bucket_that_takes_nothing_is_known_before_nodes_are_waited_for(server: ObjectStore) -> None:
    recipe = EXAMPLE.parents[1] / "recipes" / "synthetic-bits.yaml"
    ended = command(
        "run", recipe, "--results", "s3://no-such-bucket/r", "--executor", "slurm"
    )  # there is no Slurm here
    assert isinstance(ended.exception, ResultsError)
    assert "bucket does not exist" in str(ended.exception)


@pytest.mark.parametrize("name", ["report", "recommend", "history", "verify"])
def test_what_is_not_there_is_one_message(name: str, server: ObjectStore) -> None:
    ended = command(name, server.bucket(f"empty-{next(NUMBERS)}") + "/results")
    assert isinstance(ended.exception, ResultsError)
    ended = command(name, "s3://no-such-bucket/results")
    assert isinstance(ended.exception, ResultsError)
    assert "bucket does not exist" in str(ended.exception)


RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn", "offline")
MADE = run_spec("quantize", "sweep", ModelRef("m", "m", "0" * 64, "directory", "/m"), RTN)


def planned() -> list[PlannedRun]:
    needs = {"quantize": MADE.run_id}
    quality = run_spec("quality", "sweep", ModelRef("m", "m", "0" * 64, "directory", "/m"), RTN, needs=needs)
    return [PlannedRun(MADE), PlannedRun(quality)]


def test_results_on_a_hub_are_read_like_the_folder(tmp_path: Path) -> None:
    published = {f"results/example/{name}": content for name, content in files(EXAMPLE).items()}
    with hub_server({"who/measured": Repository(published)}) as hub:
        where = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
        ended = qharness("history", "hf://who/measured/results", "--format", "csv", env=where)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == command("history", EXAMPLE, "--format", "csv").stdout


def test_a_file_url_is_the_folder(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "results" / "example")
    folder, url = tmp_path / "results", f"file://{tmp_path}/results"
    assert harness.recommend(url) == harness.recommend(folder)
    assert harness.load_results(url)["value"].equals(harness.load_results(folder)["value"])
    session = read_records(folder)[0].session
    for word in ("{}", f"{{}}@{session}"):
        ours, theirs = (read_named(word.format(place), "results", tmp_path).records for place in (folder, url))
        assert ours == theirs
    assert read_named(session, url, tmp_path).records == read_named(session, folder, tmp_path).records
    for name, *options in (("history", "--format", "csv"), ("verify",)):
        ours, theirs = (command(name, place, *options) for place in (folder, url))
        assert ours.exit_code == theirs.exit_code == 0
        assert ours.stdout == theirs.stdout
    assert {each.action for each in merge([url], f"file://{tmp_path}/copy")} == {"copied"}
    assert files(tmp_path / "copy") == files(folder)


def test_a_sweep_writes_into_the_folder_of_a_file_url(tmp_path: Path) -> None:
    executor = InstantExecutor(Cache(tmp_path / "cache"))
    store = open_results(f"file://{tmp_path}/results", tmp_path / "cache")
    made = sweep(planned(), store, executor, lambda event: None)  # type: ignore[arg-type]
    assert {each.status for each in made} == {"ok"}
    assert Store(tmp_path / "results").read().records == tuple(sorted(made, key=lambda each: each.started_at))


class TestSweep:
    """Machines that share nothing but a bucket."""

    @pytest.fixture
    def url(self, server: ObjectStore) -> str:
        return server.bucket(f"sweep-{next(NUMBERS)}")

    def run(
        self, url: str, machine: Path, results: str = "results", disk: Disk | None = None
    ) -> tuple[list[str], list[Event]]:
        store = open_results(f"{url}/{results}", machine)
        executor = InstantExecutor(Cache(machine, disk or Disk(), SharedCache(Objects(f"{url}/cache"))))
        events: list[Event] = []
        sweep(planned(), store, executor, events.append, spill_roots=[machine / "spill"])  # type: ignore[arg-type]
        return [spec.kind for spec in executor.ran], events

    def test_what_one_machine_finished_another_does_not_repeat(self, url: str, tmp_path: Path) -> None:
        assert self.run(url, tmp_path / "a")[0] == ["quantize", "quality"]
        assert self.run(url, tmp_path / "b")[0] == []
        assert self.run(url, tmp_path / "c", "other")[0] == ["quality"], "the artifact is fetched"
        assert len(open_results(f"{url}/results").read().records) == 2
        assert len(open_results(f"{url}/other").read().records) == 2

    def test_a_damaged_artifact_is_reported_and_made_again(self, url: str, tmp_path: Path) -> None:
        self.run(url, tmp_path / "a")
        cache = Objects(f"{url}/cache")
        weights = next(name for name in cache.list() if name.endswith("safetensors"))
        cache.write(weights, b"changed")
        ran, events = self.run(url, tmp_path / "b", "other")
        assert ran == ["quantize", "quality"]
        assert [
            each.reason.startswith(f"{url}/cache/quantize") for each in events if isinstance(each, ArtifactDamaged)
        ] == [True]
        assert cache.read(next(name for name in cache.list() if name.endswith("safetensors")), 10) == b"weights"

    @pytest.mark.parametrize("what", ["outcome.json", "model.safetensors"])
    def test_an_artifact_that_cannot_be_fetched_is_not_damaged(
        self, url: str, tmp_path: Path, server: ObjectStore, what: str
    ) -> None:
        self.run(url, tmp_path / "a")
        there = Objects(f"{url}/cache").list()
        with server.failing(lambda method, path, number: "500" if path.endswith(what) and method == "GET" else None):
            ran, events = self.run(url, tmp_path / "b", "other")
        assert ran == ["quantize", "quality"], "it costs time, and no run"
        (missed,) = (each for each in events if isinstance(each, NotFetched))
        assert missed.spec == MADE
        assert missed.reason.startswith(f"{url}/cache/quantize")
        assert not [each for each in events if isinstance(each, ArtifactDamaged)]
        assert Objects(f"{url}/cache").list() == there, "what is whole stays"

    def test_a_fault_that_passes_costs_nothing(self, url: str, tmp_path: Path, server: ObjectStore) -> None:
        self.run(url, tmp_path / "a")
        failed: list[int] = []

        def twice(method: str, path: str, number: int) -> Kind | None:
            if path.endswith("model.safetensors") and method == "GET" and len(failed) < 2:
                failed.append(number)
                return "500"
            return None

        with server.failing(twice):
            ran, events = self.run(url, tmp_path / "b", "other")
        assert (len(failed), ran) == (2, ["quality"])
        assert not [each for each in events if isinstance(each, NotFetched)]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_disk_that_has_no_room_for_an_artifact_ends_the_sweep(
        self, url: str, tmp_path: Path, number: int
    ) -> None:
        class Full(Disk):
            def _mkdir(self, path: Path, mode: int) -> None:
                if "quantize" in path.parts:
                    raise OSError(number, os.strerror(number), str(path))
                super()._mkdir(path, mode)

        self.run(url, tmp_path / "a")
        with pytest.raises(StorageError, match=f"takes nothing: .*{os.strerror(number)}"):
            self.run(url, tmp_path / "b", "other", Full())
        assert open_results(f"{url}/other").read().records == (), "it is not made again"
        assert self.run(url, tmp_path / "b", "other")[0] == ["quality"]

    def test_a_cache_that_takes_nothing_costs_no_run(self, url: str, tmp_path: Path, server: ObjectStore) -> None:
        with server.failing(lambda method, path, number: "500" if "/cache/" in path and method == "PUT" else None):
            ran, events = self.run(url, tmp_path / "a")
        assert ran == ["quantize", "quality"]
        (missed,) = (each for each in events if isinstance(each, NotShared))
        assert missed.spec == MADE
        assert [each.record.status for each in events if isinstance(each, Ended)] == ["ok", "ok"]

    def test_a_bucket_that_goes_away_loses_and_doubles_nothing(
        self, url: str, tmp_path: Path, server: ObjectStore
    ) -> None:
        with (
            server.failing(
                lambda method, path, number: "500" if path.endswith("record.json") and method == "PUT" else None
            ),
            pytest.raises(StorageError, match="kept in"),
        ):
            self.run(url, tmp_path / "a")
        assert open_results(f"{url}/results").read().records == ()
        assert self.run(url, tmp_path / "a")[0] == ["quality"]
        found = open_results(f"{url}/results").read()
        assert sorted(each.spec.kind for each in found.records) == ["quality", "quantize"]
        assert found.damaged == ()
        assert not list((tmp_path / "a" / "spill").rglob("record.json"))

    def test_a_copy_of_the_folder_is_a_folder_of_results(self, url: str, tmp_path: Path) -> None:
        self.run(url, tmp_path / "a")
        copy = open_results(f"{url}/results", tmp_path / "b").place.local()
        shutil.copytree(copy, tmp_path / "copy")
        assert Store(tmp_path / "copy").read().records == open_results(f"{url}/results").read().records
