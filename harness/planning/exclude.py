"""Which variants a recipe's ``exclude`` leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from harness.core.identity import DecodeMode, KvCache
from harness.errors import did_you_mean
from harness.planning.exclude_entries import KEYS, matches
from harness.planning.expand import EngineChoice, MethodChoice
from harness.recipe import Recipe


def excluded(
    recipe: Recipe,
    method: MethodChoice,
    model: str,
    engine: EngineChoice,
    kv_cache: KvCache | None = None,
    decode_mode: DecodeMode | None = None,
) -> bool:
    """Whether an entry excludes a method on an engine, with this cache and decode mode if given."""
    facts = _facts(method, model, engine, kv_cache, decode_mode)
    return any(matches(pattern, facts) for pattern in recipe.exclude)


def validate_exclude(
    recipe: Recipe, chosen: Sequence[MethodChoice], models: Iterable[str], engines: Sequence[EngineChoice]
) -> None:
    """Raises RecipeError for an entry that is empty, has an unknown key or matches no variant."""
    known = {*KEYS, *(key for method in chosen for key in method.ref.params)}
    known |= {key for engine in engines for key in engine.engine.params.model_fields}
    every = [_facts(*each) for each in product(chosen, models, engines, recipe.kv_cache, recipe.decode_mode)]
    for index, pattern in enumerate(recipe.exclude):
        if not pattern:
            raise recipe.error(("exclude", index), "names nothing, and so would leave out everything")
        for key in pattern:
            if key not in known:
                raise recipe.error(("exclude", index, key), f"unknown key{did_you_mean(key, known)}")
        if not any(matches(pattern, facts) for facts in every):
            raise recipe.error(("exclude", index), "matches no variant of this recipe")


def _facts(
    method: MethodChoice, model: str, engine: EngineChoice, kv_cache: KvCache | None, decode_mode: DecodeMode | None
) -> dict[str, Any]:
    own = {"model": model, "method": method.ref.name, "engine": engine.engine.name}
    params = {**engine.params.model_dump(), **method.ref.params}
    return {**own, **params, "kv_cache": kv_cache, "decode_mode": decode_mode}
