"""Recipes that come with the harness are found by their names, wherever a user is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.errors import RecipeError
from harness.recipe import load_recipe, read_built_in
from harness.recipe.built_in import built_in_recipes, find_recipe, summary

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_they_are_the_files_of_the_folder_recipes() -> None:
    assert built_in_recipes() == {path.stem: path for path in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_each_is_named_as_its_file_and_says_what_it_is_for(name: str) -> None:
    assert load_recipe(name).name == name
    assert summary(read_built_in(name)).endswith((".", ":"))


def test_a_file_of_that_name_comes_first_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart") == RECIPES / "quickstart.yaml"
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("name: mine")
    assert find_recipe("quickstart") == Path("quickstart")


def test_a_path_is_never_a_name() -> None:
    for path in ("quickstart.yaml", "./quickstart", "recipes/quickstart"):
        with pytest.raises(RecipeError, match=r"no such file$"):
            load_recipe(path)


def test_a_name_that_none_has_is_told_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"quickstrat: no such file, and no built-in .* did you mean 'quickstart'"):
        load_recipe("quickstrat")
    with pytest.raises(RecipeError, match="no built-in recipe is called 'quickstrat'; did you mean 'quickstart'"):
        read_built_in("quickstrat")


def test_a_recipe_extends_one_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: quickstart\nmethods: [none, int8]\n")
    (tmp_path / "quickstart").mkdir()  # a folder is no recipe
    mine, whole = load_recipe("mine.yaml"), load_recipe("quickstart")
    assert [method.name for method in mine.methods] == ["none", "int8"]
    assert mine.model_dump(exclude={"name", "methods"}) == whole.model_dump(exclude={"name", "methods"})


def test_a_copy_means_what_the_recipe_means(tmp_path: Path) -> None:
    """Those whose model lies beside them name it by its whole path in the copy."""
    beside = set()
    for name in built_in_recipes():
        (tmp_path / f"{name}.yaml").write_text(read_built_in(name))
        copy, whole = load_recipe(f"{name}.yaml"), load_recipe(name)
        assert copy.model_dump(exclude={"models"}) == whole.model_dump(exclude={"models"})
        for own, theirs in zip(copy.models, whole.models, strict=True):
            if own != theirs:
                beside.add(name)
                assert own.id == str((RECIPES / theirs.id).resolve())
                assert own.model_dump(exclude={"id"}) == theirs.model_dump(exclude={"id"})
    assert beside == {"example", "methods-cpu"}


def test_none_extends_another_by_a_path() -> None:
    based = {yaml.safe_load(path.read_text()).get("extends") for path in RECIPES.glob("*.yaml")} - {None}
    assert based
    assert based <= set(built_in_recipes())
