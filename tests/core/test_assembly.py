"""Assembled dataclasses equal those that their own constructor makes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.assembly import assembler


@dataclass(frozen=True)
class _Plain:
    first: int
    second: str = "none"
    third: tuple[int, ...] = ()
    fourth: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Checked:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")


@given(
    st.fixed_dictionaries(
        {"first": st.integers()},
        optional={"second": st.text(), "third": st.tuples(st.integers()), "fourth": st.lists(st.integers())},
    )
)
def test_what_is_assembled_equals_what_is_constructed(values: dict[str, object]) -> None:
    made = assembler(_Plain)(values)
    expected = _Plain(**values)  # type: ignore[arg-type]
    assert made == expected
    assert vars(made) == vars(expected)
    assert assembler(_Plain)(values.items()) == expected


def test_no_two_share_what_a_factory_makes() -> None:
    one, other = (assembler(_Plain)({"first": 1}) for _ in range(2))
    assert one.fourth is not other.fourth


@pytest.mark.parametrize("values", [{}, {"second": "x"}])
def test_a_missing_field_is_refused_as_by_the_constructor(values: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="'first'"):
        assembler(_Plain)(values)


def test_a_class_that_checks_itself_still_does() -> None:
    with pytest.raises(ValueError, match="negative"):
        assembler(_Checked)({"size": -1})
