"""Recipes that come with the harness. A user names one without a folder or an ending: ``qharness run quickstart``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from harness.core.foreign import quoted
from harness.core.identity import NAME
from harness.errors import RecipeError, did_you_mean
from harness.recipe.fields import MAX_RECIPE_NAME

_RELATIVE = re.compile(r"(?<=\bid: )\.\./[^\s,}]+")


def built_in_recipes() -> dict[str, Path]:
    """Their files by name."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "recipes"  # as in a wheel; in a checkout they lie beside the package
    folder = packaged if packaged.is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def find_recipe(written: str | Path) -> Path:
    """The file that a user names: at that path, or else the built-in recipe of that name.

    Raises RecipeError if there is neither, for what could be a name; reading says what is wrong with any other path.
    """
    path, name, recipes = Path(written), str(written), built_in_recipes()
    if name in recipes:
        return path if path.is_file() else recipes[name]
    if not path.suffix and len(name) <= MAX_RECIPE_NAME and NAME.fullmatch(name) and not path.exists():
        raise RecipeError(f"{name}: no such file, and no built-in recipe has that name{did_you_mean(name, recipes)}")
    return path


def read_built_in(name: str) -> str:
    """The text of a built-in recipe, which means the same in any folder: a relative path in it is made absolute.

    Raises RecipeError if none has that name.
    """
    recipes = built_in_recipes()
    if name not in recipes:
        raise RecipeError(f"no built-in recipe is called {quoted(name)}{did_you_mean(name, recipes)}")
    path = recipes[name]
    return _RELATIVE.sub(
        lambda match: json.dumps(str((path.parent / match[0]).resolve())), path.read_text(encoding="utf-8")
    )


def summary(text: str) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    first, stop, _ = " ".join(lines).partition(". ")
    return first + stop.strip()
