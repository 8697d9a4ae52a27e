"""Texts in a recipe: for evaluation and for calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.core.strict import Strict
from harness.recipe.fields import MAX_SAMPLES, MAX_TOKENS, Bos, Commit, Located, Name, Seed

MAX_CALIBRATION_TOKENS = 2**27
"""Tokens of a whole calibration set."""


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

    @model_validator(mode="after")
    def _one_source(self) -> Text:
        if sum(source is not None for source in (self.name, self.file, self.hub)) != 1:
            raise PydanticCustomError("text", "expected exactly one of name, file and hub")
        if self.hub is not None and (self.split is None or self.revision is None):
            raise PydanticCustomError("text", "a hub text needs split and revision so that the run can be repeated")
        if self.hub is None and (self.config or self.split or self.revision):
            raise PydanticCustomError("text", "config, split and revision are only for a hub text")
        return self


AnyText = Annotated[Text, BeforeValidator(_text, json_schema_input_type=str | Text)]


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
