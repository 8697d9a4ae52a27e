"""Reads one YAML mapping and remembers the file and line of each key.

YAML allows things that no recipe needs, such as duplicate keys and anchors that expand without end. They are rejected
here, with their line, before anything is built from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.core.foreign import quoted, read_file, shown
from harness.core.plain import MAX_DEPTH, MAX_VALUES, fault_in_scalar
from harness.errors import RecipeError

MAX_BYTES = 2**17
"""Of one YAML file. The parser takes about a second for as much of the densest YAML."""

_STANDARD = "tag:yaml.org,2002:"
_TAGS = {
    yaml.MappingNode: frozenset({"map"}),
    yaml.SequenceNode: frozenset({"seq"}),
    yaml.ScalarNode: frozenset({"str", "int", "float", "bool", "null", "timestamp"}),
}
"""The tags that a recipe may use, by kind of node."""

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlPlace:
    """A line of a file, 1-based."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{shown(self.path)}:{self.line}"


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
    """Raises RecipeError if the file cannot be read, is not YAML, is not a mapping, or exceeds a limit."""
    root = compose(path, "a recipe is a mapping of keys to values, such as 'name: my-sweep'")
    _reject_explosion(path, root)
    result = YamlFile(path, {})
    result.data = _build(result, root, ())
    return result


def compose(path: Path, expected: str) -> yaml.MappingNode:
    """The nodes of a YAML file, before any data is built from them.

    Raises RecipeError if the file cannot be read, is not YAML, is not a mapping, or holds more bytes, values or levels
    than the limits; ``expected`` says what it should be.
    """
    name, content = shown(path), read_file(path, MAX_BYTES, RecipeError)
    try:
        root = _composed(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: not UTF-8 text ({error.reason})") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{name}:{line}: not valid YAML: {shown(error.problem or str(error.context))}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{name}:1: {expected}")
    return root


def read_scalar(text: str) -> Any:
    """A single value, written as in a recipe: ``4``, ``true``, ``channel``. Raises ValueError for anything else."""
    try:
        node = _composed(text)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.ScalarNode) or node.tag.removeprefix(_STANDARD) not in _TAGS[yaml.ScalarNode]:
        raise ValueError(f"{quoted(text)} cannot be read; put it in quotes if it is text")
    return _value(node)


class _BoundedLoader(yaml.SafeLoader):
    """Stops at the first node that exceeds a limit, before the rest of the text is parsed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        if self._nodes > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES} keys and values", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _composed(text: str) -> yaml.Node | None:
    """Raises YAMLError, whatever is wrong with the text."""
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError):  # from chr(), for an escape such as "\U00110000"
        mark = loader.get_mark()
        raise yaml.MarkedYAMLError(problem="an escape names no character", problem_mark=mark) from None
    finally:
        loader.dispose()


def _value(node: yaml.ScalarNode) -> Any:
    """What a scalar means. Raises ValueError with what is wrong with it."""
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (ValueError, KeyError, IndexError, AttributeError, OverflowError, yaml.YAMLError):
        # what PyYAML raises for a text that does not fit its tag, such as !!int "", !!bool x and !!timestamp x
        raise ValueError(f"{quoted(node.value)} cannot be read; put it in quotes if it is text") from None
    if not isinstance(value, str | int | float | None):
        value = str(value)  # a date
    if (fault := fault_in_scalar(value)) is not None:
        raise ValueError(f"{fault}, not {quoted(node.value) if isinstance(value, str) else quoted(node.value)[1:-1]}")
    return value


def _reject_explosion(path: Path, root: yaml.Node) -> None:
    """Counts nodes and levels after alias expansion, visiting each node once."""
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> tuple[int, int]:
        if id(node) in open_nodes:
            raise RecipeError(f"{shown(path)}:{node.start_mark.line + 1}: the anchor contains itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            below = list(map(size, children))
            sizes[id(node)] = 1 + sum(nodes for nodes, _ in below), 1 + max((depth for _, depth in below), default=0)
            open_nodes.remove(id(node))
        return sizes[id(node)]

    nodes, depth = size(root)
    if nodes > MAX_VALUES:
        raise RecipeError(f"{shown(path)}: aliases expand to more than {MAX_VALUES} values; write the values out")
    if depth > MAX_DEPTH:
        raise RecipeError(f"{shown(path)}: aliases expand to more than {MAX_DEPTH} levels; write the values out")


def _build(file: YamlFile, node: yaml.Node, location: Location) -> Any:
    place = YamlPlace(file.path, node.start_mark.line + 1)
    if node.tag.removeprefix(_STANDARD) not in _TAGS[type(node)]:
        tag = quoted(node.tag.replace(_STANDARD, "!!"))[1:-1]
        raise RecipeError(f"{place}: not valid YAML for a recipe: the tag {tag} is not supported here")
    file.places.setdefault(location, place)
    if isinstance(node, yaml.SequenceNode):
        return [_build(file, item, (*location, index)) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        try:
            return _value(node)
        except ValueError as error:
            raise RecipeError(f"{place}: {error}") from None
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, at = _key(file, key_node), YamlPlace(file.path, key_node.start_mark.line + 1)
        if key in mapping:
            raise RecipeError(f"{at}: duplicate key {quoted(key)}")
        if isinstance(value_node, yaml.ScalarNode) and value_node.tag == f"{_STANDARD}null" and not value_node.value:
            raise RecipeError(f"{at}: the key {quoted(key)} has no value; add one or remove the key")
        file.places[(*location, key)] = at
        mapping[key] = _build(file, value_node, (*location, key))
    return mapping


def _key(file: YamlFile, node: yaml.Node) -> str:
    """A key as it is written. Raises RecipeError for anything but a plain word."""
    place = YamlPlace(file.path, node.start_mark.line + 1)
    tag = node.tag.removeprefix(_STANDARD)
    if tag == "merge":
        raise RecipeError(f"{place}: '<<' is not supported; 'extends' builds on another file")
    if not isinstance(node, yaml.ScalarNode) or tag not in _TAGS[yaml.ScalarNode] or not node.value:
        raise RecipeError(f"{place}: a key must be a plain word")
    if (fault := fault_in_scalar(node.value)) is not None:
        raise RecipeError(f"{place}: {fault} in a key, not {quoted(node.value)}")
    return str(node.value)
