"""What a recipe wants measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from harness.core.strict import Strict
from harness.recipe.fields import Bos, Bytes, PositiveInts, one_or_many
from harness.recipe.text import AnyText, Text


def _task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


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
    bos: Bos = Field("auto", description="whether BOS stands where the protocol puts it; auto is the tokenizer's habit")
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
    data: str | None = Field(None, description="file of the questions; a relative path begins at the recipe's folder")
    fewshot_data: str | None = Field(None, description="file of the examples; absent: they are drawn from data")
    chat_template: bool = Field(False, description="put the questions in the model's chat template")
    system: str | None = Field(None, description="system prompt before every question")
    bos: Bos = Field("auto", description="whether a prompt begins with BOS; auto is the tokenizer's habit")
    cluster: str | None = Field(
        None, description="field of the data by which questions belong together (one passage's), for the intervals"
    )
    trust_task_code: bool = Field(
        False,
        description="run the code that the task's YAML file names: functions by `!function`, and metrics that lm-eval "
        "does not bring; lm-eval's own tasks need no such trust",
    )
    seed: NonNegativeInt = Field(1234, description="draws the examples, and generated text where a task samples")


class Divergence(Strict):
    """KL divergence and agreement with the baseline, on the text of ``perplexity``."""


class Memory(Strict):
    """Stored weights by role, the peaks of each phase, and beside ``throughput`` the key-value cache."""

    budget: Bytes | None = Field(
        None, description="memory for which the longest context and the largest batch are worked out"
    )


class Energy(Strict):
    """Joules per token of prefill and decode at every point of ``throughput``, where the machine counts them."""


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
        BeforeValidator(one_or_many, json_schema_input_type=Perplexity | list[Perplexity]),
        Field(min_length=1),
    ] = ()
    divergence: Divergence | None = None
    memory: Memory | None = None
    throughput: Throughput | None = None
    tasks: tuple[Annotated[Task, BeforeValidator(_task, json_schema_input_type=str | Task)], ...] = ()
    energy: Energy | None = None
