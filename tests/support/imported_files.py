"""The files of the package that others import, however deep: for tests of what must be made anew when code changes."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import harness

ROOT = Path(harness.__file__).parent


def all_imported(names: Iterable[str | None]) -> set[str]:
    """These files and all that they import, by their paths within the package."""
    waiting, known = [Path(name) for name in names if name], set[Path]()
    while waiting:
        path = waiting.pop()
        if path not in known:
            known.add(path)
            waiting += _imported(path)
    return {str(path.relative_to(ROOT)) for path in known}


def _imported(path: Path) -> set[Path]:
    """The files of the package that a file imports, anywhere in it."""
    found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module)
    names = {f"{node.module}.{suffix}".rstrip(".") for node in found for suffix in ("", *(e.name for e in node.names))}
    places = (ROOT.parent / name.replace(".", "/") for name in names if name.startswith("harness."))
    files = {each for place in places for each in (place.with_suffix(".py"), place / "__init__.py")}
    return {each for each in files if each.is_file()}
