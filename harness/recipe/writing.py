"""Writes a recipe's data as a YAML file with comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill, indent
from typing import Any

import yaml

from harness.core.foreign import shown

WIDTH = 110


def commented(data: Mapping[str, Any], head: Sequence[str], comments: Mapping[str, str]) -> str:
    """A YAML file with the texts of ``head`` as comments above it, and above each key its own of ``comments``.

    The first of ``head`` stays one line, however long.
    """
    first, *others = [shown(text) for text in head]
    parts = [
        f"# {first}\n",
        *(fill(text, WIDTH, initial_indent="# ", subsequent_indent="#   ") + "\n" for text in others),
    ]
    for key, value in data.items():
        comment = f"# {comments[key]}\n" if key in comments else ""
        parts.append(f"\n{comment}{key}:{_value(value)}")
    return "".join(parts)


def _value(value: Any) -> str:
    """What follows the colon: on the same line if it holds no lists or mappings of its own."""
    text = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=WIDTH).removesuffix("...\n")
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    nested = any(isinstance(each, dict | list) for each in held)
    return f"\n{indent(text, '  ')}" if nested else f" {text}"
