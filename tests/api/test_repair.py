"""``verify`` finds what is damaged in results and caches; ``repair`` mends it from what is proven to be the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from newer_records import make_newer
from run_specs import run_spec
from typer.testing import CliRunner, Result

from harness.api.baselines import Baselines
from harness.api.verify import verify
from harness.cli.app import app
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.upgrade import SCHEMA_VERSION
from harness.errors import ExitCode, ResultsError
from harness.storage.cache import Cache
from harness.storage.folder_seal import with_seal
from harness.storage.reading import Contents, attempt_folders, read_records
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
LOG = b"measured\n"


def record(kind: str = "quality", content: str = "abc") -> RunRecord:
    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    spec = run_spec(kind, "sweep", ModelRef("m", "m", content, "directory", "/m"), none, none)
    nll = Measurement("nll", 1, "nat/token", "lower", "paired", (1.0, 3.25), item_ids=("a", "b"))
    return RunRecord(spec, Outcome("ok", measurements=(nll,)), "session", 1, "2026-01-01T00:00:00+00:00", 1.5)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    for content in ("one", "two", "three"):
        store.save(record(content=content), LOG)
    return tmp_path / "results"


@pytest.fixture
def copy(results: Path) -> Path:
    return shutil.copytree(results, results.with_name("copy"))


def folders(results: Path) -> list[Path]:
    return list(attempt_folders(results))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def states(*arguments: object) -> list[tuple[str, str]]:
    ended = command("verify", *arguments, "--json")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    found = [(each["state"], Path(each["path"]).name) for each in lines]
    assert ended.exit_code == (ExitCode.GATE_FAILED if "damaged" in dict(found) else ExitCode.OK)
    return found


def actions(*arguments: object) -> list[str]:
    return [json.loads(line)["action"] for line in command("repair", *arguments, "--json").stdout.splitlines()]


def edit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_verify_lists_what_is_wrong_and_says_so_by_its_exit_code(results: Path) -> None:
    assert states(results) == [("ok", "1")] * 3
    first, second, third = folders(results)
    edit(first / "record.json")
    (second / "log.txt").unlink()
    (third.parent / ".2.part").mkdir()
    ended = command("verify", results)
    assert ended.exit_code == ExitCode.GATE_FAILED
    assert f"damaged: {first}: record.json: " in ended.stdout
    assert f"damaged: {second}: log.txt: no such file; the figures are valid" in ended.stdout
    assert f"debris: {third.parent / '.2.part'}: " in ended.stdout
    assert ended.stdout.endswith(f"1 ok, 2 damaged, 1 debris\nnext: qharness repair {results}\n")


def test_verify_tells_old_newer_and_set_aside_records(results: Path) -> None:
    assert {state for state, _ in states(EXAMPLE)} == {"not sealed"}
    first, second, _ = folders(results)
    path = first / "record.json"
    make_newer(path)
    ended = command("verify", results)
    assert ended.exit_code == ExitCode.USAGE
    assert f"newer: {first}: record.json: written by a newer qharness" in ended.stdout
    shutil.rmtree(first)
    edit(second / "evidence.parquet")
    assert Path(Store(results).set_aside("sweep", Store(results).read().damaged[0])).exists()
    assert states(results) == [("ok", "1"), ("set aside", f"{second.parent.name}.1")]


def test_verify_yields_each_when_it_is_checked(results: Path) -> None:
    checked = verify(results)
    assert next(checked).state == "ok"
    shutil.rmtree(folders(results)[2].parent)
    assert [each.state for each in checked] == ["ok"]  # of a large folder nothing waits for the last one


@pytest.mark.parametrize("where", ["absent", "empty"])
def test_what_is_neither_results_nor_a_cache_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("verify", "repair"):
        assert isinstance(command(name, tmp_path / where).exception, ResultsError)


@pytest.mark.parametrize("name", ["record.json", "evidence.parquet", "log.txt"])
@pytest.mark.parametrize("change", [edit, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_file_is_restored_from_a_copy(results: Path, copy: Path, name: str, change: Callable[[Path], object]) -> None:
    whole = Store(results).read()
    folder = folders(results)[1]
    change(folder / name)
    assert actions(results, "--from", copy) == ["restored"]
    assert Store(results).read() == whole
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (copy / folder.relative_to(results)).iterdir()
    }
    assert actions(results) == []
    assert len(list((results / "sweep" / ".damaged").iterdir())) == 1, "what was there is kept"


def test_a_record_is_restored_from_a_baseline_which_has_no_log(results: Path, tmp_path: Path) -> None:
    Baselines(tmp_path / "baselines").set("main", read_records(results))
    whole = Store(results).read()
    edit(folders(results)[0] / "record.json")
    edit(folders(results)[1] / "evidence.parquet")
    assert actions(results, "--from", tmp_path / "baselines" / "main") == ["restored", "restored"]
    assert Store(results).read() == whole
    assert not (folders(results)[0] / "log.txt").exists()
    assert (folders(results)[1] / "log.txt").read_bytes() == LOG


def test_another_attempt_in_the_same_place_restores_nothing(results: Path, copy: Path) -> None:
    """Two machines may both have an attempt 1 of a run, of different figures."""
    folder = folders(results)[0]
    shutil.rmtree(copy)
    for content in ("one", "two", "three"):
        again = record(content=content)
        Store(copy).save(RunRecord(again.spec, again.outcome, "another session", 1, again.started_at, 7.0), LOG)
    edit(folder / "record.json")
    (folder / "evidence.parquet").unlink()
    ended = command("repair", results, "--from", copy)
    assert ended.exit_code == ExitCode.GATE_FAILED
    assert "the next run makes it again" in ended.stdout
    assert len(Store(results).read().records) == 2
    assert not Store(results).read().damaged


@pytest.mark.parametrize("name", ["record.json", "evidence.parquet"])
def test_a_run_is_restored_from_its_artifact_in_the_cache(tmp_path: Path, name: str) -> None:
    made, store, cache = record("reference"), Store(tmp_path / "results"), Cache(tmp_path / "cache")
    with cache.filling(made.spec, "t") as part:
        (part / "reference.json").write_text("{}")
    cache.publish(made.spec, part, made.outcome)
    folder = store.save(made, LOG).parent
    path = folder / name
    if name == "record.json":  # an edited figure
        path.write_text(path.read_text().replace('"unit": "nat/token"', '"unit": "nat/taken"'))
    else:
        edit(path)
    assert store.read().records == ()
    assert actions(store.root, "--cache", tmp_path / "elsewhere") == ["set aside"]
    shutil.move(store.root / "sweep" / ".damaged" / f"{folder.parent.name}.1", folder)
    assert actions(store.root, "--cache", cache.root) == ["restored"]
    assert store.read() == Contents((made,))


def test_a_log_that_is_gone_or_changed_leaves_a_record_without_one(results: Path) -> None:
    whole = Store(results).read()
    first, second, _ = folders(results)
    (first / "log.txt").unlink()
    edit(second / "log.txt")
    assert actions(results) == ["resealed", "resealed"]
    assert Store(results).read() == whole
    aside = results / "sweep" / ".damaged" / f"{second.parent.name}.1"
    assert (aside / "log.txt").exists()


def test_debris_is_removed_and_nothing_else(results: Path) -> None:
    kept = {path for path in results.rglob("*") if path.is_file()}
    run = folders(results)[0].parent
    (run / ".2.part").mkdir()
    (run / ".2.part" / "record.json").write_text("{")
    (run / "1" / ".record.json.17.part").write_text("{")
    assert actions(results) == ["removed", "removed"]
    assert {path for path in results.rglob("*") if path.is_file() and path.name != ".lock"} == kept


def test_an_intact_record_goes_back_to_its_own_folder(results: Path) -> None:
    whole = Store(results).read()
    first, second, third = folders(results)
    moved = first.rename(first.parent / "2")
    swapped = second.parent.rename(second.parent.with_name("0" * 16)) / "1"
    (third / "log.txt").unlink()
    third.rename(third.with_name("1.bak"))
    assert sorted(actions(results)) == ["resealed", "restored", "restored", "restored"]
    assert Store(results).read() == whole
    assert not moved.exists()
    assert not swapped.exists()
    shutil.copytree(first, first.with_name("2"))
    assert actions(results) == ["set aside"]  # a second copy has no place
    assert Store(results).read() == whole


def test_a_part_of_a_recipe_is_not_repaired_alone(results: Path) -> None:
    first = folders(results)[0]
    edit(first / "record.json")
    before = sorted(results.rglob("*"))
    for part in (first, first.parent):
        ended = command("repair", part)
        assert isinstance(ended.exception, ResultsError)
        assert f"name {results / 'sweep'}" in str(ended.exception)
    assert sorted(results.rglob("*")) == before
    assert actions(results / "sweep") == ["set aside"]


def test_the_records_of_a_renamed_recipe_stay_together(results: Path) -> None:
    (results / "sweep").rename(results / "sweep-2025")
    before = sorted(results.rglob("record.json"))
    assert actions(results) == ["not repaired"] * 3
    assert sorted(results.rglob("record.json")) == before
    assert actions(results / "sweep-2025") == []  # any name will do where it is named


def test_old_records_are_sealed_only_where_that_is_asked_for(tmp_path: Path) -> None:
    results = shutil.copytree(EXAMPLE, tmp_path / "example")
    before = read_records(results)
    assert actions(results) == []
    assert set(actions(results, "--seal")) == {"sealed"}
    assert {state for state, _ in states(results)} == {"ok"}
    assert read_records(results) == before


def test_repair_waits_for_no_sweep(results: Path) -> None:
    with Store(results).locked("sweep"):
        ended = command("repair", results)
    assert isinstance(ended.exception, ResultsError)
    assert "another 'qharness run' is writing here" in str(ended.exception)


class TestCache:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Cache:
        cache = Cache(tmp_path / "cache")
        for content in ("one", "two"):
            made = record("reference", content)
            with cache.filling(made.spec, "t") as part:
                (part / "window-00000.safetensors").write_bytes(content.encode() * 100)
            cache.publish(made.spec, part, made.outcome)
        return cache

    def test_a_changed_byte_is_found_with_read_data(self, cache: Cache) -> None:
        first, second = sorted((cache.root / "reference").iterdir())
        assert states(cache.root) == [("ok", first.name), ("ok", second.name)]
        edit(second / "window-00000.safetensors")
        assert states(cache.root) == [("ok", first.name), ("ok", second.name)]
        assert states(cache.root, "--read-data") == [("damaged", second.name), ("ok", first.name)]
        (first / "outcome.json").write_text("{")
        assert [state for state, _ in states(cache.root)] == ["damaged", "ok"]

    def test_a_folder_of_a_newer_harness_stays(self, cache: Cache) -> None:
        first, _ = sorted((cache.root / "reference").iterdir())
        raw = json.loads((first / "outcome.json").read_text())
        (first / "outcome.json").write_text(json.dumps(with_seal({**raw, "schema_version": SCHEMA_VERSION + 1})))
        ended = command("verify", cache.root)
        assert ended.exit_code == ExitCode.USAGE
        assert f"newer: {first}: " in ended.stdout
        assert actions(cache.root) == []
        assert first.exists()

    def test_what_is_damaged_is_removed_for_the_next_run(self, cache: Cache) -> None:
        first, second = sorted((cache.root / "reference").iterdir())
        edit(second / "window-00000.safetensors")
        assert actions(cache.root) == ["removed"]
        assert sorted((cache.root / "reference").iterdir()) == [first]


def test_repair_deletes_nothing_outside_of_the_folders_of_recipes(results: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "downloads" / ".film.part"
    theirs.parent.mkdir()
    theirs.write_text("half of a download")
    ours = folders(results)[0].parent / ".2.part"
    ours.mkdir()
    assert command("repair", tmp_path).exit_code == 0
    assert theirs.exists()
    assert not ours.exists()
    assert isinstance(command("repair", theirs.parent).exception, ResultsError)
    assert theirs.exists()
