"""Expands a recipe's ``methods`` and ``engines``: looks up names, expands lists, checks parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness import plugins as registry
from harness.core.engine import Engine, EngineParams
from harness.core.foreign import quoted
from harness.core.format import SERVED_FORMAT, TRANSFORMERS_FORMAT, source_format
from harness.core.identity import Scalar, digest
from harness.core.method import Method
from harness.core.model import MethodRef, ServerRef
from harness.errors import SourceError, UsageError, did_you_mean
from harness.models.sources import SourceModel, inspect
from harness.recipe import Entry, MethodEntry, Model, Recipe
from harness.recipe.faults import expected
from harness.recipe.fields import MAX_VARIANTS
from harness.recipe.yaml_file import Location
from harness.stacks import stack_names

TRUST = "trust_remote_code"
STACK = "stack"
"""The key of a method's entry that names the stack to quantize in; every other key is a parameter."""
A_SERVER = "what a server of yours serves is the method 'served': {served: {url: …, model: …}}"
P = TypeVar("P", bound=BaseModel)


@dataclass(frozen=True)
class MethodChoice:
    """A method with every parameter resolved; ``params`` holds them as the method's own type.

    ``checkpoint`` is the published checkpoint to measure, if the method is ``checkpoint``.
    """

    method: Method[Any]
    ref: MethodRef
    params: Any
    checkpoint: SourceModel | None = None

    @property
    def calibrated(self) -> bool:
        """Whether it is calibrated on text."""
        return self.method.calibrated(self.params)

    def runs_on(self, engine: Engine[Any]) -> bool:
        """Whether an engine can read its checkpoints. An unquantized one may be converted for the engine."""
        if self.checkpoint is not None:
            return source_format(self.checkpoint.ref) in engine.reads
        if self.method.output_format is None:
            return TRANSFORMERS_FORMAT in engine.reads or engine.convert is not None
        return self.method.output_format in engine.reads


@dataclass(frozen=True)
class EngineChoice:
    """An engine with all of its own parameters resolved."""

    engine: Engine[Any]
    params: EngineParams

    @property
    def changed(self) -> Mapping[str, Scalar]:
        """The parameters that differ from the engine's defaults."""
        return self.params.model_dump(exclude_defaults=True)


def engine_choices(recipe: Recipe) -> list[EngineChoice]:
    """Every engine of a recipe once. Raises RecipeError for unknown engines and invalid parameters."""
    _validate_size(recipe, recipe.engines, ("engines",))
    found: dict[str, EngineChoice] = {}
    for index, entry in enumerate(recipe.engines):
        try:
            engine = registry.engine(entry.name)
        except UsageError as error:
            raise recipe.error(("engines", index), str(error)) from None
        place = ("engines", index, entry.name)
        _refuse_server(recipe, entry, engine, place)
        for given in _combinations(recipe, entry, engine.params, place):
            choice = EngineChoice(engine, checked(recipe, engine.params, given, place))
            found.setdefault(digest([engine.name, dict(choice.changed)]), choice)
    return list(found.values())


def choices(recipe: Recipe, base: MethodChoice) -> list[MethodChoice]:
    """Every method of a recipe once, including the baseline. Raises RecipeError for what no model could use."""
    _validate_size(recipe, recipe.methods, ("methods",))
    found: dict[str, MethodChoice] = {}
    for index, entry in enumerate(recipe.methods):
        for choice in expand(recipe, entry, ("methods", index)):
            found.setdefault(_key(choice), choice)
    _reject_duplicates(recipe, list(found.values()))
    return list(found.values()) if _key(base) in found else [base, *found.values()]


def baseline(recipe: Recipe) -> MethodChoice:
    """The single unquantized method that all others are compared with. Raises RecipeError for anything else."""
    _validate_size(recipe, [recipe.baseline], ("baseline",))
    found = list(expand(recipe, recipe.baseline, ("baseline",)))
    if len(found) != 1 or found[0].ref.stage != "none":
        raise recipe.error(("baseline",), "expected one unquantized variant, such as 'none'")
    return found[0]


def _reject_duplicates(recipe: Recipe, chosen: list[MethodChoice]) -> None:
    """Raises RecipeError for published checkpoints that a table could not distinguish."""
    labels = [choice.ref.label for choice in chosen if choice.checkpoint]
    if len(set(labels)) < len(labels):
        raise recipe.error(("methods",), "two checkpoints have folders of one name; a table could not tell them apart")


def _validate_size(recipe: Recipe, entries: Sequence[Entry], place: Location) -> None:
    """Raises RecipeError, before anything is expanded, if the entries expand to too many combinations."""
    count = sum(
        math.prod(len(value) for value in entry.params.values() if isinstance(value, list)) for entry in entries
    )
    if count > MAX_VARIANTS:
        raise recipe.error(
            place, f"expands to {count} combinations of parameters, and the limit is {MAX_VARIANTS}; list fewer values"
        )


def _key(choice: MethodChoice) -> str:
    return digest(choice.ref.identity)


