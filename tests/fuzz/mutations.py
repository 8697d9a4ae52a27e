"""Changes of JSON values that keep most of their structure: what is wrong is then a field, not the syntax."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30),
    *(0.5, -0.0, 1e308, 1e-320, "", "abc", "1", "-1", "nan", "F32", "model.layers.0.mlp.up_proj.weight", "llama"),
    *(
        "../../etc/passwd",
        "/dev/zero",
        "a/b",
        ".",
        "..",
        "a\nb",
        "\x1b[31mred",
        "\x00",
        "\ud800",
        "é" * 300,
        "x" * 5000,
    ),
    *([], {}, [[]], [{}], {"a": {}}, [0], [-1], ["a"], [None], [1, 2, 3], [2**40, 2**40], {"": None}),
)
"""Values that code that reads JSON seldom expects."""


def changed(value: Any, random: Random) -> Any:
    """A copy of JSON data with one to three changes: a value replaced, removed, added, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return random.choice(HOSTILE)
        holder, key = random.choice(places)
        _change(holder, key, random, places)
    return value


def _change(holder: Any, key: Any, random: Random, places: list[tuple[Any, Any]]) -> None:
    kind = random.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[_name(random)] = holder[key]
    elif kind == 1:
        holder.insert(key, holder[key])
    elif kind == 2 and isinstance(holder, dict):
        holder[_name(random)] = holder.pop(key)
    elif kind == 3:
        other, there = random.choice(places)
        if there in other if isinstance(other, dict) else there < len(other):
            holder[key] = copy.deepcopy(other[there])
    elif kind == 4 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = random.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2))
    elif kind == 5:
        deep: Any = holder[key]
        for _ in range(random.choice((1, 2, 63, 64, 300))):
            deep = [deep] if random.random() < 0.5 else {"a": deep}
        holder[key] = deep
    else:
        holder[key] = copy.deepcopy(random.choice(HOSTILE))


def _name(random: Random) -> str:
    return random.choice([each for each in HOSTILE if isinstance(each, str)])


def _places(value: Any) -> Any:
    """Every place in nested data: the dict or list, and the key or index."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner)
