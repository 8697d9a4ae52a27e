"""Entries of a recipe's ``exclude``: what one matches, and those that leave out what no run was of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from harness import plugins as registry
from harness.core.identity import DecodeMode, KvCache, Scalar
from harness.core.job import MeasurePerformance, VariantJob

KEYS = ("model", "method", "engine", "kv_cache", "decode_mode")
"""The keys of an entry, in addition to parameters of methods and engines."""


def matches(pattern: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether the facts match every value that an entry names."""
    return all(
        facts.get(key) == (registry.ALIASES.get(value, value) if key == "method" else value)
        for key, value in pattern.items()
    )


@dataclass(frozen=True)
class _MeasuredAs:
    """What runs were of. ``engine`` and ``method`` are as entries name them, ``decode_mode`` is None without speeds."""

    model: str
    engine: tuple[tuple[str, Scalar], ...]
    method: tuple[tuple[str, Scalar], ...]
    kv_cache: KvCache
    decode_mode: DecodeMode | None

    @classmethod
    def by(cls, job: VariantJob) -> _MeasuredAs:
        variant, method = job.variant, job.variant.method
        params = {} if method.published else method.params  # its id is where it lies
        timed = isinstance(job, MeasurePerformance) and job.throughput is not None
        return cls(
            variant.model.label,
            (("engine", variant.engine), *sorted(variant.engine_params.items())),
            (("method", method.name), *sorted(params.items())),
            variant.kv_cache,
            job.decode_mode if timed else None,
        )

    @property
    def facts(self) -> dict[str, Any]:
        own = {"model": self.model, **dict(self.engine), **dict(self.method)}
        return {**own, "kv_cache": self.kv_cache, "decode_mode": self.decode_mode}


def entries_without(measuring: Iterable[VariantJob]) -> list[dict[str, Any]]:
    """The entries that leave out all that these runs could be of and none is, each with as few keys as it needs.

    Runs do not tell what a recipe excludes from what an engine does not read, or what a sweep had not come to.
    """
    measured = tuple(dict.fromkeys(map(_MeasuredAs.by, measuring)))
    facts = [each.facts for each in measured]
    found: list[dict[str, Any]] = []
    for absent in _absent(measured):
        if not any(matches(entry, absent) for entry in found) and not _hits(absent, facts):
            found.append(_shortened(absent, facts))
    return found


def _absent(measured: Sequence[_MeasuredAs]) -> Iterator[dict[str, Any]]:
    """The combinations that nothing was measured of; of others the key-value caches, and of these the decode modes."""
    modes = dict.fromkeys(each.decode_mode for each in measured if each.decode_mode is not None)
    caches = dict.fromkeys(each.kv_cache for each in measured)
    seen: dict[tuple[object, ...], dict[KvCache, set[DecodeMode | None]]] = defaultdict(lambda: defaultdict(set))
    for each in measured:
        seen[each.method, each.model, each.engine][each.kv_cache].add(each.decode_mode)
    every = (dict.fromkeys(values) for values in zip(*((e.method, e.model, e.engine) for e in measured), strict=True))
    for method, model, engine in product(*every):
        combination = {"model": model, **dict(engine), **dict(method)}
        there = seen.get((method, model, engine))
        if there is None:
            yield combination
            continue
        for cache in caches:
            of_cache = combination | {"kv_cache": cache}
            if (timed := there.get(cache)) is None:
                yield of_cache
            else:
                yield from (of_cache | {"decode_mode": mode} for mode in modes if mode not in timed)


def _shortened(entry: dict[str, Any], measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry without the keys that it does not need to match nothing that was measured, parameters first."""
    for key in sorted(entry, key=lambda each: KEYS.index(each) if each in KEYS else -1):
        fewer = {name: value for name, value in entry.items() if name != key}
        if not _hits(fewer, measured):
            entry = fewer
    return entry


def _hits(pattern: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> bool:
    return any(matches(pattern, facts) for facts in measured)