def expand(recipe: Recipe, entry: MethodEntry, location: Location) -> Iterator[MethodChoice]:
    """One choice for each combination of the values that an entry lists."""
    try:
        method = registry.method(entry.name)
    except UsageError as error:
        if entry.name in registry.engine_names() and SERVED_FORMAT in registry.engine(entry.name).reads:
            raise recipe.error(location, f"{entry.name} is an engine; {A_SERVER}") from None
        raise recipe.error(location, str(error)) from None
    place = (*location, entry.name)
    for given in _combinations(recipe, entry, method.params, place, also=(STACK,)):
        stack = _stack(recipe, method, given.pop(STACK, None), place)
        params = checked(recipe, method.params, given, place)
        label = " ".join([method.name, *filter(None, (_shown(method, key, value) for key, value in given.items()))])
        if stack is not None:
            label = f"{label} {STACK}={stack}"
        ref = MethodRef(method.name, method.version, params.model_dump(), label, method.stage, stack=stack)
        made = MethodChoice(replace(method, stack=stack or method.stack), ref, params)
        if method.output_format == SERVED_FORMAT:
            made = _served(made)
        yield _published(recipe, made, place) if method.published else made


def _refuse_server(recipe: Recipe, entry: Entry, engine: Engine[Any], place: Location) -> None:
    """Raises RecipeError for an engine that is given a server's address: a method has it, so that two can be compared.

    The message does not repeat the value, which may hold a password.
    """
    if SERVED_FORMAT not in engine.reads:
        return
    for key in entry.params:
        if key in registry.method("served").params.model_fields and key not in engine.params.model_fields:
            raise recipe.error((*place, key), f"is no parameter of the engine; {A_SERVER}")


def _combinations(
    recipe: Recipe, entry: Entry, params: type[BaseModel], place: Location, also: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Each combination of the values that an entry lists; ``also`` are allowed keys that are not parameters.

    Raises RecipeError for an unknown parameter and an empty list.
    """
    validate_names(recipe, entry.name, params, [key for key in entry.params if key not in also], place)
    for key, value in entry.params.items():
        if value == []:
            raise recipe.error((*place, key), "an empty list leaves no variant")
    listed = [value if isinstance(value, list) else [value] for value in entry.params.values()]
    for values in product(*listed):
        yield dict(zip(entry.params, values, strict=True))


def _stack(recipe: Recipe, method: Method[Any], name: Any, place: Location) -> str | None:
    """The stack that a recipe chose for a method. Raises RecipeError if it is unknown or has no effect."""
    if name is None or name == method.stack:
        return None
    known = stack_names()
    if name not in known:
        raise recipe.error((*place, STACK), f"unknown stack {quoted(name)}{did_you_mean(str(name), known)}")
    if method.stage != "offline":
        raise recipe.error((*place, STACK), f"{method.name} does not quantize in a run of its own; leave it out")
    return str(name)


def _served(choice: MethodChoice) -> MethodChoice:
    """The choice with its server apart from its parameters."""
    server = ServerRef(choice.params.url, choice.params.api_key_env)
    kept = {name: value for name, value in choice.ref.params.items() if name not in vars(server)}
    label = f"{choice.ref.name} {choice.params.label or choice.params.model}"
    return replace(choice, ref=replace(choice.ref, params=kept, label=label, server=server))


def _published(recipe: Recipe, choice: MethodChoice, place: Location) -> MethodChoice:
    """The choice with the checkpoint that its parameters name, located and hashed."""
    try:
        params = choice.params
        entry = Model(id=params.id, revision=params.revision, trust_remote_code=params.trust_remote_code)
        found = inspect(entry, recipe.folder_of((*place, "id")), recipe.downloads)
    except SourceError as error:
        raise recipe.error((*place, "id"), str(error)) from None
    if found.ref.kind not in ("directory", "hub", "gguf"):
        raise recipe.error(
            (*place, "id"), "expected a folder or a hub id of a transformers checkpoint, or a .gguf file"
        )
    if found.matrices and found.ref.native_quantization is None:
        raise recipe.error((*place, "id"), "names a checkpoint that is not quantized; name it under 'models'")
    kept = {name: value for name, value in choice.ref.params.items() if name != TRUST}  # the checkpoint's ref holds it
    ref = replace(choice.ref, params=kept, published=found.ref, label=f"{choice.ref.name} {found.ref.label}")
    return replace(choice, ref=ref, checkpoint=found)


def validate_names(recipe: Recipe, owner: str, params: type[BaseModel], given: Iterable[str], place: Location) -> None:
    """Raises RecipeError for a name that is not a parameter of its method, engine or metric."""
    for key in given:
        if key not in params.model_fields:
            near = did_you_mean(key, params.model_fields) if params.model_fields else "; it has none"
            raise recipe.error((*place, key), f"unknown parameter of {owner}{near}")


def checked(recipe: Recipe, params: type[P], given: Mapping[str, Any], place: Location) -> P:
    """The parameters in their own type. Raises RecipeError for a value that one of them cannot have."""
    try:
        return params.model_validate_json(json.dumps(given))
    except ValidationError as error:
        fault = error.errors()[0]
        raise recipe.error((*place, *fault["loc"][:1]), expected(fault)) from None


def _shown(method: Method[Any], key: str, value: object) -> str:
    """A parameter in a label: ``bits=4``. True shows as the name alone; False is omitted if it is the default."""
    if value is True:
        return key
    if value is False and method.params.model_fields[key].default is False:
        return ""
    return f"{key}={str(value).lower() if value is False else value}"
