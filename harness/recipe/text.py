"""What a recipe says of texts: the one that is scored, the one that calibrates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from harness.core.strict import Strict
from harness.recipe.fields import Bos, Commit


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"file": value} if "/" in value or Path(value).suffix else {"name": value}


class Text(Strict):
    """An evaluation text: one of the harness's own by ``name``, a local ``file``, or rows of a ``hub`` data set.

    A file is plain text (each line a row) or JSON lines (each ``field`` a row).
    """

    name: str | None = Field(None, description="one of those that 'qharness list texts' names")
    file: str | None = Field(None, description="path, relative to the file it is written in")
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
    bos: Bos = Field("auto", description="whether a sequence begins with BOS; auto is the tokenizer's habit")
    chat_template: bool = Field(False, description="wrap each row as a user's message in the model's chat template")
    seed: NonNegativeInt = Field(0, description="draws the sequences where the text holds more")
