"""Reads one YAML mapping and remembers the file and line of each key.

YAML allows things that no recipe needs, such as duplicate keys and anchors that expand without end. They are rejected
here, with their line, before anything is built from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import RecipeError

MAX_NODES = 20_000
"""With aliases expanded. No hand-written recipe has more values than this."""

_STANDARD = "tag:yaml.org,2002:"
_TAGS = frozenset({"map", "seq", "str", "int", "float", "bool", "null", "timestamp"})

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlPlace:
    """A line of a file, 1-based."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass
class YamlFile:
    """The plain data of a YAML file and the place of every key and item.

    ``data`` holds None only where the file says ``null``. After a merge, places may refer to several files.
    """

    path: Path
    data: dict[str, Any]
    places: dict[Location, YamlPlace] = field(default_factory=dict)

    def place_of(self, location: Location) -> YamlPlace:
        """The place of the deepest written part of the location, such as the mapping that lacks a key."""
        written = self.as_written(location)
        for end in range(len(written), 0, -1):
            if written[:end] in self.places:
                return self.places[written[:end]]
        return YamlPlace(self.path, 1)

    def as_written(self, location: Location) -> Location:
        """The location without the indices of entries written alone instead of as a list of one."""
        written: Location = ()
        for part in location:
            if isinstance(part, str) or (*written, part) in self.places:
                written = (*written, part)
        return written


def read_yaml(path: Path) -> YamlFile:
    """Raises RecipeError if the file is missing, is not YAML, is not a mapping, or expands too far."""
    root = compose(path, "a recipe is a mapping of keys to values, such as 'name: my-sweep'")
    _reject_explosion(path, root)
    result = YamlFile(path, {})
    result.data = _build(result, root, ())
    return result


def compose(path: Path, expected: str) -> yaml.MappingNode:
    """The nodes of a YAML file, before any data is built from them.

    Raises RecipeError if the file is missing, is not YAML, or is not a mapping; ``expected`` says what it should be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder; name a file in it") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the file ({error.strerror})") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}:1: {expected}")
    return root


def _scalar(file: YamlFile, node: yaml.Node) -> Any:
    place = f"{file.path}:{node.start_mark.line + 1}"
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (ValueError, KeyError, yaml.YAMLError):
        raise RecipeError(f"{place}: {node.value!r} cannot be read; put it in quotes if it is text") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{place}: expected a finite number, not {node.value}")
    return value


def _reject_explosion(path: Path, root: yaml.Node) -> None:
    """Counts the nodes after alias expansion, visiting each node once."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise RecipeError(f"{path}:{node.start_mark.line + 1}: the anchor contains itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            sizes[id(node)] = 1 + sum(map(size, children))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if size(root) > MAX_NODES:
        raise RecipeError(f"{path}: aliases expand to more than {MAX_NODES} values; write the values out")


def _build(file: YamlFile, node: yaml.Node, location: Location) -> Any:
    line = node.start_mark.line + 1
    if node.tag.removeprefix(_STANDARD) not in _TAGS:
        tag = node.tag.replace(_STANDARD, "!!")
        raise RecipeError(f"{file.path}:{line}: not valid YAML for a recipe: the tag {tag} is not supported")
    file.places.setdefault(location, YamlPlace(file.path, line))
    if isinstance(node, yaml.SequenceNode):
        return [_build(file, item, (*location, index)) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(file, node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        key_line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise RecipeError(f"{file.path}:{key_line}: a key must be a plain word")
        if key in mapping:
            raise RecipeError(f"{file.path}:{key_line}: duplicate key {key!r}")
        if isinstance(value_node, yaml.ScalarNode) and value_node.tag == f"{_STANDARD}null" and not value_node.value:
            raise RecipeError(f"{file.path}:{key_line}: the key {key!r} has no value; add one or remove the key")
        file.places[(*location, key)] = YamlPlace(file.path, key_line)
        mapping[key] = _build(file, value_node, (*location, key))
    return mapping
