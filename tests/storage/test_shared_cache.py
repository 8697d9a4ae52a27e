"""Artifacts that machines share at a URL: whole and as they were made, or made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore, served
from run_specs import run_spec

from harness.core.label import Fact
from harness.core.model import MethodRef
from harness.core.record import UNFINISHED, Measurement, Outcome
from harness.core.upgrade import SCHEMA_VERSION
from harness.errors import DamagedError, NewerRecordError, ResultsError
from harness.storage.cache import OUTCOME, Cache, shared_faults
from harness.storage.folder_seal import SEAL, with_seal
from harness.storage.json_codec import encode
from harness.storage.objects import Objects
from harness.storage.shared_cache import SharedCache

NUMBERS = count()
ARTIFACT = run_spec("quantize", method=MethodRef("rtn", 1, {"bits": 4}, "rtn", "offline"))
NEEDS_IT = replace(run_spec("quality"), needs={"quantize": ARTIFACT.run_id})
MADE = Outcome("ok", measurements=(Measurement("degrid_kl", 1, "nat", "lower", "exact", (0.25,)),))
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with served() as store:
        yield store


@pytest.fixture
def objects(server: ObjectStore) -> Objects:
    return Objects(server.bucket(f"cache-{next(NUMBERS)}") + "/cache")


@pytest.fixture
def machine(objects: Objects, tmp_path: Path) -> Callable[[str], Cache]:
    return cache(lambda name: Cache(tmp_path / name, shared=SharedCache(objects)))


def make(artifacts: Cache, content: bytes = WEIGHTS) -> None:
    with artifacts.filling(ARTIFACT, "t") as part:
        (part / "model.safetensors").write_bytes(content)
        (part / "inner").mkdir()
        (part / "inner" / "config.json").write_bytes(b"")
        artifacts.publish(ARTIFACT, part, MADE)


def weights(artifacts: Cache) -> bytes:
    return (artifacts.folder("quantize", ARTIFACT.run_id) / "model.safetensors").read_bytes()


def test_what_one_machine_made_another_need_not_make(machine: Callable[[str], Cache]) -> None:
    assert machine("b").outcome(ARTIFACT) is None
    make(machine("a"))
    machine("a").share(ARTIFACT)
    assert machine("b").outcome(ARTIFACT) == MADE
    assert not machine("b").folder("quantize", ARTIFACT.run_id).exists(), "its outcome is known without its files"
    assert machine("b").damage(ARTIFACT, read_data=False) is None
    assert machine("b").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("b")) == WEIGHTS
    ours, theirs = (machine(name).folder("quantize", ARTIFACT.run_id) for name in "ab")
    assert (ours / OUTCOME).read_bytes() == (theirs / OUTCOME).read_bytes()
    assert Cache(machine("b").root).damage(ARTIFACT, read_data=True) is None, "also without the URL"


def test_the_first_of_two_machines_counts(machine: Callable[[str], Cache]) -> None:
    for name, content in (("a", WEIGHTS), ("b", WEIGHTS[::-1])):
        make(machine(name), content)
    for name in "ab":
        machine(name).share(ARTIFACT)
    assert machine("c").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("c")) == WEIGHTS


def test_an_interrupted_outcome_is_replaced_by_a_later_one_and_by_no_other(machine: Callable[[str], Cache]) -> None:
    fact = Fact("dtype_noise_not_measured", {"dtype": "bfloat16", "reason": UNFINISHED})
    interrupted = replace(MADE, facts=(fact,))
    for name, content in (("a", WEIGHTS), ("b", WEIGHTS[::-1])):
        make(machine(name), content)
        machine(name).amend(ARTIFACT, interrupted)
        machine(name).share(ARTIFACT)
    assert machine("c").outcome(ARTIFACT) == interrupted
    assert machine("c").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("c")) == WEIGHTS
    for name, outcome in (("b", MADE), ("a", interrupted)):
        machine(name).amend(ARTIFACT, outcome)
        machine(name).share(ARTIFACT)
        assert machine("planning").outcome(ARTIFACT) == MADE
    assert machine("d").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("d")) == WEIGHTS[::-1]


def test_two_that_send_at_once_never_mix(machine: Callable[[str], Cache], objects: Objects) -> None:
    """The second sent its files before the first's outcome was there."""
    for name, content in (("a", WEIGHTS), ("b", WEIGHTS[::-1])):
        make(machine(name), content)
    late = machine("b")
    object.__setattr__(late, "_is_shared", lambda *of: bool(machine("a").share(ARTIFACT)))
    late.share(ARTIFACT)
    assert machine("c").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("c")) == WEIGHTS
    assert len(objects.list()) == 3, "what the second sent is deleted"


