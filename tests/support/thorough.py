"""Parameters of a test of which ``make test`` takes a few, and ``make test-thorough`` all others."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest

PARAMETERS = type(pytest.param())


def all_thorough_but(few: Container[Any], every: Iterable[Any]) -> list[Any]:
    """Every parameter, or tuple of parameters, marked thorough unless it is one of the few.

    What is a ``pytest.param`` already keeps its own marks and gets no other.
    """
    return [each if isinstance(each, PARAMETERS) else _marked(each, each not in few) for each in every]


def _marked(given: Any, is_thorough: bool) -> Any:
    values = given if isinstance(given, tuple) else (given,)
    return pytest.param(*values, marks=[pytest.mark.thorough] * is_thorough)
