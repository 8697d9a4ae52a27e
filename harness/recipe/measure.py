"""The `measure` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.core.strict import Strict
from harness.recipe.fields import (
    MAX_ENTRIES,
    MAX_SAMPLES,
    MAX_TOKENS,
    BatchSizes,
    Bos,
    Bytes,
    Delay,
    Iterations,
    Lengths,
    Located,
    Name,
    Plain,
    Prose,
    Rates,
    Seconds,
    Seed,
    Share,
    Tokens,
    one_or_many,
)
from harness.recipe.text import AnyScoredText, AnyText, ScoredText, Text

MAX_CELLS = 1024
"""Points of one grid: batch sizes × prompt lengths."""
MAX_ANSWERS = 1024
"""Answers to one question."""
MAX_TEMPERATURE = 10.0
MAX_REQUESTS = 100_000
USUAL_REQUESTS = 64
"""Of each level of load, if the recipe names neither requests nor a duration."""
"""Requests at one level of load."""
MAX_BISECT = 10
MAX_EXAMPLES = 1000
"""Answered examples before each question."""


def _task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Perplexity(Strict):
    """Which text is scored, and with which protocol. In a list, each entry gets its own table."""

    text: AnyScoredText = Field(
        ScoredText(name="demo"), description="a text's name, a file's path, a hub data set, or one that is generated"
    )
    protocol: Literal["gptq", "lm-eval", "llama.cpp", "sliding"] = Field(
        "gptq", description="how the text is joined, split and scored; named after the tool it reproduces"
    )
    context: Annotated[int, Field(ge=2, le=MAX_TOKENS)] | None = Field(
        None, description="tokens per window; default: 512 for llama.cpp, otherwise 2048"
    )
    stride: Tokens | None = Field(
        None, description="tokens between window starts, only for sliding; default: half the context"
    )
    bos: Bos = Field("auto", description="whether BOS is added where the protocol puts it; auto follows the tokenizer")
    windows: Annotated[int, Field(gt=0, le=MAX_TOKENS)] | None = Field(
        None, description="score only the first windows (lm-eval: the whole documents in them); default: all"
    )


class Task(Strict):
    """One task, group or tag of lm-eval, and how its questions are asked.

    An entry may be just its name. ``data`` and ``fewshot_data`` are JSON lines files with the fields of the task's own
    data set. Without them the data set comes from the hub.

    ``samples``, ``temperature``, ``top_p``, ``new_tokens`` and ``think_end_token`` are for tasks whose answers the
    model writes. Without them it writes one answer as the task says, usually the likeliest, and all of it is scored.
    """

    name: Located = Field(description="a name that lm-eval knows, tool-calls, or the path of a task's YAML file")
    fewshot: Annotated[int, Field(ge=0, le=MAX_EXAMPLES)] | None = Field(
        None, description="answered examples before each question; default: the task's"
    )
    sampler: Literal["default", "first_n"] | None = Field(
        None,
        description="examples drawn per question, or the first ones for all; default: the task's",
    )
    limit: Annotated[int, Field(gt=0, le=MAX_SAMPLES)] | None = Field(
        None, description="ask only the first questions (of each task in a group)"
    )
    data: Located | None = Field(
        None, description="file with the questions; a relative path starts at the recipe's folder"
    )
    fewshot_data: Located | None = Field(None, description="file with the examples; default: drawn from data")
    chat_template: bool = Field(False, description="wrap the questions in the model's chat template")
    system: Prose | None = Field(None, description="system prompt before every question")
    bos: Bos = Field("auto", description="whether a prompt begins with BOS; auto follows the tokenizer")
    cluster: Name | None = Field(
        None, description="data field that groups related questions (such as the same passage), for the intervals"
    )
    trust_task_code: bool = Field(
        False,
        description="run the code that the task's YAML file names: `!function` functions and metrics that lm-eval does "
        "not provide; lm-eval's own tasks do not need this",
    )
    seed: Seed = Field(1234, description="seed of the drawn examples, and of text generation if a task samples")
    samples: Annotated[int, Field(gt=0, le=MAX_ANSWERS)] = Field(
        1, description="answers to each question; more than one needs a temperature"
    )
    temperature: Annotated[float, Field(gt=0, le=MAX_TEMPERATURE, allow_inf_nan=False)] | None = Field(
        None,
        description="answers are drawn at this temperature, each from a seed of its own; default: as the task says",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="draw from the likeliest tokens that together have this probability; needs a temperature"
    )
    new_tokens: Tokens | None = Field(
        None, description="most tokens of an answer, thinking included; default: the task's, usually 256"
    )
    think_end_token: Name | None = Field(
        None,
        description="what ends the model's thinking, such as `</think>`: only what follows the last is scored, as by "
        "lm-eval with its argument of that name; default: all that is written",
    )

    @model_validator(mode="after")
    def _draws(self) -> Task:
        if self.temperature is None and (self.samples > 1 or self.top_p < 1):
            named = f"samples: {self.samples}" if self.samples > 1 else f"top_p: {self.top_p:g}"
            raise PydanticCustomError(
                "temperature",
                "{named} needs a temperature beside it, such as temperature: 0.6; without one all answers are equal",
                {"named": named},
            )
        return self


class Divergence(Strict):
    """KL divergence and agreement with the baseline, on the text of ``perplexity``."""


class Memory(Strict):
    """Stored weights by role, the memory peak of each phase and, with ``throughput``, the key-value cache."""

    budget: Bytes | None = Field(
        None, description="memory budget: the report gives the longest context and the largest batch that fit"
    )


class Energy(Strict):
    """Joules per token at every point of ``throughput`` and load of ``serving``, if the machine has energy counters."""


class Throughput(Strict):
    """Prefill and decode, timed separately over a grid of batch sizes and prompt lengths."""

    batch_sizes: BatchSizes = Field((1,), description="sequences per batch")
    prompt_tokens: Lengths = Field((128,), description="prompt lengths in tokens")
    new_tokens: int = Field(
        32, ge=2, le=MAX_TOKENS, description="decoding steps; an end-of-sequence token does not stop them"
    )
    warmup: Iterations = Field(1, description="untimed iterations before the timed ones")
    iterations: Iterations = Field(3, description="timed iterations in each process")

    @model_validator(mode="after")
    def _fits(self) -> Throughput:
        if len(self.batch_sizes) * len(self.prompt_tokens) > MAX_CELLS:
            raise PydanticCustomError(
                "grid",
                "expected at most {limit} points of the grid, batch sizes × prompt lengths; name fewer",
                {"limit": MAX_CELLS},
            )
        if max(self.batch_sizes) * (max(self.prompt_tokens) + self.new_tokens) > MAX_TOKENS:
            raise PydanticCustomError(
                "grid",
                "expected at most {limit} tokens in a batch, batch size × (prompt_tokens + new_tokens); "
                "name smaller ones",
                {"limit": MAX_TOKENS},
            )
        return self


class ServingPrompts(Strict):
    """What the requests of a load ask. A text's own rows have their real lengths."""

    text: AnyText = Field(Text(name="demo"), description="a text's name, a file's path, or a hub data set")
    tokens: Annotated[int, Field(gt=0, le=MAX_TOKENS)] | Literal["rows"] = Field(
        128, description="tokens of each prompt, which is cut from the text; or rows: each prompt is a row of it"
    )