@pytest.mark.parametrize("what", ["cut", "changed", "gone", "outcome", "seal"])
def test_a_damaged_copy_is_reported_and_made_again(
    machine: Callable[[str], Cache], objects: Objects, what: str
) -> None:
    make(machine("a"))
    machine("a").share(ARTIFACT)
    names = {name.rpartition("/")[2]: name for name in objects.list()}
    weight, outcome = names["model.safetensors"], names[OUTCOME]
    if what == "gone":
        objects.delete([weight])
    elif what == "outcome":
        objects.write(outcome, objects.read(outcome, 10_000)[:-10])
    elif what == "seal":
        raw = json.loads(objects.read(outcome, 10_000))
        raw["files"][0]["path"] = "../../escaped"
        objects.write(outcome, json.dumps(raw).encode())
    else:
        objects.write(weight, WEIGHTS[:-1] if what == "cut" else WEIGHTS[:-1] + b"x")
    other = machine("b")
    known = other.outcome(ARTIFACT)
    reason = other.damage(ARTIFACT, read_data=True)
    assert reason is not None
    assert reason.startswith(f"{objects.url}/quantize/{ARTIFACT.run_id}")
    assert (known is None) == (what in ("outcome", "seal"))
    assert [path for path in other.root.rglob("*") if path.is_file()] == []
    assert other.outcome(ARTIFACT) is None, "the damaged copy is deleted"
    make(other)
    other.share(ARTIFACT)
    assert machine("c").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("c")) == WEIGHTS


