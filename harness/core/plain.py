"""Plain data: what YAML and JSON can hold, within limits that every reader, library and terminal can take."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

MAX_VALUES = 20_000
"""Keys and values in one recipe, with aliases expanded. No recipe that a person writes has more."""
MAX_DEPTH = 32
"""Levels of nesting in a recipe."""
MAX_TEXT = 2**16
"""Characters of any text in a recipe, such as a system prompt."""
MAX_INTEGER = 2**63 - 1
_WHITESPACE = frozenset("\t\n\r")
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They change the order in which a terminal or a page shows the characters after them."""


def fault_in_scalar(value: str | int | float | None) -> str | None:
    """What was expected instead of a value that lies outside the limits; None if it lies inside."""
    if isinstance(value, str):
        return fault_in_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        return "expected a whole number of at most 63 bits"
    return None


def fault_in_text(text: str, whitespace: frozenset[str] = _WHITESPACE) -> str | None:
    """What was expected instead of a text that is too long or holds control characters; None if neither.

    A control character is also half of a surrogate pair, a line separator, and what changes the direction of writing.
    ``whitespace`` are those that are allowed.
    """
    if len(text) > MAX_TEXT:
        return f"expected at most {MAX_TEXT} characters"
    if text.isprintable():
        return None
    if any(each not in whitespace and _is_control(each) for each in text):
        return "expected text without control characters"
    return None


def fault_in(value: Any) -> str | None:
    """What was expected instead of data that are not plain or exceed a limit; None if they are and do not.

    Plain data are texts, numbers, truth values and None, and lists and mappings of them, with texts as keys.
    """
    level, count = [value], 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            count += 1
            if isinstance(each, list | tuple):
                below += each
            elif isinstance(each, dict):
                below += [*each, *each.values()]
                if not all(isinstance(key, str) for key in each):
                    return "expected keys that are text"
            elif each is not None and not isinstance(each, str | int | float):
                return "expected text, numbers, lists and mappings"
            elif (fault := fault_in_scalar(each)) is not None:
                return fault
        if not below:
            return None
        if count + len(below) > MAX_VALUES:
            return f"expected at most {MAX_VALUES} keys and values"
        level = below
    return f"expected at most {MAX_DEPTH} levels of nesting"


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS
