"""Finds the files and code that a user's task definition uses, by reading its YAML without running anything.

lm-eval calls what a definition names with ``!function``, and fetches the code of metrics that it does not include.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml

from harness.core.foreign import locate, shown
from harness.core.identity import digest
from harness.errors import UsageError
from harness.recipe.yaml_file import compose
from harness.storage.checksums import file_sha256

MAX_FILES = 100
"""Files that one definition includes, directly or through others."""
FUNCTION = "!function"
_STANDARD = "tag:yaml.org,2002:"
_FOREIGN = f"{_STANDARD}python"
_METRIC = re.compile(r"^@register_metric\(\s*metric=[\"']([^\"']+)[\"']", re.MULTILINE)


@dataclass(frozen=True)
class TaskDefinition:
    """``files`` are the user's own: the definition ``path``, its includes and the modules that it names.

    ``code`` lists, as ``FILE:LINE: …``, the parts that run code from outside lm-eval.
    """

    path: Path
    files: tuple[Path, ...]
    code: tuple[str, ...]

    def hash_content(self) -> str:
        """Identifies the content: the sha256 of a single file, or a hash over the hashes of all files."""
        if not set(self.files) - {self.path}:
            return file_sha256(self.path)
        return digest([(os.path.relpath(file, self.path.parent), file_sha256(file)) for file in self.files])


def definition(path: Path) -> TaskDefinition:
    """Reads a user's definition and everything it includes. Raises UsageError, with the place, for invalid YAML."""
    path, found = path.resolve(), _Reading()
    found.read(path)
    return TaskDefinition(path, tuple(dict.fromkeys(found.files)), (*found.functions, *found.metrics))


@dataclass
class _Reading:
    """What has been found so far."""

    files: list[Path] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)

    def read(self, path: Path) -> None:
        if path in self.seen:
            return
        self.seen.add(path)
        if len(self.seen) > MAX_FILES:
            raise UsageError(f"{shown(path)}: a task's definition includes at most {MAX_FILES} files")
        root = compose(path, "a task's definition is a mapping of keys to values")
        theirs = _is_theirs(path)
        if not theirs:
            self.files.append(path)
        for key, value in _entries(root, set()):
            if key == "include":
                for node in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    self.read(locate(str(node.value), path.parent, UsageError))  # as lm-eval joins them
            if key == "metric_list" and isinstance(value, yaml.SequenceNode) and not theirs:
                self.metrics += [metric for node in value.value for metric in _foreign_metric(path, node)]
        if not theirs:
            for node in _nodes(root, set()):
                self._function(path, node)

    def _function(self, path: Path, node: yaml.Node) -> None:
        if node.tag != FUNCTION and (node.tag.startswith(_STANDARD) and not node.tag.startswith(_FOREIGN)):
            return
        named = f"{node.tag} {node.value}" if isinstance(node, yaml.ScalarNode) else node.tag
        module = _module(path.parent, str(node.value)) if node.tag == FUNCTION else None
        if module is not None and _is_theirs(module):
            return
        if module is not None:
            self.files.append(module)
        self.functions.append(f"{path}:{node.start_mark.line + 1}: {named} runs code that is not part of lm-eval")


def _entries(node: yaml.Node, seen: set[int]) -> Iterator[tuple[str, yaml.Node]]:
    """The keys and values of a mapping and, for a group, of the members defined inside it; visits each node once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for member in node.value:
            yield from _entries(member, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        yield str(key.value), value
        if key.value in ("task", "<<"):
            yield from _entries(value, seen)


def _nodes(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    """Every node once, because an alias may refer back to a node that contains it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key, seen)
            yield from _nodes(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _nodes(each, seen)


def _foreign_metric(path: Path, node: yaml.Node) -> Iterator[str]:
    """A message if an entry of ``metric_list`` makes lm-eval load a module of the library ``evaluate``."""
    entries = list(_entries(node, set()))  # includes keys that a YAML merge would override
    loaded = any(key == "hf_evaluate" and str(value.value).lower() in ("true", "yes", "on") for key, value in entries)
    for metric in (value for key, value in entries if key == "metric"):
        if (
            isinstance(metric, yaml.ScalarNode)
            and metric.tag != FUNCTION
            and (loaded or metric.value not in _metrics())
        ):
            line = metric.start_mark.line + 1
            yield f"{path}:{line}: the metric {metric.value!r} is not lm-eval's: its code comes from a folder or a hub"


def _module(folder: Path, named: str) -> Path | None:
    """The file that lm-eval takes a function from: one next to the definition or one of its own; None for any other."""
    module = named.rpartition(".")[0].replace(".", "/")
    beside = locate(f"{module}.py", folder, UsageError)
    if beside.is_file():
        return beside
    installed = (package().parent / f"{module}.py", package().parent / module / "__init__.py")
    return next((path.resolve() for path in installed if _is_theirs(path) and path.is_file()), None)


def _is_theirs(path: Path) -> bool:
    return path.resolve().is_relative_to(package())


@cache
def package() -> Path:
    """lm-eval's own folder, found without importing it. Raises UsageError if it is not installed."""
    found = find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UsageError("lm-eval is not installed; pip install 'qharness[eval]'")
    return Path(found.submodule_search_locations[0]).resolve()


@cache
def _metrics() -> frozenset[str]:
    """The metrics that lm-eval registers, read from its source."""
    return frozenset(_METRIC.findall((package() / "api" / "metrics.py").read_text(encoding="utf-8")))
