"""Numbers that JSON has no word for are found, and become null."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.json_values import finite, not_finite

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=2) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@dataclass(frozen=True)
class Holder:
    name: str
    values: tuple[float, ...]


def test_the_place_of_the_first_one_is_named() -> None:
    assert not_finite({"a": [1.0, Holder("nan", (0.0, math.nan))], "b": math.inf}) == "a.1.values.1"
    assert not_finite(math.inf) == ""
    assert not_finite({"a": ["nan", 10**400, None, True]}) is None


@given(VALUES)
def test_what_is_finite_is_json_and_nothing_else_changed(value: Any) -> None:
    made = finite(value)
    text = json.dumps(made, allow_nan=False)
    assert not_finite(made) is None
    if not_finite(value) is None:
        assert text == json.dumps(value)
    else:
        assert json.loads(text) == json.loads(json.dumps(value), parse_constant=lambda word: None)


@pytest.mark.parametrize(
    ("value", "expected"), [(1 / 3, 0.3333), (123456.0, 123500.0), (math.nan, None), (12345, 12345)]
)
def test_digits_are_those_of_floats_alone(value: float, expected: float | None) -> None:
    assert finite([value], 4) == [expected]
