"""A node's own copies of hub models, where its hub cache is not that of the machine that plans.

A plan names the files in the hub cache of the machine that made it. Another machine has the same commit under another
path, with other times and inodes. What must be equal are the files' sizes and, where the cache names files by their
content, these names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.inputs import Input, InputFile
from harness.core.model import ModelRef
from harness.core.parts import with_parts
from harness.core.run import RunSpec
from harness.errors import SourceError
from harness.execution.executor import RunLost
from harness.models.sources import find_here
from harness.storage.checksums import find_difference


class HubCopies:
    """Finds this machine's copies of hub models, and remembers where they are. Several threads may use it."""

    def __init__(self) -> None:
        self._known: dict[str, Input] = {}  # by the model's content

    def named(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """The specs with the paths that hub models have here; empty for a model that is not here yet."""
        models = {model.content: model for spec in specs for model in spec.job.models if model.on_hub}
        found = {content: self._find(model) for content, model in models.items()}
        paths = {content: "" if files is None else _place(files) for content, files in found.items()}
        return [_with_paths(spec, paths) for spec in specs]

    def placed(self, spec: RunSpec, inputs: Sequence[Input]) -> tuple[RunSpec, tuple[Input, ...]]:
        """A run and its inputs with this machine's copies, where the planned files are not here.

        Raises RunLost if there is no copy, and SourceError if its files are not the planned ones.
        """
        models = {model.path: model for model in spec.job.models if model.on_hub}
        paths, placed = {}, []
        for each in inputs:
            model = models.get(_place(each))
            if model is not None and find_difference(each) is not None:
                own = self._find(model)
                if own is None:
                    raise RunLost(f"its hub cache does not hold {model.id}", for_good=False)
                if (difference := _difference(each, own)) is not None:
                    raise SourceError(f"{model.id}: {difference}; delete it from the hub cache of that node")
                paths[model.content], each = _place(own), own
            placed.append(each)
        return _with_paths(spec, paths), tuple(placed)

    def _find(self, model: ModelRef) -> Input | None:
        known = self._known.get(model.content)
        if known is None or find_difference(known) is not None:
            source = find_here(model)
            if source is None or source.files is None:
                return None
            known = self._known[model.content] = source.files
        return known


def _place(files: Input) -> str:
    """The path of a model with these files: its folder, or its one file."""
    return files.folder or files.files[0].path


def _with_paths(spec: RunSpec, paths: dict[str, str]) -> RunSpec:
    """The spec with other paths of the models that have these contents. Its ids are the same."""

    def change(part: Any) -> Any:
        if isinstance(part, ModelRef) and part.on_hub and part.content in paths:
            return replace(part, path=paths[part.content])
        return None

    return with_parts(spec, change)


def _difference(planned: Input, own: Input) -> str | None:
    """How a copy differs from what was planned with. It may have more files of its commit."""
    here = {Path(file.path).name: file for file in own.files}
    for file in planned.files:
        name = Path(file.path).name
        if name not in here:
            return f"the copy on this node lacks {name}"
        if _other_content(file, here[name]):
            return f"{name} has another content on this node than on the machine that planned the run"
    return None


def _other_content(one: InputFile, other: InputFile) -> bool:
    names = ((one.sha256, other.sha256), (one.blob, other.blob))
    return one.size != other.size or any(a and b and a != b for a, b in names)
