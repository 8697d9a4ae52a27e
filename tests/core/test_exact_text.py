"""Values as text: what is read back is what was written, to the last bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.exact_text import as_text, builder


@dataclass(frozen=True)
class _Part:
    name: str
    size: float | None = None


@dataclass(frozen=True)
class _Checked:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")


@dataclass(frozen=True)
class _Whole:
    value: float | str
    part: _Part | None
    parts: tuple[_Part, ...] = ()
    pair: tuple[str, _Checked] | None = None
    by_name: Mapping[str, tuple[_Part, ...]] = field(default_factory=dict)
    by_number: Mapping[float, int] = field(default_factory=dict)


PARTS = st.builds(_Part, st.text(), st.none() | st.floats(allow_nan=False))
WHOLES = st.builds(
    _Whole,
    st.floats(allow_nan=False) | st.integers() | st.text(),
    st.none() | PARTS,
    st.lists(PARTS).map(tuple),
    st.none() | st.tuples(st.text(), st.builds(_Checked, st.integers(0))),
    st.dictionaries(st.text(), st.lists(PARTS).map(tuple)),
    st.dictionaries(st.floats(allow_nan=False), st.integers()),
)


def read(kind: Any, text: str) -> Any:
    return builder(kind)(json.loads(text))


@given(WHOLES)
def test_a_value_is_read_back_as_it_was_written(value: _Whole) -> None:
    text = as_text(value)
    assert "\n" not in text
    found = read(_Whole, text)
    assert found == value
    assert repr(found) == repr(value)


def test_numbers_that_json_lacks_and_those_of_numpy_are_kept() -> None:
    assert math.isnan(read(_Part, as_text(_Part("nan", math.nan))).size)
    assert read(_Part, as_text(_Part("least", -math.inf))).size == -math.inf
    assert repr(read(_Part, as_text(_Part("zero", np.float64(-0.0)))).size) == "-0.0"


def test_what_has_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="object cannot be kept"):
        as_text(_Part("other", object()))  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [[1], [1, "a", 2]])
def test_a_tuple_of_another_length_is_not_read(parts: list[object]) -> None:
    assert builder(tuple[int, str])([1, "a"]) == (1, "a")
    with pytest.raises(ValueError, match="parts of a tuple of 2"):
        builder(tuple[int, str])(parts)


@pytest.mark.parametrize("values", [[], ["a", 1.0, 2.0]])
def test_a_dataclass_of_other_fields_is_not_read(values: list[object]) -> None:
    with pytest.raises(ValueError, match="argument 2"):
        builder(_Part)(values)
