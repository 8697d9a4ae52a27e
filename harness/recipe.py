"""The recipe: what the user writes. Pure data; names of plugins are looked up by the planner.

A key that is unknown is refused, and so is one that is reserved for later: nothing that a recipe
says is ever ignored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from harness.errors import RecipeError
from harness.recipe_faults import causes, explain, recipe_error
from harness.yaml_file import Location, YamlFile, read_yaml


class Strict(BaseModel):
    """Base of everything a recipe holds: frozen, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _not_built(value: Any) -> Any:
    raise PydanticCustomError("not_built", "not built yet; leave this key out")


def _seconds(value: Any) -> Any:
    """``90``, ``"90s"``, ``"10m"`` or ``"1.5h"`` in seconds."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", value.strip())):
        return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise PydanticCustomError("duration", "expected a duration such as 90s, 10m or 2h")


def _bytes(value: Any) -> Any:
    """``8GiB`` (2³⁰), ``8GB`` (10⁹), or a whole number of bytes."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", value.strip())):
        return int(float(match[1]) * (1024 if match[3] else 1000) ** (1 + "KMGT".index(match[2])))
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise PydanticCustomError("size", "expected a size such as 8GiB (2^30) or 8GB (10^9)")


def _one_or_many(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value if isinstance(value, tuple) else (value,)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("distinct", "expected each value once")
    return values


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"file": value} if "/" in value or Path(value).suffix else {"name": value}


def _task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


NotBuilt = Annotated[None, BeforeValidator(_not_built)]
Seconds = Annotated[
    float, BeforeValidator(_seconds, json_schema_input_type=str | float), Field(gt=0, allow_inf_nan=False)
]
Bytes = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str | int), Field(gt=0)]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
PositiveInts = Annotated[
    tuple[PositiveInt, ...],
    BeforeValidator(_one_or_many, json_schema_input_type=PositiveInt | list[PositiveInt]),
    Field(min_length=1),
    AfterValidator(_distinct),
]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Model(Strict):
    """Where the weights come from.

    ``id`` is a local folder, a ``.gguf`` file, ``package:NAME/FILE`` (a file inside an installed
    package), ``synthetic:TYPE`` (seeded random weights, shaped by ``config``), or a hub id.
    """

    id: str = Field(min_length=1)
    label: str | None = Field(None, description="name shown in tables; made from the id where absent")
    dtype: Dtype = Field("auto", description="the dtype it runs in; auto is the checkpoint's own")
    revision: Commit | None = Field(None, description="commit of a hub model: its run must be repeatable")
    degrid: NonNegativeInt | None = Field(
        None, description="seed with which weights are moved off a coarse grid, their function unchanged"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")
    config: dict[str, Any] = Field(default_factory=dict, description="configuration of a synthetic model")
    seed: NonNegativeInt | None = Field(None, description="seed of a synthetic model's weights; 0 where absent")


class MethodEntry(Strict):
    """One entry of ``methods``: a name, or ``{name: {parameter: value or list of values}}``."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class Text(Strict):
    """An evaluation text: one of the harness's own by ``name``, a local ``file``, or rows of a ``hub`` data set.

    A file is plain text (each line a row) or JSON lines (each ``field`` a row).
    """

    name: str | None = Field(None, description="one of those that 'qharness list texts' names")
    file: str | None = Field(None, description="path, relative to the recipe")
    hub: str | None = Field(None, description="id of a data set on the hub")
    config: str | None = Field(None, description="configuration of the data set")
    split: str | None = Field(None, description="split of the data set; needed with hub")
    revision: Commit | None = Field(None, description="commit of the data set; needed with hub")
    field: str = Field("text", description="the field of JSON lines, or of a data set's rows, that is read")

    @model_validator(mode="after")
    def _one_source(self) -> Text:
        if sum(source is not None for source in (self.name, self.file, self.hub)) != 1:
            raise PydanticCustomError("text", "expected exactly one of name, file and hub")
        if self.hub is not None and (self.split is None or self.revision is None):
            raise PydanticCustomError("text", "a hub text needs split and revision, or it could not be repeated")
        if self.hub is None and (self.config or self.split or self.revision):
            raise PydanticCustomError("text", "config, split and revision belong to a hub text alone")
        return self


AnyText = Annotated[Text, BeforeValidator(_text, json_schema_input_type=str | Text)]


class Calibration(Strict):
    """What calibrated methods see: the same token ids for all of them.

    ``concat`` joins the text's rows and cuts blocks, ``crop`` takes a stretch out of rows that are long
    enough, ``pad`` takes one row a sample, cut or padded to the length.
    """

    text: AnyText = Field(Text(name="demo_calibration"), description="a text's name, a file's path, or a hub data set")
    samples: PositiveInt = Field(128, description="sequences; fewer where the text holds no more, which is told")
    length: int = Field(512, ge=8, description="tokens of a sequence")
    packing: Literal["concat", "crop", "pad"] = Field("concat", description="how sequences are made of rows")
    bos: Literal["auto", "always", "never"] = Field(
        "auto", description="whether a sequence begins with BOS; auto is the tokenizer's habit"
    )
    chat_template: bool = Field(False, description="wrap each row as a user's message in the model's chat template")
    seed: NonNegativeInt = Field(0, description="draws the sequences where the text holds more")


class Scope(Strict):
    """What is quantized: the decoder's matrices, less what is skipped. The same for all methods of a recipe."""

    quantize: Literal["decoder"] = Field("decoder", description="the decoder's matrices")
    skip: Annotated[tuple[str, ...], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] = Field(
        (), description="modules left alone, as patterns such as '*.down_proj' or 'model.layers.0.*'"
    )
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="parameters that differ for some modules: {'*.down_proj': {bits: 8}}"
    )


