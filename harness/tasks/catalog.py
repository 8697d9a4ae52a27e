"""Finds the file that defines an lm-eval task by its name, without importing lm-eval or building its index.

lm-eval's own index parses 14,000 YAML files, which takes 15 s. This module reads only the few lines that give
names, as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from harness.errors import UsageError
from harness.tasks.trust import package

OWN = Path(__file__).parent / "tool_calls"
"""The folder of the project's own definitions."""
_KEY = re.compile(
    r"""^["']?(task|group|tag|include|class|dataset_path|output_type)["']?:[ \t]*(.*)\n((?:[ \t]*-[ \t]*.*\n)*)""",
    re.MULTILINE,
)
_WORD = re.compile(r"[^\s\"',\[\]-][^\s\"',\[\]]*")


@dataclass(frozen=True)
class Catalog:
    """The definitions in a folder: ``paths`` by name of task or group, and the tasks of each tag in ``tags``."""

    paths: Mapping[str, Path]
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def members(self, name: str) -> tuple[str, ...]:
        """The task or group of that name, or the tasks of that tag. Raises UsageError for a name that is neither."""
        if name in self.paths:
            return (name,)
        if name in self.tags:
            return self.tags[name]
        near = get_close_matches(name, [*self.paths, *self.tags], n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else "'lm-eval ls tasks' lists those it has"
        raise UsageError(f"lm-eval knows no task {name!r}; {hint}")

    def data_set(self, name: str) -> str | None:
        """The data set that a task reads, by the name in its definition, such as ``allenai/ai2_arc``.

        A group has the one that all of its tasks read. None if there is no such task, or no such data set.
        """
        found = set(self._data_sets(name, set()))
        return found.pop() if len(found) == 1 else None

    def _data_sets(self, name: str, seen: set[str]) -> Iterator[str | None]:
        if name in seen or name not in self.paths:
            yield None
            return
        seen.add(name)
        keys = _keys_of(self.paths[name])
        members = keys.get("task", []) if _is_group(keys) else []
        for member in members:
            for each in self.tags.get(member, (member,)):
                yield from self._data_sets(each, seen)
        if not members:
            yield next(iter(_inherited(self.paths[name], keys, "dataset_path")), None)


@cache
def catalog() -> Catalog:
    """The tasks of the installed lm-eval, and the project's own. Raises UsageError if lm-eval is not installed."""
    theirs, ours = read(package() / "tasks"), read(OWN)
    return Catalog({**theirs.paths, **ours.paths}, {**theirs.tags, **ours.tags})


def is_own(definition: str) -> bool:
    """Whether a definition is one of the project's own tasks, whose questions come with it."""
    return Path(definition).is_relative_to(OWN)


def read(folder: Path) -> Catalog:
    """The catalog of a folder. If two definitions share a name, the first in path order counts, as in lm-eval."""
    paths: dict[str, Path] = {}
    tags: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        keys = _keys_of(path)
        for name in _names(keys):
            if name not in paths:
                paths[name] = path
                for tag in () if _is_group(keys) else _tags(path, keys):
                    tags.setdefault(tag, set()).add(name)
    return Catalog(paths, {tag: tuple(sorted(members)) for tag, members in tags.items()})


def read_names(path: Path) -> list[str]:
    """The name in a definition, as a list of one, or an empty list."""
    return _names(_keys_of(path))


def output_types(path: Path) -> frozenset[str]:
    """How a definition's task gets answers, such as by ``generate_until``; a group has the ways of all its tasks.

    Empty if that is not known from the files, as for a task that is defined by a class.
    """
    return frozenset(_output_types(path, set()))


def _output_types(path: Path, seen: set[Path]) -> Iterator[str]:
    if path in seen:
        return
    seen.add(path)
    keys = _keys_of(path)
    yield from _inherited(path, keys, "output_type")
    members = keys.get("task", []) if _is_group(keys) else []
    known = catalog() if members else None
    for member in members:
        for each in known.tags.get(member, (member,)) if known else ():
            if known and each in known.paths:
                yield from _output_types(known.paths[each], seen)


def _names(keys: Mapping[str, list[str]]) -> list[str]:
    return keys.get("group" if _is_group(keys) else "task", [])[:1]


def _is_group(keys: Mapping[str, list[str]]) -> bool:
    """Whether a definition is a group. One with ``class`` is a task, and its ``group`` is the group it belongs to."""
    return "group" in keys and "class" not in keys


def _keys_of(path: Path) -> dict[str, list[str]]:
    """The words under the keys that ``_KEY`` matches, as written in the file."""
    text = path.read_text(encoding="utf-8", errors="replace") + "\n"
    return {
        key: [word for line in (inline, *listed.splitlines()) for word in _WORD.findall(line.partition(" #")[0])]
        for key, inline, listed in _KEY.findall(text)
    }


def _tags(path: Path, keys: Mapping[str, list[str]]) -> list[str]:
    """The tags of a definition, or else those of the files it includes."""
    return _inherited(path, keys, "tag")


def _inherited(path: Path, keys: Mapping[str, list[str]], key: str) -> list[str]:
    """The words under a key of a definition, or else those of the files it includes."""
    if key in keys:
        return keys[key]
    included = [path.parent / name for name in keys.get("include", ())]
    return [word for file in included if file.is_file() for word in _inherited(file, _keys_of(file), key)]
