"""How numbers are written."""

from __future__ import annotations

import math

import pytest

from harness.figures.formats import BINARY, DECIMAL, duration, signed, significant, size_unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0041513, "0.00415"),
        (19.4111, "19.4"),
        (999.96, "1000"),
        (9.996, "10.0"),
        (5883.9, "5884"),
        (0, "0"),
        (-0.0213, "−0.0213"),
        (1.8924e-9, "1.89e−09"),
        (12345678, "1.23e+07"),
        (math.inf, "∞"),
        (math.nan, "NaN"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


def test_signed() -> None:
    assert (signed(0.369), signed(-0.369), signed(0)) == ("+0.369", "−0.369", "0")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.021, "0.021 s"), (4.204, "4.2 s"), (59.7, "60 s"), (184.3, "3 min 04 s"), (3720, "1 h 02 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_gigabyte_is_not_a_gibibyte() -> None:
    assert (size_unit([10**9], DECIMAL).name, size_unit([10**9], BINARY).name) == ("GB", "MiB")
    assert (size_unit([2**30], DECIMAL).bytes, size_unit([2**30], BINARY).bytes) == (10**9, 2**30)


def test_one_unit_for_a_column_goes_by_its_largest() -> None:
    assert size_unit([5, 2 * 10**9], DECIMAL).name == "GB"
    assert size_unit([], DECIMAL).name == "kB"
