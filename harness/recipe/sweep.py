"""The whole recipe: models, methods, and everything that their sweep shares."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_core import PydanticCustomError

from harness.core.identity import NAME, KvCache
from harness.core.strict import Strict
from harness.errors import RecipeError
from harness.recipe.built_in import find_recipe
from harness.recipe.extends import read_extended
from harness.recipe.faults import all_of, recipe_error
from harness.recipe.fields import (
    MAX_ENTRIES,
    MAX_EXCLUDED,
    MAX_RECIPE_NAME,
    MAX_VARIANTS,
    Bytes,
    Commit,
    Devices,
    Dtype,
    Located,
    Name,
    OneValue,
    Plain,
    Seconds,
    Seed,
    Threads,
    distinct,
    one_or_many,
)
from harness.recipe.measure import Measure
from harness.recipe.text import Calibration
from harness.recipe.yaml_file import Location, YamlFile

MAX_REPETITIONS = 1000
MAX_PRICE_PER_HOUR = 10**9


class Model(Strict):
    """Where the weights come from.

    ``id`` is a local folder, a ``.gguf`` file, ``package:NAME/FILE`` (a file inside an installed
    package), ``synthetic:TYPE`` (seeded random weights, shaped by ``config``), or a hub id.
    """

    id: Located
    label: Name | None = Field(None, description="name shown in tables; default: derived from the id")
    dtype: Dtype = Field("auto", description="dtype the model runs in; auto is the checkpoint's own")
    revision: Commit | None = Field(None, description="commit of a hub model, required so that runs can be repeated")
    degrid: Seed | None = Field(
        None, description="seed for moving weights off a coarse grid without changing the function"
    )
    native: Literal["keep", "dequantize"] = Field(
        "keep",
        description="dequantize: a checkpoint published in mxfp4 or fp8 becomes a dense model, which methods quantize",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")
    config: dict[Name, Plain] = Field(default_factory=dict, description="configuration of a synthetic model")
    seed: Seed | None = Field(None, description="seed of a synthetic model's weights; default: 0")


class Entry(Strict):
    """One method or engine: a name, or ``{name: {parameter: value or list of values}}``."""

    name: Name
    params: dict[Name, Plain] = Field(default_factory=dict)


class MethodEntry(Entry):
    """One entry of ``methods``."""


class EngineEntry(Entry):
    """One entry of ``engines``."""


class Scope(Strict):
    """What is quantized: the decoder's matrices except those skipped. The same for all methods of a recipe."""

    quantize: Literal["decoder"] = Field("decoder", description="the decoder's matrices")
    skip: Annotated[
        tuple[Name, ...],
        BeforeValidator(one_or_many, json_schema_input_type=str | list[str]),
        Field(max_length=MAX_ENTRIES),
    ] = Field((), description="modules not to quantize, as patterns such as '*.down_proj' or 'model.layers.0.*'")
    overrides: dict[Name, dict[Name, OneValue]] = Field(
        default_factory=dict,
        max_length=MAX_ENTRIES,
        description="parameters that differ for some modules: {'*.down_proj': {bits: 8}}",
    )


class Price(Strict):
    """The price of running the machine."""

    per_hour: float = Field(gt=0, le=MAX_PRICE_PER_HOUR, allow_inf_nan=False, description="for the whole machine")
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="three-letter code (ISO 4217)")


class Limits(Strict):
    """Limits of a single run; a run that exceeds one is stopped and recorded."""

    time: Seconds | None = Field(None, description="wall time of one run, such as 10m")
    memory: Bytes | None = Field(
        None,
        description="private host memory of one run, such as 8GiB; GPU memory is not limited. Runs on a GPU have this "
        "limit only with `device: cuda`: it has never been tried there, and CUDA's own mappings may count",
    )


def _scope(value: Any) -> Any:
    return {"quantize": value} if isinstance(value, str) else value