class Perplexity(Strict):
    """Which text is scored, and by which protocol. A list of them gives each a table of its own."""

    text: AnyText = Field(Text(name="demo"), description="a text's name, a file's path, or a hub data set")
    protocol: Literal["gptq", "lm-eval", "llama.cpp", "sliding"] = Field(
        "gptq", description="how the text is joined, cut and scored, after the tool that does so"
    )
    context: Annotated[int, Field(ge=2)] | None = Field(
        None, description="tokens of one window; absent: 512 for llama.cpp, else 2048"
    )
    stride: PositiveInt | None = Field(
        None, description="tokens from one window to the next, of sliding alone; absent: half the context"
    )
    bos: Literal["auto", "always", "never"] = Field(
        "auto", description="whether BOS stands where the protocol puts it; auto is the tokenizer's habit"
    )
    windows: PositiveInt | None = Field(
        None, description="score only the first windows (lm-eval: whole documents among them); absent means all"
    )


class Task(Strict):
    """One task, group or tag of lm-eval, and how its questions are put.

    An entry may be just its name. ``data`` and ``fewshot_data`` are files of JSON lines with the fields of the
    task's own data set, which is read from the hub where they are absent.
    """

    name: str = Field(min_length=1, description="a name that lm-eval knows, or the path of a task's YAML file")
    fewshot: NonNegativeInt | None = Field(None, description="answered examples before a question; absent: the task's")
    sampler: Literal["default", "first_n"] | None = Field(
        None,
        description="examples drawn for each question, or the first ones for all; absent: the task's",
    )
    limit: PositiveInt | None = Field(None, description="ask only the first questions; of each task of a group")
    data: str | None = Field(None, description="file of the questions, relative to the recipe")
    fewshot_data: str | None = Field(None, description="file of the examples; absent: they are drawn from data")
    chat_template: bool = Field(False, description="put the questions in the model's chat template")
    system: str | None = Field(None, description="system prompt before every question")
    bos: Literal["auto", "always", "never"] = Field(
        "auto", description="whether a prompt begins with BOS; auto is the tokenizer's habit"
    )
    cluster: str | None = Field(
        None, description="field of the data by which questions belong together (one passage's), for the intervals"
    )
    seed: NonNegativeInt = Field(1234, description="draws the examples, and generated text where a task samples")


class Divergence(Strict):
    """KL divergence and agreement with the baseline, on the text of ``perplexity``."""


class Memory(Strict):
    """Stored weights by role, and the peaks of each phase."""


class Throughput(Strict):
    """Prefill and decode, timed apart over a grid of batch sizes and prompt lengths."""

    batch_sizes: PositiveInts = Field((1,), description="sequences run at one time")
    prompt_tokens: PositiveInts = Field((128,), description="lengths of the prompts")
    new_tokens: int = Field(32, ge=2, description="decoding steps; an end of sequence does not end them")
    warmup: PositiveInt = Field(1, description="iterations of the same work before the timed ones")
    iterations: PositiveInt = Field(3, description="timed iterations in each process")


