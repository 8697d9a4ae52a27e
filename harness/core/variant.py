"""Variant: the subject of one table row, and the label that distinguishes it from other rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations, islice

from harness.core.identity import DecodeMode, KvCache, Scalar, digest
from harness.core.model import MAIN_ENGINE, MethodRef, ModelRef, model_identity
from harness.core.workload import CalibrationRef, TextRef

MOST_SUBSETS = 2_000
"""How many sets of parts to try in search of the smallest one that distinguishes all variants; then all are shown."""
CONDITIONS = ("kv_cache", "decode_mode", "engine")
"""Parts that a label always shows if they differ from the defaults: they say how a variant was run."""


@dataclass(frozen=True)
class Variant:
    """model × method × engine × scope × calibration × key-value cache × seed: the identity of a row anywhere.

    Versions and machines are not part of it. A second decode mode makes a second row of the same variant.
    ``engine_params`` are the engine's own parameters that differ from its defaults.
    """

    model: ModelRef
    method: MethodRef
    engine: str
    scope: str
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    calibration: CalibrationRef | None = None
    kv_cache: KvCache = "model"
    seed: int = 0
    engine_params: Mapping[str, Scalar] = field(default_factory=dict)

    @cached_property
    def artifact_key(self) -> str:
        """What is quantized and how. Engines and key-value caches share the artifact."""
        return digest(
            [
                model_identity(self.model),
                self.method.identity,
                [self.scope, sorted(set(self.skip)), self.ordered_overrides],
                self.calibration.identity() if self.calibration else None,
                self.seed,
            ]
        )

    @cached_property
    def key(self) -> str:
        return digest([self.artifact_key, *self._engine_identity, self.kv_cache])

    @cached_property
    def name_key(self) -> str:
        """Like ``key``, but from the names in the recipe, regardless of content: it follows a variant over time."""
        calibration = self.calibration
        drawn = asdict(replace(calibration, text=TextRef(calibration.text.id))) if calibration else None
        how = [self.scope, sorted(set(self.skip)), self.ordered_overrides, drawn, self.seed]
        return digest([self.model.label, self.method.label, how, *self._engine_identity, self.kv_cache])

    @cached_property
    def engine_label(self) -> str:
        """The engine with its own parameters, for display: ``llamacpp threads=8``."""
        own = (f"{name}={_word(value)}" for name, value in sorted(self.engine_params.items()))
        return " ".join([self.engine, *own])

    @property
    def _engine_identity(self) -> list[object]:
        return [self.engine, dict(self.engine_params)] if self.engine_params else [self.engine]

    @property
    def ordered_overrides(self) -> list[list[object]]:
        """The overrides in order: the last pattern that matches a module wins."""
        return [[pattern, dict(own)] for pattern, own in self.overrides.items()]

    def parts(self, decode_mode: DecodeMode) -> dict[str, str]:
        """Everything that can distinguish this row from others, by name, for display; default values are empty."""
        method, calibration = self.method, self.calibration
        parts = {f"parameter {name}": f"{name}={_word(value)}" for name, value in method.params.items()}
        if method.published is not None:
            parts = {"published": f"content {digest(method.published.content)[:8]}"}
        parts |= {
            "method": method.name,
            "stack": f"stack={method.stack}" if method.stack else "",
            "scope": self.scope,
            "skip": f"skip {', '.join(sorted(set(self.skip)))}" if self.skip else "",
            "overrides": ", ".join(_override(pattern, own) for pattern, own in self.overrides.items()),
        }
        if calibration is not None:
            parts |= {
                "calibration text": f"calibrated on {calibration.text.id}",
                "calibration content": f"calibration text {digest(calibration.identity()[1])[:8]}",
                "calibration samples": f"{calibration.samples} samples",
                "calibration length": f"{calibration.length} tokens a sample",
                "calibration packing": f"packing {calibration.packing}",
                "calibration bos": f"calibration BOS {calibration.bos}",
                "calibration chat": "chat template" if calibration.chat_template else "",
                "calibration seed": f"calibration seed {calibration.seed}",
            }
        return parts | {
            "kv_cache": "" if self.kv_cache == "model" else f"{self.kv_cache} cache",
            "decode_mode": "" if decode_mode == "eager" else decode_mode,
            "engine": "" if self.engine_label == MAIN_ENGINE else self.engine_label,
            "seed": f"seed {self.seed}",
        }


Row = tuple[Variant, DecodeMode]


def labels(rows: Iterable[Row], without: Collection[str] = ()) -> dict[tuple[str, DecodeMode], str]:
    """A unique label for each row, by its ``key`` and decode mode.

    All ``rows`` belong to one model. A label consists of the method as the recipe wrote it, the conditions that differ
    from the defaults, and the fewest other parts that distinguish rows whose labels would otherwise be equal.
    ``without`` names conditions to leave out because they are shown beside the label anyway.
    """
    alike: dict[tuple[str, ...], dict[tuple[str, DecodeMode], dict[str, str]]] = {}
    for variant, mode in {(id(variant), mode): (variant, mode) for variant, mode in rows}.values():
        parts = variant.parts(mode)
        same_without = (variant.method.label, *(parts[name] for name in CONDITIONS))
        alike.setdefault(same_without, {})[variant.key, mode] = parts
    made = {}
    for (method, *conditions), group in alike.items():
        shown = [word for name, word in zip(CONDITIONS, conditions, strict=True) if name not in without]
        chosen = _fewest(list(group.values()))
        for row, parts in group.items():
            words = [method, *(parts.get(name, "") for name in chosen), *shown]
            made[row] = " · ".join(word for word in words if word)
    shared = Counter(made.values())  # parts that differ only in type, such as 4 and "4"
    return {row: f"{label} · {row[0][:8]}" if shared[label] > 1 else label for row, label in made.items()}


def shown_variant(model: str, label: str, engine: str) -> str:
    """``tiny-llama × rtn``, and the engine if it is not the main one: for labels made ``without`` the engine."""
    return " × ".join([model, label, *([engine] if engine != MAIN_ENGINE else [])])


def _override(pattern: str, own: Mapping[str, Scalar]) -> str:
    """``lm_head: bits=8``."""
    return " ".join([f"{pattern}:", *(f"{name}={_word(value)}" for name, value in sorted(own.items()))])


def _word(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _fewest(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The smallest set of parts that differs between any two of these rows; the first such set in order of parts."""
    names = dict.fromkeys(name for row in rows for name in row)
    unlike = [name for name in names if len({row.get(name, "") for row in rows}) > 1]
    subsets = (chosen for count in range(len(unlike)) for chosen in combinations(unlike, count))
    for chosen in islice(subsets, MOST_SUBSETS):
        if len({tuple(row.get(name, "") for name in chosen) for row in rows}) == len(rows):
            return chosen
    return tuple(unlike)
