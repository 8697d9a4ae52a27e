"""Columns: tuples whose values are read when they are used, or are in an array."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.column import BLOCK_VALUES, ArrayColumn, LazyColumn, numbers, texts
from harness.core.json_values import not_finite
from harness.core.record import Measurement, Outcome
from harness.storage.json_codec import decode, encode

FLOATS = st.lists(st.floats(allow_nan=False), max_size=20).map(tuple)


@given(FLOATS, st.data())
def test_a_column_is_like_the_tuple_of_its_values(values: tuple[float, ...], data: st.DataObject) -> None:
    for held in (values, np.array(values, dtype=np.float64)):
        column: LazyColumn[float] = LazyColumn(len(values), lambda held=held: held)  # type: ignore[misc]
        assert column == values
        assert values == column
        assert hash(column) == hash(values)
        assert column != (*values, 1.0)
        assert list(column) == list(values)
        assert repr(column) == repr(values)
        assert pickle.loads(pickle.dumps(column)) == values
        assert np.array_equal(np.asarray(column, dtype=np.float64), np.array(values, dtype=np.float64))
        assert column[1:] == values[1:]
        if values:
            place = data.draw(st.integers(-len(values), len(values) - 1))
            assert type(column[place]) is float
            assert column[place] == values[place]


def test_the_length_is_known_without_reading() -> None:
    def read() -> tuple[float, ...]:
        raise AssertionError("read")

    column: LazyColumn[float] = LazyColumn(3, read)
    assert column
    assert len(column) == 3
    assert column != (1.0,)
    with pytest.raises(AssertionError, match="read"):
        column[0]


def test_a_measurement_with_columns_is_the_one_with_tuples_and_has_its_json() -> None:
    plain = Measurement("nll", 1, "nat", "lower", "paired", (1.0, 2.0), {}, (1.0, 0.5), ("a", "b"), ("x", "x"))
    columns = {
        name: LazyColumn(2, lambda name=name: np.array(getattr(plain, name)))  # type: ignore[misc]
        for name in ("values", "weights", "item_ids", "cluster_ids")
    }
    lazy = Measurement("nll", 1, "nat", "lower", "paired", protocol={}, **columns)  # type: ignore[arg-type]
    assert lazy == plain
    assert hash(lazy.values) == hash(plain.values)
    assert decode(Measurement, json.loads(encode(lazy)), "m") == plain


@given(FLOATS, st.data())
def test_an_array_in_a_column_is_like_a_tuple_and_stays_one(values: tuple[float, ...], data: st.DataObject) -> None:
    column = numbers(values, len(values))
    assert (column, hash(column), repr(column)) == (values, hash(values), repr(values))
    sent = pickle.loads(pickle.dumps(column))
    assert type(sent) is ArrayColumn
    assert sent == values
    if values:
        place = data.draw(st.integers(-len(values), len(values) - 1))
        assert type(column[place]) is float
        assert column[place] == values[place]


def test_nobody_changes_an_array_in_a_column() -> None:
    column = numbers((1.0, 2.0), 2)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(column)[0] = 3.0


def test_texts_are_one_object_each_and_stay_so() -> None:
    names = ("a", "b")
    column = texts((name for name in names for _ in range(2)), 4)
    assert column == ("a", "a", "b", "b")
    assert column[0] is column[1] is names[0]
    assert pickle.loads(pickle.dumps(column)) == column
    assert column.first_not_finite() is None


def test_a_long_column_is_iterated_over_in_blocks() -> None:
    values = tuple(map(float, range(2 * BLOCK_VALUES + 1)))
    assert tuple(numbers(values, len(values))) == values


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_the_first_value_that_is_no_finite_number_is_found(wrong: float) -> None:
    assert numbers((1.0, wrong, wrong), 3).first_not_finite() == 1
    assert numbers((1.0, 2.0), 2).first_not_finite() is None
    m = Measurement("nll", 1, "nat", "lower", "paired", numbers((1.0, wrong), 2))
    assert not_finite(Outcome("ok", measurements=(m,))) == "measurements.0.values.1"


def test_weights_in_a_column_are_checked_too() -> None:
    with pytest.raises(ValueError, match="nll has a negative weight"):
        Measurement("nll", 1, "nat", "lower", "paired", (1.0, 2.0), weights=numbers((1.0, -1.0), 2))


@given(FLOATS.filter(len))
def test_the_mean_of_a_column_is_that_of_the_tuple(values: tuple[float, ...]) -> None:
    plain = Measurement("nll", 1, "nat", "lower", "paired", values)
    columns = replace(plain, values=numbers(values, len(values)))
    assert repr(columns.mean) == repr(plain.mean) == repr(sum(v * 1.0 for v in values) / sum((1.0,) * len(values)))