class Measure(Strict):
    """What is measured. A metric that is absent is not measured."""

    perplexity: Annotated[
        tuple[Perplexity, ...],
        BeforeValidator(_one_or_many, json_schema_input_type=Perplexity | list[Perplexity]),
        Field(min_length=1),
    ] = ()
    divergence: Divergence | None = None
    memory: Memory | None = None
    throughput: Throughput | None = None
    tasks: tuple[Annotated[Task, BeforeValidator(_task, json_schema_input_type=str | Task)], ...] = ()
    energy: NotBuilt = None


class Limits(Strict):
    """What one run may take before it is ended and recorded."""

    time: Seconds | None = Field(None, description="wall time of one run, such as 10m")
    memory: Bytes | None = Field(
        None, description="private memory of one run on the host, such as 8GiB; a GPU's is not limited"
    )


def _scope(value: Any) -> Any:
    return {"quantize": value} if isinstance(value, str) else value


def _model(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


def _method(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, MethodEntry):
        return value
    if isinstance(value, dict) and set(value) == {"name", "params"}:
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise PydanticCustomError(
            "method", "expected a method's name, or one name with its parameters: {{rtn: {{bits: 4}}}}"
        )
    ((name, params),) = value.items()
    if params is not None and not isinstance(params, dict):
        raise PydanticCustomError("method", "expected a mapping of parameters, such as {{bits: [8, 4]}}")
    return {"name": name, "params": params or {}}


AnyMethod = Annotated[
    MethodEntry, BeforeValidator(_method, json_schema_input_type=str | dict[str, dict[str, Any] | None])
]


class Recipe(Strict):
    """A sweep: models × methods × engines, and what is measured of each.

    A list under a method's parameter expands into one variant per value.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also the folder of its results")
    models: tuple[Annotated[Model, BeforeValidator(_model, json_schema_input_type=str | Model)], ...] = Field(
        min_length=1, description="what is quantized; an entry may be just its id"
    )
    methods: tuple[AnyMethod, ...] = Field(
        min_length=1, description="names, or {name: {parameter: value or list of values}}"
    )
    engines: Annotated[tuple[str, ...], AfterValidator(_distinct)] = Field(
        ("transformers",), min_length=1, description="what runs the variants"
    )
    measure: Measure
    baseline: AnyMethod = Field(MethodEntry(name="none"), description="the variant beside which every other stands")
    repetitions: PositiveInt = Field(1, description="fresh processes per variant, of performance only")
    limits: Limits = Limits()
    scope: Annotated[Scope, BeforeValidator(_scope, json_schema_input_type=str | Scope)] = Field(
        Scope(), description="what is quantized; 'decoder' means all of the decoder's matrices"
    )
    calibration: Calibration | None = Field(None, description="the text that calibrated methods see")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is the GPU where one can be used")
    threads: PositiveInt | None = Field(None, description="CPU threads; absent means one per core")
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="attention implementation; absent means the engine's choice"
    )
    exclude: tuple[dict[str, Any], ...] = Field(
        (), description="variants to leave out: those that match every key (model, method, engine, or a parameter)"
    )
    seed: NonNegativeInt = Field(0, description="of prompts, and of methods that draw random numbers")
    extends: NotBuilt = None
    kv_cache: NotBuilt = None
    decode_mode: NotBuilt = None
    gates: NotBuilt = None
    price: NotBuilt = None

    _file: YamlFile | None = PrivateAttr(None)

    def error(self, location: Location, message: str) -> RecipeError:
        """A RecipeError that names file, line and key."""
        return recipe_error(self._file, location, message)

    @property
    def folder(self) -> Path:
        """Where relative paths of the recipe begin."""
        return self._file.path.resolve().parent if self._file else Path.cwd()


def load_recipe(path: str | Path) -> Recipe:
    """Reads and checks a recipe file. Raises RecipeError, whose text lists every fault found."""
    file = read_yaml(Path(path))
    try:
        recipe = Recipe.model_validate_json(json.dumps(file.data, default=str))
    except ValidationError as error:
        faults = dict.fromkeys(str(recipe_error(file, *explain(fault, Recipe))) for fault in causes(error.errors()))
        raise RecipeError("\n".join(faults)) from None
    recipe._file = file
    return recipe
