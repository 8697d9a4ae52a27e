"""Texts in a recipe: for evaluation and for calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.core.strict import Strict
from harness.recipe.fields import MAX_SAMPLES, MAX_TOKENS, Bos, Commit, Located, Name, Seed

MAX_CALIBRATION_TOKENS = 2**27
"""Tokens of a whole calibration set."""
MAX_GENERATED_TOKENS = 2**20
"""Tokens of a generated text. The evidence of a record holds six values for each."""


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"file": value} if "/" in value or Path(value).suffix else {"name": value}


class Text(Strict):
    """A text: a built-in one by ``name``, a local ``file``, or rows of a ``hub`` data set.

    A file is plain text (each line a row) or JSON lines (each ``field`` a row).
    """

    name: Name | None = Field(None, description="a name listed by 'qharness list texts'")
    file: Located | None = Field(None, description="path, relative to the file it is written in")
    hub: Located | None = Field(None, description="id of a data set on the hub")
    config: Name | None = Field(None, description="configuration of the data set")
    split: Name | None = Field(None, description="split of the data set; needed with hub")
    revision: Commit | None = Field(None, description="commit of the data set; needed with hub")
    field: Name = Field("text", description="the field to read from JSON lines or from a data set's rows")

    @property
    def _sources(self) -> Mapping[str, object]:
        return {"name": self.name, "file": self.file, "hub": self.hub}

    @model_validator(mode="after")
    def _one_source(self) -> Text:
        if sum(source is not None for source in self._sources.values()) != 1:
            *first, last = self._sources
            names = f"{', '.join(first)} and {last}"
            raise PydanticCustomError("text", "expected exactly one of {names}", {"names": names})
        if self.hub is not None and (self.split is None or self.revision is None):
            raise PydanticCustomError("text", "a hub text needs split and revision so that the run can be repeated")
        if self.hub is None and (self.config or self.split or self.revision):
            raise PydanticCustomError("text", "config, split and revision are only for a hub text")
        return self


AnyText = Annotated[Text, BeforeValidator(_text, json_schema_input_type=str | Text)]


class Generated(Strict):
    """A text that the baseline writes once, and on which all variants are scored: what the model says by itself.

    At temperature 1 the mean KL on it, times the tokens of an answer, is the divergence of whole answers.
    """

    prompts: AnyText = Field(
        Text(name="demo_prompts"), description="a text whose rows are prompts; empty rows are left out"
    )
    answers: int = Field(16, gt=0, le=MAX_SAMPLES, description="prompts to answer: the first ones of the text")
    tokens: int = Field(
        512, ge=2, le=MAX_TOKENS, description="tokens of a prompt and its answer together, if no end comes before"
    )
    temperature: float = Field(
        1.0, ge=0, le=10, allow_inf_nan=False, description="at which tokens are drawn; 0: the likeliest ones"
    )
    chat_template: bool = Field(False, description="ask each prompt as a user message in the model's chat template")
    seed: Seed = Field(0, description="seed of the drawn tokens")

    @model_validator(mode="after")
    def _fits(self) -> Generated:
        if self.answers * self.tokens > MAX_GENERATED_TOKENS:
            raise PydanticCustomError(
                "grid",
                "expected at most {limit} tokens, answers × tokens; name fewer or shorter answers",
                {"limit": MAX_GENERATED_TOKENS},
            )
        return self


class ScoredText(Text):
    """A text to score: one that exists, or one that is ``generated``."""

    generated: Generated | None = Field(None, description="a text that the baseline writes itself")

    @property
    def _sources(self) -> Mapping[str, object]:
        return {**super()._sources, "generated": self.generated}


AnyScoredText = Annotated[ScoredText, BeforeValidator(_text, json_schema_input_type=str | ScoredText)]


class Calibration(Strict):
    """The calibration text: every calibrated method gets the same token ids.

    ``concat`` joins the text's rows and cuts blocks, ``crop`` takes one stretch from each row that is long enough,
    ``pad`` takes one row per sample, truncated or padded to the length.
    """

    text: AnyText = Field(Text(name="demo_calibration"), description="a text's name, a file's path, or a hub data set")
    samples: int = Field(
        128, gt=0, le=MAX_SAMPLES, description="number of sequences; fewer, with a note, if the text holds fewer"
    )
    length: int = Field(512, ge=8, le=MAX_TOKENS, description="tokens per sequence")
    packing: Literal["concat", "crop", "pad"] = Field("concat", description="how sequences are made from rows")
    bos: Bos = Field("auto", description="whether a sequence begins with BOS; auto follows the tokenizer")
    chat_template: bool = Field(False, description="wrap each row as a user message in the model's chat template")
    seed: Seed = Field(0, description="seed for drawing sequences if the text holds more")

    @model_validator(mode="after")
    def _fits(self) -> Calibration:
        if self.samples * self.length > MAX_CALIBRATION_TOKENS:
            raise PydanticCustomError(
                "grid",
                "expected at most {limit} tokens, samples × length; name fewer or shorter samples",
                {"limit": MAX_CALIBRATION_TOKENS},
            )
        return self
