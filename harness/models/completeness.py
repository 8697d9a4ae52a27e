"""Whether a checkpoint holds what its config.json needs, told by the names of its tensors.

transformers fills what it does not find with random numbers, and ends in an error of its own where it finds only some
of the tensors that it fuses, such as those of a mixture's experts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from harness.errors import SourceError
from harness.models import headers
from harness.models.scope import in_decoder

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""The number of a layer, or of an expert in it, within a name."""


@contextmanager
def names_checked(checkpoint: Path, check: Callable[[Iterable[str], Iterable[str]], None]) -> Iterator[None]:
    """Within this context ``check`` gets the names that transformers misses in a checkpoint, and those left over.

    Raises SourceError for what cannot be fused, or has another shape. All of it comes before the quantizer unpacks the
    codes: where nothing was read, it would unpack what happens to be in memory, and fail with an error of its own now
    and then. transformers 4, which fuses nothing, is left as it is.
    """
    from transformers import PreTrainedModel

    finalize = getattr(PreTrainedModel, "_finalize_model_loading", None)
    if finalize is None:
        yield
        return

    def checked(model: Any, config: Any, info: Any) -> Any:
        refuse_unfused(model, config, info, [tensor.name for tensor in headers.tensors(checkpoint)])
        info = finalize(model, config, info)
        check(info.missing_keys, info.unexpected_keys)
        return info

    with mock.patch.object(PreTrainedModel, "_finalize_model_loading", staticmethod(checked)):
        yield


def refuse_unfused(model: Any, config: Any, info: Any, stored: Collection[str]) -> None:
    """Raises SourceError for tensors that transformers cannot fuse, by the names of those that are lacking, or of
    another shape. ``info`` is what it says of loading the ``stored`` names, and ``config`` how it did.
    """
    failed = {*info.conversion_errors, *(name for name, *_ in info.mismatched_keys)}
    if failed:
        refuse_unlike(_lacking(sources(model, config, stored), failed), ())
    if info.conversion_errors:
        raise SourceError(f"the checkpoint cannot be converted: {last_line(info.conversion_errors)}")
    refuse_reshaped(info.mismatched_keys)


def _lacking(made_from: Mapping[str, Sequence[str]], failed: set[str]) -> set[str]:
    """The tensors that failed parameters lack, in comparison with the same parameters of all layers.

    A parameter needs the tensors that it is made from in any layer, and of every expert there is what there is of any.
    """
    kinds: dict[str, set[str]] = defaultdict(set)
    experts: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, tensors in made_from.items():
        for tensor in tensors:
            _, *inside = _NUMBER.findall(tensor) or ("",)
            kinds[_NUMBER.sub("{}", name)].add(_NUMBER.sub("{}", tensor))
            experts[_NUMBER.sub("{}", name)].add(tuple(inside))
    lacking: set[str] = set()
    for name in failed & made_from.keys():
        layer, parameter = _NUMBER.findall(made_from[name][0])[:1], _NUMBER.sub("{}", name)
        needed = {(kind, (*layer, *expert)) for kind in kinds[parameter] for expert in experts[parameter]}
        lacking |= {kind.format(*numbers) for kind, numbers in needed if kind.count("{}") == len(numbers)}
        lacking -= set(made_from[name])
    return lacking


def sources(model: Any, config: Any, stored: Iterable[str]) -> dict[str, list[str]]:
    """The checkpoint's tensors that each parameter is made from, by transformers' own rules.

    Where a converter makes several parameters at once, all of its sources are under the name of the first.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = config.weight_mapping or []
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    held = model.state_dict()
    found: dict[str, list[str]] = defaultdict(list)
    for name in stored:
        renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        if renamed not in held and name in held:
            renamed, _ = rename_source_key(name, [], [], model.base_model_prefix, held)
        if renamed in held:
            found[renamed].append(name)
    return dict(found)


def refuse_reshaped(mismatched: Iterable[tuple[str, Any, Any] | str]) -> None:
    """Raises SourceError for tensors of another shape, by the name of the first, with both shapes.

    transformers 4.51 gives names without shapes.
    """
    for each in sorted(mismatched):
        if isinstance(each, str):
            raise SourceError(f"{each}: the checkpoint's shape is not the one that config.json says")
        name, found, expected = each
        raise SourceError(f"{name}: the checkpoint's shape is {tuple(found)}, and config.json says {tuple(expected)}")


def refuse_unlike(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raises SourceError for a checkpoint that lacks what its architecture needs, or has more layers than that."""
    if lacking := sorted(missing):
        raise SourceError(f"the checkpoint lacks {_some(lacking)}, which its config.json needs; fetch it again")
    if foreign := sorted(name for name in unexpected if in_decoder(name, 2)):
        raise SourceError(
            f"the checkpoint has {_some(foreign)}, for which its config.json has no place: they are not of one model"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def last_line(errors: Mapping[str, str]) -> str:
    """The first of transformers' errors of conversion, without its traceback."""
    name, text = next(iter(errors.items()))
    return f"{name}: {text.strip().splitlines()[-1]}"
