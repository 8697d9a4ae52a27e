"""Recipes for a model that a user names: bad names, files that exist, paths as the recipe's folder sees them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.api.propose import Proposed, TryRequest, propose
from harness.cli.app import app
from harness.core.site import Machine
from harness.errors import ExitCode, UsageError
from harness.execution.local import LocalSite
from harness.host.speeds import TYPICAL
from harness.recipe import load_recipe


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, on a machine whose speeds are known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.execution.local.machine_speeds", lambda machine, root: TYPICAL)
    monkeypatch.setattr(LocalSite, "machine", lambda site, device: Machine("cpu", "a test machine"))
    return tmp_path


def test_the_recipe_names_the_model_as_its_own_folder_sees_it(tiny: Path, place: Path) -> None:
    shutil.copytree(tiny, place / "model")
    (place / "recipes").mkdir()
    made = propose(TryRequest("model", ("int8",)), out=place / "recipes" / "mine.yaml")
    recipe = load_recipe(made.path)
    assert recipe.models[0].id == "../model"
    assert (recipe.name, made.name) == ("try-model", "try-model")
    assert [each.name for each in recipe.methods] == ["none", "int8"]


def test_the_same_request_goes_on_with_its_file_and_another_does_not_overwrite_it(tiny: Path) -> None:
    first = propose(TryRequest(str(tiny), ("int8",)))
    written = first.path.read_text()
    first.path.write_text(f"{written}# a remark of the user\n".replace(f"name: {first.name}", "name: mine"))
    again = propose(TryRequest(str(tiny), ("int8",)))
    assert again.proposal is None
    assert again.name == "mine", "its results are in the folder of that name"
    assert again.path.read_text().endswith("# a remark of the user\n")
    with pytest.raises(UsageError, match="--force replaces it"):
        propose(TryRequest(str(tiny), ("int8", "rtn")))
    propose(TryRequest(str(tiny), ("int8", "rtn")), replace=True)
    assert [each.name for each in load_recipe(first.path).methods] == ["none", "int8", "rtn"]


def test_a_budget_by_a_gpu_is_written_as_its_memory(tiny: Path) -> None:
    made = propose(TryRequest(str(tiny), ("int8",), "rtx4090"))
    memory = load_recipe(made.path).measure.memory
    assert memory is not None
    assert memory.budget == 24564 * 2**20


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["--for", "speed"], {"maximize": "decode"}),
        (["--for", "quality"], {}),
        (["--for", "quality", "--budget", "1GiB"], {"minimize": "kl"}),
    ],
)
def test_what_is_recommended_is_what_the_user_is_after(
    options: list[str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(
        "harness.api.propose.propose", lambda *given, **named: Proposed(Path("try-m.yaml"), "try-m", None)
    )
    monkeypatch.setattr("harness.cli.commands.try_._run", lambda *given: ExitCode.OK)
    monkeypatch.setattr("harness.api.report.write_folder_report", lambda *given: [])
    monkeypatch.setattr("harness.api.recommend.recommend", lambda folder, **named: asked.append(named) or ())
    ended = CliRunner().invoke(app, ["try", "m", *options])
    assert ended.exit_code == ExitCode.OK, ended.output
    assert asked == [{"minimize": None, "maximize": None} | expected]
    ended = CliRunner().invoke(app, ["init", "m", *options])
    last = ended.stdout.splitlines()[-1]
    assert last == f"then: qharness recommend results/try-m{''.join(f' --{k} {v}' for k, v in expected.items())}"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("SmolLM2", "no file or folder .* and no hub id"),
        pytest.param("synthetic:nonsense", "does not know its shapes", marks=pytest.mark.heavy),
        ("package:no_such_package/x.gguf", "is not installed"),
        (".", "no config.json"),
    ],
)
def test_a_model_that_cannot_be_compared_is_one_clear_message(model: str, expected: str, place: Path) -> None:
    with pytest.raises(UsageError, match=expected) as refused:
        propose(TryRequest(model))
    assert "\n" not in str(refused.value)
    assert not list(place.glob("*.yaml"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"minutes": 0.0}, "--minutes"),
        ({"minutes": float("nan")}, "--minutes"),
        ({"budget": "much"}, "--budget: unknown GPU"),
        ({"engine": "steam"}, "unknown engine"),
        ({"purpose": "fun"}, "--for"),
    ],
)
def test_a_wrong_answer_is_refused_before_anything_is_read(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        TryRequest("anything", **changes)  # type: ignore[arg-type]


def test_a_commit_of_what_is_on_no_hub_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"--revision: .* is no hub model"):
        propose(TryRequest(str(tiny), revision="0" * 40))
