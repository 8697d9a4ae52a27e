"""A draft of a recipe, as data and as the commented file that a person goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.models.sources import SourceModel
from harness.planning.draft.sizing import SweepEffort
from harness.planning.estimate.chosen import Chosen
from harness.recipe.writing import commented

CONTEXT = 512
"""Tokens of a window of text, and of a calibration sample, unless the model takes fewer."""
LEAST_CALIBRATION = 8

COMMENTS = {
    "name": "The folder of the results has this name.",
    "models": "A folder, a .gguf file, package:NAME/FILE, synthetic:TYPE, or a hub id with its revision.",
    "methods": "'qharness list methods' names the others; a list under a parameter makes a variant of each value.",
    "engines": "What runs the variants; 'qharness list engines' names the others.",
    "calibration": "Every calibrated method gets the same tokens of this text.",
    "measure": "The more windows of text, the narrower the intervals of quality.",
    "repetitions": "Processes that are timed for each variant; an interval needs three.",
    "limits": "A run that takes longer is stopped and recorded, and the others go on.",
}


@dataclass(frozen=True)
class RecipeDraft:
    """What the recipe says. ``model`` is its entry under ``models``, ``source`` what that entry names.

    ``budget`` is the memory to serve in, such as ``24GiB``; ``time_limit`` is that of one run, such as ``30m``;
    ``text`` is the text to score, as a recipe names it.
    """

    name: str
    model: Mapping[str, Any]
    source: SourceModel
    engine: str
    effort: SweepEffort
    text: str
    time_limit: str
    budget: str | None = None
    methods: tuple[Chosen, ...] = ()

    def having(self, methods: Sequence[Chosen], effort: SweepEffort) -> RecipeDraft:
        """The same recipe with these methods, measured with that effort."""
        return replace(self, methods=tuple(methods), effort=effort)

    @property
    def data(self) -> dict[str, Any]:
        """The recipe as plain data."""
        calibrated = any(each.method.calibrated(each.params) for each in self.methods)
        return {
            "name": self.name,
            "models": [dict(self.model)],
            "methods": ["none", *map(_entry, self.methods)],
            "engines": [self.engine],
            **({"calibration": self._calibration} if calibrated else {}),
            "measure": self._measure,
            "repetitions": self.effort.repetitions,
            "limits": {"time": self.time_limit},
        }

    def text_with(self, head: Sequence[str]) -> str:
        """The recipe's file: comment lines, then each key with its comment."""
        return commented(self.data, head, COMMENTS)

    @property
    def _context(self) -> int:
        return min(CONTEXT, self.source.context_length or CONTEXT)

    @property
    def _calibration(self) -> dict[str, Any]:
        return {"samples": self.effort.samples, "length": max(self._context, LEAST_CALIBRATION)}

    @property
    def _measure(self) -> dict[str, Any]:
        windows = {} if self.effort.windows is None else {"windows": self.effort.windows}
        quality = {"perplexity": {"text": self.text, "context": self._context, **windows}, "divergence": {}}
        prompt = min(self.effort.prompt_tokens, max(self._context // 2, 1))
        new = max(min(self.effort.new_tokens, self._context - prompt), 2)
        return {
            **({} if self.source.ref.kind == "synthetic" else quality),  # random weights have no quality
            "memory": {} if self.budget is None else {"budget": self.budget},
            "throughput": {"prompt_tokens": prompt, "new_tokens": new, "iterations": self.effort.iterations},
        }


def _entry(chosen: Chosen) -> Any:
    given = chosen.params.model_dump(mode="json", exclude_unset=True)
    return {chosen.method.name: given} if given else chosen.method.name
