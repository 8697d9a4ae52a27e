"""A record's text never makes a path: what it says of itself is held against the folders that it lies in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from thorough import all_thorough_but
from typer.testing import CliRunner, Result

from harness.api.baselines import Baselines
from harness.cli.app import app
from harness.core.foreign import quoted
from harness.errors import ExitCode, ResultsError
from harness.report.write import FORMATS
from harness.storage.reading import read_records, read_results
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
DRAWN = ("png", "svg")
"""Formats that need a browser."""
Change = Callable[[dict[str, object]], None]


def recipe(name: str) -> Change:
    return lambda raw: raw["spec"].update(recipe=name)  # type: ignore[attr-defined]


def attempt(number: object) -> Change:
    return lambda raw: raw.update(attempt=number)


def tampered(folder: Path, change: Change) -> Path:
    """A copy of the example's records, each of them changed."""
    copy = shutil.copytree(EXAMPLE, folder / "results" / "example")
    for path in copy.rglob("record.json"):
        raw = json.loads(path.read_text(encoding="utf-8"))
        change(raw)
        path.write_text(json.dumps(raw), encoding="utf-8")
    return folder / "results"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder deep enough that ``../../..`` stays in the test's own; nothing may appear but below ``out``."""
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return inner


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


HOSTILE = ("/absolute", "../../x", "..", ".", "", "a/b", "a\x00b", "example\n", "-rf", "~", "x" * 300 + "/y")


@pytest.mark.parametrize("name", all_thorough_but(("/absolute", "../../x", "a\x00b"), HOSTILE))
def test_no_command_writes_where_a_record_says(tmp_path: Path, place: Path, name: str) -> None:
    said = str(tmp_path / "elsewhere") if name == "/absolute" else name
    results = tampered(tmp_path / "given", recipe(said))
    before = files(tmp_path)
    formats = ",".join(each for each in FORMATS if each not in DRAWN)
    commands = [
        ("report", results, "--out", place / "out", "--format", formats),
        ("report", results / "example", "--out", place / "out", "--format", "model-card"),
        ("baseline", "set", "main", results, "--baselines", place / "out"),
        ("export", "mlflow", results, "--tracking-uri", (place / "out").as_uri()),
        ("compare", results, results, "--out", place / "out" / "comparison.txt"),
        ("history", results, "--out", place / "out" / "history.txt"),
    ]
    for arguments in commands:
        ended = command(*arguments)
        assert isinstance(ended.exception, ResultsError), (arguments, ended.output)
        assert ended.exception.exit_code == ExitCode.USAGE
        assert "record.json" in str(ended.exception)
        assert quoted(said) in str(ended.exception)  # quoted, or control characters would reach the terminal
    assert files(tmp_path) - before == {path for path in files(tmp_path) if place / "out" in path.parents}
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (recipe("other"), "spec.recipe is 'other', but its folder is 'example'"),
        (recipe("../example"), "cannot name a recipe"),
        (attempt(2), "attempt is 2, but its folder is '1'"),
        (attempt(0), "attempt is 0"),
        (attempt(-1), "attempt is -1"),
    ],
)
def test_what_lies_in_the_wrong_place_is_named(tmp_path: Path, change: Change, expected: str) -> None:
    results = tampered(tmp_path, change)
    with pytest.raises(ResultsError, match=expected):
        read_records(results)


def test_a_run_lies_in_the_folder_of_its_run_id(tmp_path: Path) -> None:
    found = read_records(EXAMPLE)
    store = Store(tmp_path)
    kept = store.save(found[0]).parent
    assert store.read().records == (store.anonymizer.record(found[0]),)
    run_id = "0" * 16
    kept.parent.rename(kept.parent.with_name(run_id))
    with pytest.raises(ResultsError, match=f"its run id is {found[0].spec.run_id}, but its folder is '{run_id}'"):
        read_records(tmp_path)
    (tmp_path / "example" / run_id).rename(tmp_path / "example" / "not-a-run")
    with pytest.raises(ResultsError, match="'not-a-run' is not a run id"):
        read_records(tmp_path)


def test_a_recipes_folder_may_be_called_anything_where_a_user_names_it(tmp_path: Path) -> None:
    """As in CI, where the artifacts of two sweeps lie in ``base`` and ``head``."""
    base = shutil.copytree(EXAMPLE, tmp_path / "base")
    assert read_records(base) == read_records(EXAMPLE)
    with pytest.raises(ResultsError, match=r"spec\.recipe is 'example', but its folder is 'base'"):
        read_records(tmp_path)


def test_the_rest_is_read_where_one_record_was_moved(tmp_path: Path) -> None:
    copy = shutil.copytree(EXAMPLE, tmp_path / "example")
    whole = len(read_records(tmp_path))
    path = next(copy.rglob("record.json"))
    path.parent.rename(path.parent.with_name("7"))
    found = read_results(tmp_path)
    assert len(found.records) == whole - 1
    (damaged,) = found.damaged
    assert "attempt is 1, but its folder is '7'" in damaged.reason


def test_a_folder_may_be_named_from_inside_and_by_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(EXAMPLE, tmp_path / "moved" / "example")
    (tmp_path / "example").symlink_to(copy, target_is_directory=True)
    monkeypatch.chdir(copy)
    whole = len(read_records(EXAMPLE))
    for folder in (Path(), Path("../example"), copy.parent, tmp_path / "example"):
        assert len(read_records(folder)) == whole


@pytest.mark.parametrize("name", ["../../x", "/abs", "a\x00b", "..", ""])
def test_no_path_is_made_of_a_recipe_or_a_run_that_cannot_name_one(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(ResultsError, match="cannot name a recipe"):
        store.next_attempt(name, "0" * 16)
    with pytest.raises(ResultsError, match="cannot be a run id"):
        store.next_attempt("example", name)
    with pytest.raises(ResultsError, match="cannot name a recipe"), store.locked(name):
        pass


def test_labels_with_slashes_name_files_below_the_report_alone(tmp_path: Path, place: Path) -> None:
    def change(raw: dict[str, object]) -> None:
        spec = raw["spec"]
        spec["model"]["label"] = "../../../m\x00/../x"  # type: ignore[index]
        spec["method"]["label"] = "/etc/../../" + spec["method"]["label"]  # type: ignore[index]
        spec["perplexity"]["text"]["id"] = "../../text"  # type: ignore[index]

    results = tampered(tmp_path / "given", change)
    before = files(tmp_path)
    formats = ",".join(each for each in FORMATS if each not in DRAWN)
    ended = command("report", results, "--out", place / "out", "--format", formats)
    assert ended.exit_code == 0, ended.exception
    made = files(tmp_path) - before
    assert len([path for path in made if path.parent.parent.name == "model-card"]) > 1
    assert all(place / "out" / "example" in path.parents for path in made)
    kept = command("baseline", "set", "main", results, "--baselines", place / "kept")
    assert kept.exit_code == 0, kept.exception
    assert len(Baselines(place / "kept").read("main").records) > 1
    assert all({place / "out", place / "kept"} & set(path.parents) for path in files(tmp_path) - before)