def test_of_two_sweeps_that_fetch_at_once_the_first_copy_stays(
    machine: Callable[[str], Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be measuring it already when the second has all files."""
    make(machine("a"))
    machine("a").share(ARTIFACT)
    fetch = SharedCache.fetch

    def other_is_quicker(shared: SharedCache, *rest: Any) -> None:
        monkeypatch.setattr(SharedCache, "fetch", fetch)
        assert machine("b").damage(ARTIFACT, read_data=True) is None
        there.append(machine("b").folder("quantize", ARTIFACT.run_id).stat().st_ino)
        fetch(shared, *rest)

    there: list[int] = []
    monkeypatch.setattr(SharedCache, "fetch", other_is_quicker)
    assert machine("b").damage(ARTIFACT, read_data=True) is None
    folder = machine("b").folder("quantize", ARTIFACT.run_id)
    assert [folder.stat().st_ino] == there
    assert list(folder.parent.iterdir()) == [folder]


def test_a_machine_that_plans_for_nodes_compares_and_fetches_nothing(
    machine: Callable[[str], Cache], objects: Objects, server: ObjectStore
) -> None:
    make(machine("a"))
    machine("a").share(ARTIFACT)
    planning = replace(machine("b"), for_nodes=True)
    assert planning.damage(ARTIFACT, read_data=True) is None
    with server.failing(lambda method, path, number: "500"):
        assert planning.damage(ARTIFACT, read_data=True) is None, "that says nothing against the artifact"
    assert planning.outcome(ARTIFACT) == MADE
    (weight,) = [name for name in objects.list() if name.endswith("model.safetensors")]
    objects.write(weight, WEIGHTS[:-1])
    assert f"{len(WEIGHTS) - 1} bytes" in (planning.damage(ARTIFACT, read_data=True) or "")
    assert objects.list() == {}, "a damaged one is deleted"
    assert not planning.root.exists()


def test_what_a_newer_harness_sent_stays(machine: Callable[[str], Cache], objects: Objects) -> None:
    make(machine("a"))
    machine("a").share(ARTIFACT)
    (outcome,) = [name for name in objects.list() if name.endswith(OUTCOME)]
    raw = {**json.loads(objects.read(outcome, 10_000)), "schema_version": SCHEMA_VERSION + 1}
    raw.pop(SEAL)
    objects.write(outcome, json.dumps(with_seal(raw)).encode())
    with pytest.raises(NewerRecordError):
        machine("a").share(ARTIFACT)
    for planning in (machine("b"), replace(machine("b"), for_nodes=True)):
        assert "newer" in (planning.damage(ARTIFACT, read_data=True) or "")
    with pytest.raises(DamagedError, match="newer") as caught:
        machine("c").pull(NEEDS_IT)
    assert "run the recipe again" not in str(caught.value)
    assert len(objects.list()) == 3


def test_what_has_no_checksums_cannot_be_sent(machine: Callable[[str], Cache], objects: Objects) -> None:
    folder = machine("a").folder("quantize", ARTIFACT.run_id)
    folder.mkdir(parents=True)
    (folder / OUTCOME).write_text(encode(MADE))
    with pytest.raises(ResultsError, match="from an older version, which kept no checksums; delete it"):
        machine("a").offer(NEEDS_IT)
    assert objects.list() == {}


def test_what_must_not_be_used_is_deleted_everywhere(machine: Callable[[str], Cache], objects: Objects) -> None:
    make(machine("a"))
    machine("a").share(ARTIFACT)
    machine("a").remove(ARTIFACT)
    assert objects.list() == {}
    assert machine("a").outcome(ARTIFACT) is None


def test_a_store_that_cannot_be_reached_costs_no_run(
    machine: Callable[[str], Cache], objects: Objects, server: ObjectStore
) -> None:
    make(machine("a"))
    machine("a").share(ARTIFACT)
    make(machine("c"))
    with server.failing(lambda method, path, number: "500"):
        with pytest.raises(OSError, match="cannot read"):
            machine("b").outcome(ARTIFACT)
        with pytest.raises(OSError, match="cannot be fetched"):
            machine("b").damage(ARTIFACT, read_data=True)
        with pytest.raises(OSError, match="s3://"):
            machine("c").share(ARTIFACT)
    assert len(objects.list()) == 3, "nothing that is whole was deleted"
    assert machine("c").outcome(ARTIFACT) == MADE


def test_an_outage_while_it_is_sent_or_fetched_leaves_no_half(
    machine: Callable[[str], Cache], objects: Objects, server: ObjectStore
) -> None:
    make(machine("a"))
    with (
        server.failing(lambda method, path, number: "lost" if method == "PUT" and OUTCOME in path else None),
        pytest.raises(OSError, match="outcome"),
    ):
        machine("a").share(ARTIFACT)
    assert machine("b").outcome(ARTIFACT) is None
    machine("a").share(ARTIFACT)
    with (
        server.failing(lambda method, path, number: "truncated" if "safetensors" in path else None),
        pytest.raises(OSError, match="cannot be fetched"),
    ):
        machine("b").damage(ARTIFACT, read_data=True)
    assert [path for path in machine("b").root.rglob("*") if path.is_file()] == []
    assert machine("c").damage(ARTIFACT, read_data=True) is None


def test_a_wrong_url_is_known_before_a_sweep(tmp_path: Path, server: ObjectStore) -> None:
    with pytest.raises(ResultsError, match=r"--cache: s3://no-such-bucket/cache.*: cannot list"):
        SharedCache(Objects("s3://no-such-bucket/cache")).refuse_unreachable()


def test_a_damaged_copy_here_costs_no_shared_one(machine: Callable[[str], Cache], objects: Objects) -> None:
    make(machine("a"))
    machine("a").share(ARTIFACT)
    before = sorted(objects.list())
    (machine("a").folder("quantize", ARTIFACT.run_id) / "model.safetensors").write_bytes(WEIGHTS[::-1])
    assert machine("a").damage(ARTIFACT, read_data=True) is not None
    assert machine("a").discard(ARTIFACT)
    assert not machine("a").discard(ARTIFACT)
    assert sorted(objects.list()) == before
    assert machine("a").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("a")) == WEIGHTS, "fetched again"
    assert machine("a").remove(ARTIFACT), "what must not be used is deleted there too"
    assert not objects.list()


def test_what_an_interrupted_push_left_goes_with_the_next_one(
    machine: Callable[[str], Cache], objects: Objects, server: ObjectStore
) -> None:
    make(machine("a"), WEIGHTS[::-1])
    with (
        server.failing(lambda method, path, number: "500" if path.endswith(OUTCOME) and method == "PUT" else None),
        pytest.raises(OSError, match="cannot write"),
    ):
        machine("a").share(ARTIFACT)
    assert len(objects.list()) == 2, "files without an outcome"
    assert machine("b").outcome(ARTIFACT) is None
    make(machine("b"))
    machine("b").share(ARTIFACT)
    assert len(objects.list()) == 3
    assert machine("c").damage(ARTIFACT, read_data=True) is None
    assert weights(machine("c")) == WEIGHTS


def faults(objects: Objects, read_data: bool = True) -> list[tuple[str, str]]:
    found = shared_faults(SharedCache(objects), read_data)
    return [("ok", each) if isinstance(each, str) else (each.kind, each.run) for each in found]


def test_what_is_wrong_at_a_url_is_found(
    machine: Callable[[str], Cache], objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"quantize/{ARTIFACT.run_id}"
    make(machine("a"))
    machine("a").share(ARTIFACT)
    objects.write(f"{run}/0123456789abcdef/half", b"of an interrupted push")
    objects.write("reference/0123456789abcdef/0123456789abcdef/half", b"of an interrupted push")
    assert faults(objects) == [("ok", run)], "it may be on its way"
    monkeypatch.setattr("harness.storage.cache.LEFT_OVER_S", -1.0)
    left = [("ok", run), ("debris", run), ("debris", "reference/0123456789abcdef")]
    assert sorted(faults(objects)) == sorted(left)
    weight = next(name for name in objects.list() if name.endswith("model.safetensors"))
    objects.write(weight, WEIGHTS[::-1])
    assert ("ok", run) in faults(objects, read_data=False)
    assert ("damaged", run) in faults(objects)
    objects.write(weight, WEIGHTS[1:])
    assert ("damaged", run) in faults(objects, read_data=False)
