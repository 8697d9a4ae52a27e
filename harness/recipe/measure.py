"""The `measure` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt

from harness.core.strict import Strict
from harness.recipe.fields import Bos, Bytes, PositiveInts, one_or_many
from harness.recipe.text import AnyText, Text


def _task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Perplexity(Strict):
    """Which text is scored, and with which protocol. In a list, each entry gets its own table."""

    text: AnyText = Field(Text(name="demo"), description="a text's name, a file's path, or a hub data set")
    protocol: Literal["gptq", "lm-eval", "llama.cpp", "sliding"] = Field(
        "gptq", description="how the text is joined, split and scored; named after the tool it reproduces"
    )
    context: Annotated[int, Field(ge=2)] | None = Field(
        None, description="tokens per window; default: 512 for llama.cpp, otherwise 2048"
    )
    stride: PositiveInt | None = Field(
        None, description="tokens between window starts, only for sliding; default: half the context"
    )
    bos: Bos = Field("auto", description="whether BOS is added where the protocol puts it; auto follows the tokenizer")
    windows: PositiveInt | None = Field(
        None, description="score only the first windows (lm-eval: the whole documents in them); default: all"
    )


class Task(Strict):
    """One task, group or tag of lm-eval, and how its questions are asked.

    An entry may be just its name. ``data`` and ``fewshot_data`` are JSON lines files with the fields of the task's own
    data set. Without them the data set comes from the hub.
    """

    name: str = Field(min_length=1, description="a name that lm-eval knows, or the path of a task's YAML file")
    fewshot: NonNegativeInt | None = Field(
        None, description="answered examples before each question; default: the task's"
    )
    sampler: Literal["default", "first_n"] | None = Field(
        None,
        description="examples drawn per question, or the first ones for all; default: the task's",
    )
    limit: PositiveInt | None = Field(None, description="ask only the first questions (of each task in a group)")
    data: str | None = Field(None, description="file with the questions; a relative path starts at the recipe's folder")
    fewshot_data: str | None = Field(None, description="file with the examples; default: drawn from data")
    chat_template: bool = Field(False, description="wrap the questions in the model's chat template")
    system: str | None = Field(None, description="system prompt before every question")
    bos: Bos = Field("auto", description="whether a prompt begins with BOS; auto follows the tokenizer")
    cluster: str | None = Field(
        None, description="data field that groups related questions (such as the same passage), for the intervals"
    )
    trust_task_code: bool = Field(
        False,
        description="run the code that the task's YAML file names: `!function` functions and metrics that lm-eval does "
        "not provide; lm-eval's own tasks do not need this",
    )
    seed: NonNegativeInt = Field(
        1234, description="seed of the drawn examples, and of text generation if a task samples"
    )


class Divergence(Strict):
    """KL divergence and agreement with the baseline, on the text of ``perplexity``."""


class Memory(Strict):
    """Stored weights by role, the memory peak of each phase and, with ``throughput``, the key-value cache."""

    budget: Bytes | None = Field(
        None, description="memory budget: the report gives the longest context and the largest batch that fit"
    )


class Energy(Strict):
    """Joules per token of prefill and decode at every point of ``throughput``, if the machine has energy counters."""


class Throughput(Strict):
    """Prefill and decode, timed separately over a grid of batch sizes and prompt lengths."""

    batch_sizes: PositiveInts = Field((1,), description="sequences per batch")
    prompt_tokens: PositiveInts = Field((128,), description="prompt lengths in tokens")
    new_tokens: int = Field(32, ge=2, description="decoding steps; an end-of-sequence token does not stop them")
    warmup: PositiveInt = Field(1, description="untimed iterations before the timed ones")
    iterations: PositiveInt = Field(3, description="timed iterations in each process")


class Measure(Strict):
    """What is measured. A metric that is not listed is not measured.

    Any other key is the name of a plugin's metric, with a mapping of its parameters.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    perplexity: Annotated[
        tuple[Perplexity, ...],
        BeforeValidator(one_or_many, json_schema_input_type=Perplexity | list[Perplexity]),
        Field(min_length=1),
    ] = ()
    divergence: Divergence | None = None
    memory: Memory | None = None
    throughput: Throughput | None = None
    tasks: tuple[Annotated[Task, BeforeValidator(_task, json_schema_input_type=str | Task)], ...] = ()
    energy: Energy | None = None

    @property
    def of_plugins(self) -> Mapping[str, Mapping[str, Any]]:
        """The parameters of each plugin's metric, by its name."""
        return self.__pydantic_extra__ or {}
