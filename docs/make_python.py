"""The site's reference of the public functions, from the package: ``python docs/make_python.py`` prints it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import harness

INTRO = """\
# Python

What `import harness` offers. Each name is imported when it is first used; the types it names are those of the
[records](results.md) and of [recipes](recipe-reference.md)."""


def render() -> str:
    """The whole page."""
    return "\n\n".join([INTRO, *(part for name in harness.__all__ for part in _function(name))]) + "\n"


def _function(name: str) -> Iterator[str]:
    function = getattr(harness, name)
    yield f"## harness.{name}"
    yield f"```python\n{name}(\n{_parameters(function)}) -> {inspect.signature(function).return_annotation}\n```"
    yield inspect.getdoc(function).replace("``", "`")


def _parameters(function: object) -> str:
    lines, keyword_only = [], False
    for each in inspect.signature(function).parameters.values():
        if each.kind is each.KEYWORD_ONLY and not keyword_only:
            lines, keyword_only = [*lines, "    *,"], True
        lines.append(f"    {each},")
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    print(render(), end="")
