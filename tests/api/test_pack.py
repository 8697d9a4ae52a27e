"""``qharness store pack``: many attempts in one file, byte by byte, whatever interrupts it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from run_specs import run_spec
from thorough import all_thorough_but
from typer.testing import CliRunner

from harness.api.merge import merge
from harness.api.pack import PackStep, pack, unpack
from harness.api.repair import repair
from harness.api.verify import verify
from harness.cli.app import app
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.errors import ResultsError, StorageError
from harness.storage.disk import Disk
from harness.storage.evidence import FEW_VALUES
from harness.storage.pack import BLOCK, MAX_MEMBER_BYTES, PACK, Member, Pack
from harness.storage.reading import attempt_folders, read_attempt, read_contents, read_records, read_results
from harness.storage.seal import RECORD
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
RUNS = 3


def record(seed: int, attempt: int = 1) -> RunRecord:
    some = tuple(float(seed + n) for n in range(FEW_VALUES + seed))
    outcome = Outcome("ok", measurements=(Measurement("nll", 1, "nat", "lower", "paired", some),))
    spec = run_spec("performance", repetition=seed)
    return RunRecord(spec, outcome, f"s{seed}", attempt, f"2026-01-0{seed}", 1.0)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    for seed in range(1, 1 + RUNS):
        store.save(record(seed), log=None if seed == 1 else b"what it printed\n")
    return store.root


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_pack_is_read_as_its_folders_were_and_gives_them_back_byte_by_byte(results: Path) -> None:
    before, whole = files(results), read_contents(results, results)
    assert [(step.moved, step.left) for step in pack(results)] == [(RUNS, {})]
    assert list(files(results)) == [f"sweep/{PACK}"]
    assert read_contents(results, results) == whole
    assert [tuple(each.outcome.measurements[0].values) for each in read_records(results)] == [
        tuple(each.outcome.measurements[0].values) for each in whole.records
    ]
    assert {each.state for each in verify(results)} == {"ok"}
    with tarfile.open(results / "sweep" / PACK) as opened:
        held = {each.name: opened.extractfile(each).read() for each in opened.getmembers()}  # type: ignore[union-attr]
    assert {f"sweep/{name}": content for name, content in held.items()} == before
    assert [step.moved for step in unpack(results)] == [RUNS]
    assert files(results) == before


def test_a_pack_grows_and_later_attempts_are_numbered_after_those_in_it(results: Path) -> None:
    list(pack(results))
    store, first = Store(results), record(1)
    assert store.next_attempt("sweep", first.spec.run_id) == 2
    store.save(record(1, attempt=2))
    assert len(store.read().records) == RUNS + 1
    assert [step.moved for step in pack(results)] == [1]
    assert list(files(results)) == [f"sweep/{PACK}"]
    assert len(store.read().records) == RUNS + 1
    assert store.next_attempt("sweep", first.spec.run_id) == 3


def test_a_packed_attempt_is_withdrawn_and_merged_like_any_other(results: Path, tmp_path: Path) -> None:
    store, whole = Store(results), read_records(results)
    list(pack(results))
    assert [each.action for each in merge([results], tmp_path / "copy")] == ["copied"] * RUNS
    assert read_records(tmp_path / "copy") == whole
    assert {each.action for each in merge([tmp_path / "copy"], results)} == {"already there"}
    store.withdraw(whole[0], Failure("inputs", "changed", "its text changed"))
    assert [each.status for each in store.read().records] == ["invalid", "ok", "ok"]
    list(pack(results))
    assert [each.status for each in store.read().records] == ["invalid", "ok", "ok"]
    assert read_results(results).records[1:] == whole[1:]


def test_commands_say_of_a_pack_what_they_say_of_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same place, so that the answers, which name it, are the same to the byte."""
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    results, out = tmp_path / "results", tmp_path / "out"
    shutil.copytree(EXAMPLE, results / "example")

    def answers() -> list[object]:
        asked = [
            ("report", results, "--out", out, "--format", "md,csv"),
            ("compare", EXAMPLE, results, "--format", "json"),
            ("history", results, "--format", "csv"),
            ("recommend", results),
        ]
        ended = [CliRunner().invoke(app, [str(each) for each in command]) for command in asked]
        assert [each.exception for each in ended] == [None] * len(asked)
        written = {path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        assert written.keys() == {"report.md", "report.csv"}
        shutil.rmtree(out)
        return [written, *((each.exit_code, each.stdout) for each in ended)]

    plain = answers()
    assert [step.left for step in pack(results)] == [{}]
    assert list(files(results)) == [f"example/{PACK}"]
    for kept in results.rglob(".*"):  # what was derived from the folders
        kept.unlink()
    assert answers() == plain


class FullDisk(Disk):
    """Fails at one of its operations."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def _fsync(self, path: Path) -> None:
        self._count()
        super()._fsync(path)

    def _rename(self, source: Path, target: Path) -> None:
        self._count()
        super()._rename(source, target)

    def _delete(self, path: Path) -> None:
        self._count()
        super()._delete(path)


@pytest.mark.parametrize("change", all_thorough_but([pack], [pack, unpack]))
def test_a_packing_or_unpacking_that_fails_at_any_step_loses_nothing(
    results: Path, change: Callable[..., Iterator[PackStep]]
) -> None:
    before, whole = files(results), read_contents(results, results)
    if change is unpack:
        list(pack(results))
    for at in count():
        copy = results.parent / f"copy{at}"
        shutil.copytree(results, copy)
        try:
            list(change(copy, FullDisk(at)))
            break
        except StorageError:
            assert read_contents(copy, copy) == whole
        list(change(copy))
        assert read_contents(copy, copy) == whole
        assert change is pack or files(copy) == before
    assert at > 5


def test_a_cut_pack_is_what_was_whole_in_it_and_the_folders_that_are_still_there(results: Path) -> None:
    kept = results.parent / "kept"
    shutil.copytree(results, kept)
    whole = read_contents(results, results)
    list(pack(results))
    path = results / "sweep" / PACK
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - BLOCK])
    assert any("it ends within" in each.reason for each in read_contents(results, results).damaged)
    shutil.copytree(kept / "sweep", results / "sweep", dirs_exist_ok=True)  # as if nothing had been deleted yet
    assert read_contents(results, results).records == whole.records
    list(pack(results))
    assert list(files(results)) == [f"sweep/{PACK}"]
    assert read_contents(results, results) == whole


def test_damage_in_a_pack_hides_no_other_attempt(results: Path) -> None:
    list(pack(results))
    path = results / "sweep" / PACK
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # in the first header
    path.write_bytes(content)
    found = read_contents(results, results)
    assert len(found.records) == RUNS - 1
    assert any("no part of a pack" in each.reason for each in found.damaged)
    assert {each.action for each in repair(results)} >= {"not repaired"}


def test_a_damaged_record_in_a_pack_is_set_aside(results: Path) -> None:
    list(pack(results))
    path = results / "sweep" / PACK
    content = bytearray(path.read_bytes())
    content[BLOCK + 700] ^= 1  # in the first record
    path.write_bytes(content)
    assert sorted(each.state for each in verify(results)) == ["damaged", "ok", "ok"]
    assert [each.action for each in repair(results)] == ["set aside"]
    assert len(read_records(results)) == RUNS - 1


def test_what_cannot_be_packed_without_loss_stays(results: Path) -> None:
    damaged, noted, _ = sorted((results / "sweep").glob("*/1"))
    (damaged / RECORD).write_bytes(b"{}")
    (noted / "notes.txt").write_text("mine")
    (step,) = pack(results)
    assert step.moved == 1
    assert set(step.left) == {str(damaged), str(noted)}
    assert (noted / "notes.txt").exists()
    with pytest.raises(ResultsError, match="no such folder"):
        list(pack(results / "nothing"))


def damage(results: Path, at: int) -> bytes:
    """Changes a byte of the pack; returns what the pack was."""
    path = results / "sweep" / PACK
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    return whole


def headers(content: bytes) -> list[int]:
    return [place for place in range(0, len(content), BLOCK) if content[place + 257 : place + 262] == b"ustar"]


def test_nothing_is_added_to_a_damaged_pack_whose_damage_would_be_overwritten(results: Path) -> None:
    list(pack(results))
    path = results / "sweep" / PACK
    damage(results, headers(path.read_bytes())[-1] + 100)  # the last member: nothing whole is behind it
    content, before = path.read_bytes(), read_contents(results, results)
    assert before.damaged
    Store(results).save(record(RUNS + 1))
    (step,) = pack(results)
    assert (step.moved, list(step.left)) == (0, [str(path)])
    assert path.read_bytes() == content
    assert read_contents(results, results).damaged == before.damaged


def test_zeros_before_damage_do_not_hide_it(results: Path) -> None:
    list(pack(results))
    path = results / "sweep" / PACK
    content = path.read_bytes()
    last = headers(content)[-1]
    path.write_bytes(content[:last] + bytes(BLOCK) + content[last + BLOCK :])
    assert any("no part of a pack" in each.reason for each in read_contents(results, results).damaged)


@pytest.mark.parametrize("cut", [False, True])
def test_what_is_damaged_in_a_pack_is_still_there_after_an_attempt_was_withdrawn(results: Path, cut: bool) -> None:
    list(pack(results))
    path = results / "sweep" / PACK
    begins = headers(path.read_bytes())
    damage(results, begins[0] + 100)
    if cut:
        path.write_bytes(path.read_bytes()[: begins[-1] + 2 * BLOCK])
    store, before = Store(results), read_contents(results, results)
    kept = next(each for each in before.records if each.session == "s2")
    store.withdraw(kept, Failure("inputs", "changed", "its text changed"))
    found = read_contents(results, results)
    assert len(found.damaged) == len(before.damaged) > cut
    assert {each.session: each.status for each in found.records}["s2"] == "invalid"
    assert [each.session for each in found.records] == [each.session for each in before.records]


def test_unpacking_keeps_the_copy_of_an_attempt_whose_folder_is_damaged(results: Path) -> None:
    list(pack(results))
    whole = read_contents(results, results)
    broken = results / "sweep" / whole.records[0].spec.run_id / "1"
    broken.mkdir(parents=True)
    (step,) = unpack(results)
    assert list(step.left) == [str(broken)]
    broken.rmdir()
    assert read_contents(results, results) == whole
    list(unpack(results))
    assert files(results).keys() == {
        f"sweep/{each.spec.run_id}/1/{name}"
        for each in whole.records
        for name in ("record.json", "evidence.parquet", *(["log.txt"] if each.session != "s1" else []))
    }


def test_no_folder_takes_the_place_of_a_packed_attempt(results: Path) -> None:
    list(pack(results))
    whole = read_contents(results, results)
    with pytest.raises(FileExistsError):
        Store(results).save(record(1))
    assert read_contents(results, results) == whole


def test_a_withdrawn_attempt_does_not_count_again_if_withdrawing_was_interrupted(results: Path) -> None:
    """Its folder was there, and the pack still had it: now only the folder has it."""
    store, whole = Store(results), read_records(results)
    copy = results.parent / "copy"
    shutil.copytree(results, copy)
    list(pack(results))
    shutil.copytree(copy / "sweep", results / "sweep", dirs_exist_ok=True)
    store.withdraw(whole[0], Failure("inputs", "changed", "its text changed"))
    shutil.rmtree(results / "sweep" / whole[0].spec.run_id)
    assert [each.session for each in store.read().records] == ["s2", "s3"]


def test_a_damaged_pack_is_left_to_unpack_and_only_its_recipe_is_locked(results: Path) -> None:
    list(pack(results))
    damage(results, 100)
    assert ("records.tar", "not repaired") in {(Path(each.path).name, each.action) for each in repair(results)}
    assert not (results / ".lock").exists()


def test_a_damaged_attempt_is_restored_from_a_packed_copy(results: Path) -> None:
    copy = results.parent / "copy"
    shutil.copytree(results, copy)
    list(pack(copy))
    before = files(results)
    broken = next(results.glob("sweep/*/1/evidence.parquet"))
    broken.write_bytes(b"damaged")
    assert [each.action for each in repair(results, copy)] == ["restored"]
    assert files(results).items() >= before.items()


def test_a_member_larger_than_any_file_of_a_record_is_never_read(results: Path) -> None:
    list(pack(results))
    path = results / "sweep" / PACK
    header = tarfile.TarInfo(f"{'0' * 16}/1/record.json")
    header.size = MAX_MEMBER_BYTES + 1
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + path.read_bytes())
    assert len(read_contents(results, results).records) == RUNS
    (step,) = unpack(results)
    assert (step.moved, list(step.left)) == (RUNS, [str(path)])


@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize("change", [pack, unpack])
def test_who_reads_while_attempts_are_packed_or_unpacked_reads_each_once(
    results: Path, change: Callable[..., Iterator[PackStep]], is_interrupted: bool
) -> None:
    """Also if all attempts are in the pack already, and their folders are only deleted."""
    whole = read_contents(results, results)
    shutil.copytree(results, results.parent / "folders")
    if change is unpack or is_interrupted:
        list(pack(results))
    if is_interrupted:
        shutil.copytree(results.parent / "folders", results, dirs_exist_ok=True)
    for at in range(RUNS + 1):
        copy = results.parent / f"copy{at}"
        shutil.copytree(results, copy)
        met = []
        for number, folder in enumerate(attempt_folders(copy)):
            if number == at:
                list(change(copy))
            met.append(read_attempt(folder, copy))
        assert sorted(each.record.session for each in met if each.record) == [each.session for each in whole.records]
        assert len(met) == RUNS


def test_a_file_is_read_whole_while_its_pack_is_written_anew(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, whole = Store(results), read_records(results)
    list(pack(results))
    read, left = Pack.read, [1]

    def raced(self: Pack, member: Member) -> bytes:
        if left and left.pop():
            store.withdraw(whole[0], Failure("inputs", "changed", "its text changed"))
        return read(self, member)

    monkeypatch.setattr(Pack, "read", raced)
    found = read_attempt(results / "sweep" / whole[2].spec.run_id / "1", results)
    assert found.damage is None
    assert found.record == whole[2]
