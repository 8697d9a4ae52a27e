"""``harness.compare``: whether HEAD is worse than BASE, and which gates fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.analysis.regression.findings import Regression
from harness.api.baselines import FOLDER
from harness.api.results import NamedRecords, kept_answer, kept_of, read_named, redacted
from harness.core.exact_text import as_text
from harness.errors import RecipeError, UsageError
from harness.figures.gate import threshold
from harness.plugins import gates as gated_figures
from harness.storage.anonymizer import Anonymizer
from harness.storage.summaries import COMPARED, COMPARISON


def compare(
    base: str | Path,
    head: str | Path,
    gates: Mapping[str, str | float] | None = None,
    recipe: str | Path | None = None,
    *,
    strict: bool = False,
    results: str | Path = "results",
    baselines: str | Path = FOLDER,
    redact: bool = False,
) -> Regression:
    """Compares HEAD with BASE, like ``qharness compare``: a verdict per case and metric, and an exit code.

    Each side is a results folder, ``FOLDER@ID`` with the id of a session or a run in it, the name of a baseline in
    ``baselines``, or an id in ``results``. The gates are those that HEAD's recipe named when it ran, or those of the
    file ``recipe``; ``gates``, such as ``{"perplexity": "0.5%"}``, override them. Without any, the default gates
    apply. ``strict`` gates every metric. ``redact`` leaves out what a redacted report leaves out.
    Raises UsageError if a side names nothing, the sides have nothing in common, or a gate is unknown.
    """
    words = (str(base), str(head))
    read = {word: read_named(word, results, Path(baselines)) for word in dict.fromkeys(words)}
    sides = [read[word] for word in words]
    sides = redacted(sides) if redact else sides
    asked = _ComparisonQuery(
        None if recipe is None else _gates_of(recipe),
        _checked(gates or {}),
        None if recipe is None else "a recipe" if redact else Anonymizer.for_terminals().path(str(recipe)),
        strict,
    )
    found = kept_answer(sides, COMPARISON, as_text(asked), Regression, lambda: _tracked(sides, asked))
    theirs, ours = sides
    return replace(
        found,
        base=replace(found.base, name=theirs.name, damaged=theirs.damaged),
        head=replace(found.head, name=ours.name, damaged=ours.damaged),
    )


@dataclass(frozen=True)
class _ComparisonQuery:
    """What a comparison depends on beside the records: see ``harness.analysis.regression.track``."""

    gates: Mapping[str, float] | None
    override: Mapping[str, float]
    origin: str | None
    strict: bool


def _tracked(sides: Sequence[NamedRecords], asked: _ComparisonQuery) -> Regression:
    """The comparison of all records; their damage is not in it."""
    from harness.analysis.regression.track import track  # an answer that was kept need not wait for it

    base, head = sides
    with kept_of(sides, COMPARED) as kept:
        return track(
            base.records,
            head.records,
            asked.gates,
            override=asked.override,
            names=(base.name, head.name),
            origin=asked.origin,
            strict=asked.strict,
            kept=kept,
        )


def _gates_of(path: str | Path) -> Mapping[str, float]:
    """The gates of a recipe. Raises RecipeError if it names none."""
    from harness.planning.validate import thresholds
    from harness.recipe import load_recipe

    gates = thresholds(load_recipe(path))
    if not gates:
        raise RecipeError(f"{path}: names no gates; write some, such as 'gates: {{perplexity: 0.5%}}'")
    return gates


def _checked(gates: Mapping[str, str | float]) -> Mapping[str, float]:
    try:
        return {name: threshold(gated_figures(), name, written) for name, written in gates.items()}
    except ValueError as error:
        raise UsageError(str(error)) from None