def _gates(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("gates", "expected figures with their thresholds, such as {perplexity: 0.5%}")
    return value


def _model(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


def _entry(what: str, name: str, params: str, value: Any) -> Any:
    """An entry as a mapping of its fields. ``what``, ``name`` and ``params`` serve as the example in error messages."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Entry):
        return value
    if isinstance(value, dict) and set(value) == {"name", "params"}:
        return value
    if not isinstance(value, dict) or len(value) != 1:
        example = f"{{{name}: {{{params}}}}}"
        raise PydanticCustomError(
            "entry",
            "expected {what}'s name, or one name with its parameters: {example}",
            {"what": what, "example": example},
        )
    ((key, own),) = value.items()
    if own is not None and not isinstance(own, dict):
        raise PydanticCustomError(
            "entry", "expected a mapping of parameters, such as {example}", {"example": f"{{{params}}}"}
        )
    return {"name": key, "params": own or {}}


_Written = str | dict[str, dict[str, Any] | None]
AnyMethod = Annotated[
    MethodEntry, BeforeValidator(partial(_entry, "a method", "rtn", "bits: [8, 4]"), json_schema_input_type=_Written)
]
AnyEngine = Annotated[
    EngineEntry,
    BeforeValidator(partial(_entry, "an engine", "llamacpp", "threads: [4, 8]"), json_schema_input_type=_Written),
]


def _merged_before(value: Any) -> Any:
    """``load_recipe`` merges the files and drops the key, so that only data that came from no file still has it."""
    raise PydanticCustomError(
        "extends", "needs the recipe's own file to resolve the path; load the recipe with harness.load_recipe(PATH)"
    )


class Recipe(Strict):
    """A sweep: models × methods × engines, and what to measure for each.

    A list under a parameter of a method or an engine expands into one variant per value.
    """

    name: str = Field(
        pattern=f"^{NAME.pattern}$", max_length=MAX_RECIPE_NAME, description="also the folder of its results"
    )
    models: tuple[Annotated[Model, BeforeValidator(_model, json_schema_input_type=str | Model)], ...] = Field(
        min_length=1, max_length=MAX_ENTRIES, description="the models to quantize; an entry may be just an id"
    )
    methods: tuple[AnyMethod, ...] = Field(
        min_length=1, max_length=MAX_VARIANTS, description="names, or {name: {parameter: value or list of values}}"
    )
    engines: Annotated[tuple[AnyEngine, ...], AfterValidator(distinct)] = Field(
        (EngineEntry(name="transformers"),),
        min_length=1,
        max_length=MAX_VARIANTS,
        description="the engines that run the variants: names, or {name: {parameter: value or list of values}}",
    )
    measure: Measure
    baseline: AnyMethod = Field(MethodEntry(name="none"), description="the variant that all others are compared with")
    repetitions: int = Field(
        1, gt=0, le=MAX_REPETITIONS, description="fresh processes per variant, for performance only"
    )
    limits: Limits = Limits()
    scope: Annotated[Scope, BeforeValidator(_scope, json_schema_input_type=str | Scope)] = Field(
        Scope(), description="what to quantize; 'decoder' means all of the decoder's matrices"
    )
    calibration: Calibration | None = Field(None, description="the text for calibrated methods")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto uses the GPU if there is a usable one")
    devices: Devices = Field(
        1,
        description="GPUs that the transformers engine spreads each model over, layer by layer, so that one computes "
        "after the other; other engines have parameters of their own",
    )
    residency: Literal["auto", "resident", "streamed"] = Field(
        "auto",
        description="whether models are loaded whole ('resident') or read from disk layer by layer for every pass "
        "('streamed': bit by bit the same quality, no speed); auto streams what does not fit: see "
        "[streaming](streaming.md)",
    )
    threads: Threads | None = Field(
        None,
        description="CPU threads; default: one per core. On a CPU, runs of that many threads then execute side by "
        "side, each on a set of cores of its own, unless they measure time",
    )
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="attention implementation; default: the engine's choice"
    )
    exclude: tuple[dict[Name, OneValue], ...] = Field(
        (),
        max_length=MAX_EXCLUDED,
        description="variants to leave out: those that match every key "
        "(model, method, engine, kv_cache, decode_mode, or a parameter of methods or engines)",
    )
    seed: Seed = Field(0, description="seed of prompts, and of methods that use random numbers")
    kv_cache: Annotated[
        tuple[KvCache, ...],
        BeforeValidator(one_or_many, json_schema_input_type=str | list[str]),
        Field(min_length=1),
        AfterValidator(distinct),
    ] = Field(
        ("model",),
        description="how keys and values are stored: 'model' (as computed) or in fewer bits; in fewer bits, texts are "
        "read in chunks so that the cache takes effect; each entry of a list gets its own row",
    )
    decode_mode: Annotated[
        tuple[Literal["eager", "compiled"], ...],
        BeforeValidator(one_or_many, json_schema_input_type=str | list[str]),
        Field(min_length=1),
        AfterValidator(distinct),
    ] = Field(
        ("eager",),
        description="how decoding speed is measured: 'eager', layer by layer from Python, or 'compiled', one graph on "
        "a static key-value cache; each entry of a list gets its own row",
    )
    price: Price | None = Field(None, description="the price of the machine, for the cost of a million tokens")
    gates: Annotated[dict[Name, Plain], BeforeValidator(_gates, json_schema_input_type=dict[str, str | float])] = Field(
        default_factory=dict,
        description="thresholds for `qharness compare`, such as {perplexity: 0.5%}: see [regressions](regressions.md)",
    )
    extends: Annotated[str | None, AfterValidator(_merged_before)] = Field(
        None,
        description="path of the recipe file, or name of the built-in recipe, that this one builds on: "
        "see [extending a recipe](recipe-reference.md#extending-a-recipe)",
    )

    _file: YamlFile | None = PrivateAttr(None)
    _downloads: Path | None = PrivateAttr(None)

    @property
    def downloads(self) -> Path | None:
        """A hub cache in which published checkpoints are looked up too; None: only the user's."""
        return self._downloads

    def with_downloads(self, cache: Path) -> Recipe:
        """The same recipe, whose published checkpoints may also be in that hub cache."""
        found = self.model_copy()
        found._downloads = cache
        return found

    def error(self, location: Location, message: str) -> RecipeError:
        """A RecipeError that names file, line and key."""
        return recipe_error(self._file, location, message)

    def folder_of(self, location: Location) -> Path:
        """The folder that a relative path at a location starts from: that of the file it was written in."""
        return self._file.place_of(location).path.resolve().parent if self._file else Path.cwd()


def load_recipe(path: str | Path) -> Recipe:
    """Reads and validates a recipe file, or a built-in recipe by its name, and those it extends.

    Raises RecipeError, which lists every fault.
    """
    return _of_file(read_extended(find_recipe(path)))


def recipe_at(path: str | Path, data: dict[str, Any]) -> Recipe:
    """The recipe that a file with this data would hold: relative paths start there. Raises RecipeError, likewise."""
    return _of_file(YamlFile(Path(path), data))


def _of_file(file: YamlFile) -> Recipe:
    try:
        recipe = Recipe.model_validate_json(json.dumps(file.data))
    except ValidationError as error:
        raise all_of(file, error, Recipe) from None
    recipe._file = file
    return recipe
