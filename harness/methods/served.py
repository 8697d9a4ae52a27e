"""A model that a server of the user's serves, quantized or not: what the server did is known by its name alone."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from harness.core.format import SERVED_FORMAT
from harness.core.method import Method, MethodParams
from harness.libraries.openai_api import URL, canonical
from harness.recipe.fields import MAX_PATH, Name

MAX_VARIABLE = 100
VARIABLE = re.compile(r"QHARNESS_KEY(_[A-Z0-9_]+)?")
"""By its name the anonymizer (``storage/anonymizer.py``) knows that the value is a secret."""


def _url(value: Any) -> str:
    """Its message does not repeat the value, which may hold a password."""
    if isinstance(value, str) and len(value) <= MAX_PATH and URL.fullmatch(value):
        return canonical(value)
    raise PydanticCustomError(
        "sentence",
        "expected the address of a server, such as http://localhost:8000, without a user, a password or a query; a key "
        "belongs in an environment variable, which api_key_env names",
    )


def _variable(value: Any) -> Any:
    """Its message does not repeat the value, which may be a key by mistake."""
    if value is None or (isinstance(value, str) and len(value) <= MAX_VARIABLE and VARIABLE.fullmatch(value)):
        return value
    raise PydanticCustomError(
        "sentence",
        "expected the name of an environment variable that holds the key, such as QHARNESS_KEY or QHARNESS_KEY_OF_AWQ: "
        "never the key itself, and no other variable, so that a stranger's recipe cannot send your other secrets away",
    )


class ServedParams(MethodParams):
    """``url`` is the server's address and ``model`` what it calls the model.

    ``api_key_env`` names the environment variable that holds its key: QHARNESS_KEY, or QHARNESS_KEY_ and more.
    ``label`` is the name in tables (null: the model's), for servers that call unlike models the same. The address and
    the variable are no part of the variant: a server may move, and its figures stay comparable.
    """

    url: Annotated[str, BeforeValidator(_url)]
    model: Name
    api_key_env: Annotated[str | None, BeforeValidator(_variable)] = None
    label: Name | None = None


SERVED = Method(
    name="served",
    version=1,
    summary="what a server that you run serves, with OpenAI's API; measured on the engine endpoint",
    params=ServedParams,
    writes=SERVED_FORMAT,
)
