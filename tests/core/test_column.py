"""Columns: tuples whose values are read when they are used."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.column import LazyColumn
from harness.core.record import Measurement
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