class ServingSlo(Strict):
    """What a request must meet; with `attainment` of the requests that meet every limit, a load holds the SLO."""

    ttft: Delay | None = Field(None, description="time to the first token, such as 500ms")
    tpot: Delay | None = Field(None, description="time per output token after the first")
    itl: Delay | None = Field(
        None,
        description="time between two tokens, for 95% of a request's; TPOT where tokens arrive in bursts",
    )
    e2e: Delay | None = Field(None, description="time to the last token")
    attainment: Share = Field(0.9, description="the share of the requests that must meet all limits")

    @model_validator(mode="after")
    def _limits(self) -> ServingSlo:
        if self.ttft is self.tpot is self.itl is self.e2e is None:
            raise PydanticCustomError("grid", "expected a limit: ttft, tpot, itl or e2e")
        return self


class Serving(Strict):
    """A server under load: latencies, throughput and goodput at each level, on engines that serve."""

    arrival: Literal["concurrent", "poisson", "constant"] = Field(
        "concurrent",
        description="so many requests at a time, or by a schedule: at random or evenly at so many a second",
    )
    concurrency: BatchSizes | None = Field(
        None, description="levels of load if arrival is concurrent: requests at the same time"
    )
    rates: Rates | None = Field(None, description="levels of load if arrival is a schedule: requests per second")
    prompts: ServingPrompts = Field(ServingPrompts(), description="the prompts, the same for every variant")
    new_tokens: Tokens = Field(64, description="tokens of each answer")
    length: Literal["fixed", "natural"] = Field(
        "fixed",
        description="fixed: an end-of-sequence token ends no answer; natural: it does, new_tokens at the latest",
    )
    warmup: Annotated[int, Field(ge=0, le=MAX_REQUESTS)] = Field(
        4, description="requests at the beginning of each level that do not count"
    )
    requests: Annotated[int, Field(gt=1, le=MAX_REQUESTS)] | None = Field(
        None, description="requests of each level, after those to warm up; default: 64 unless duration is given"
    )
    duration: Seconds | None = Field(None, description="of each level, instead of requests; only with rates")
    slo: ServingSlo | None = Field(None, description="what a request must meet, for goodput and the largest load")
    bisect: Annotated[int, Field(ge=0, le=MAX_BISECT)] = Field(
        0, description="levels measured between the highest that holds the SLO and the next, each halfway"
    )

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels of load, rising."""
        return tuple(sorted(map(float, self.concurrency or self.rates or ())))

    @model_validator(mode="after")
    def _fits(self) -> Serving:
        scheduled = self.arrival != "concurrent"
        wanted, other = ("rates", "concurrency") if scheduled else ("concurrency", "rates")
        problems = {
            f"expected '{wanted}' beside arrival {self.arrival}": getattr(self, wanted) is None,
            f"arrival {self.arrival} has {wanted}, not {other}": getattr(self, other) is not None,
            "expected requests or duration, not both": self.requests is not None and self.duration is not None,
            "a duration needs rates: with arrival concurrent, say how many requests": not scheduled
            and self.duration is not None,
            "more requests wait at the same time than a level has: raise requests, or lower concurrency": not scheduled
            and bool(self.levels)
            and self.levels[-1] > self.warmup + (self.requests or USUAL_REQUESTS),
            "bisect needs an slo: it looks for the largest load that holds it": self.bisect > 0 and self.slo is None,
        }
        for problem, present in problems.items():
            if present:
                raise PydanticCustomError("grid", "{problem}", {"problem": problem})
        if self.duration is not None and not self.warmup + 2 <= self.duration * self.levels[0] <= MAX_REQUESTS:
            raise PydanticCustomError(
                "grid",
                "expected a duration in which {least} to {most} requests come at every rate, those to warm up included",
                {"least": self.warmup + 2, "most": MAX_REQUESTS},
            )
        return self


class Measure(Strict):
    """What is measured. A metric that is not listed is not measured.

    Any other key is the name of a plugin's metric, with a mapping of its parameters.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, dict[Name, Plain]]

    perplexity: Annotated[
        tuple[Perplexity, ...],
        BeforeValidator(one_or_many, json_schema_input_type=Perplexity | list[Perplexity]),
        Field(min_length=1, max_length=MAX_ENTRIES),
    ] = ()
    divergence: Divergence | None = None
    memory: Memory | None = None
    throughput: Throughput | None = None
    tasks: Annotated[
        tuple[Annotated[Task, BeforeValidator(_task, json_schema_input_type=str | Task)], ...],
        Field(max_length=MAX_ENTRIES),
    ] = ()
    energy: Energy | None = None
    serving: Serving | None = None

    @property
    def of_plugins(self) -> Mapping[str, Mapping[str, Any]]:
        """The parameters of each plugin's metric, by its name."""
        return self.__pydantic_extra__ or {}
