"""``harness.compare``: what BASE and HEAD name, and by which gates they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.analysis.regression import Regression, track
from harness.api.baselines import FOLDER, Baselines
from harness.core.record import RunRecord
from harness.errors import RecipeError, ResultsError, UsageError
from harness.figures.gate import threshold
from harness.plugins import gates as gated_figures
from harness.storage.store import read_whole


@dataclass(frozen=True)
class Named:
    """The records that a word names; ``unread`` says what lay there and is not whole."""

    name: str
    records: tuple[RunRecord, ...]
    unread: tuple[str, ...]


def compare(
    base: str | Path,
    head: str | Path,
    gates: Mapping[str, str | float] | None = None,
    recipe: str | Path | None = None,
    *,
    strict: bool = False,
    results: str | Path = "results",
    baselines: str | Path = FOLDER,
) -> Regression:
    """HEAD beside BASE, as ``qharness compare`` does: a verdict per case and metric, and an exit code.

    Each side is a results folder, ``FOLDER@ID`` with the id of a session or a run in it, the name of a baseline in
    ``baselines``, or an id in ``results``. The gates are those that HEAD's recipe named when it ran, or those of the
    file ``recipe``; ``gates``, such as ``{"perplexity": "0.5%"}``, are laid over them. Where nobody names any, the
    usual ones hold. ``strict`` makes a gate of every metric.
    Raises UsageError where a side names nothing, the two have nothing in common, or a gate is unknown.
    """
    theirs, ours = (named(str(side), Path(results), Path(baselines)) for side in (base, head))
    return track(
        theirs.records,
        ours.records,
        None if recipe is None else _gates_of(recipe),
        override=_checked(gates or {}),
        names=(theirs.name, ours.name),
        unread=(theirs.unread, ours.unread),
        origin=None if recipe is None else str(recipe),
        strict=strict,
    )


def named(word: str, results: Path, baselines: Path) -> Named:
    """What a word names: a baseline first, then a folder, then a session or run. Raises UsageError for nothing."""
    kept = Baselines(baselines)
    if word in kept:
        found = kept.read(word)
        return Named(f"baseline {word}", found.records, found.unread)
    if Path(word).exists():
        return Named(word, *read_whole(Path(word)))
    folder, at, wanted = word.rpartition("@")
    root = Path(folder) if at else results
    if at or root.is_dir():
        return _within(word, root, wanted)
    raise UsageError(
        f"{word}: neither a results folder nor a baseline in {baselines}, and there is no folder {results}"
    )


def folder_records(folder: Path, wanted: str | None = None) -> Named:
    """The records of a results folder, or those of one session or run in it."""
    return _within(f"{folder}@{wanted}", folder, wanted) if wanted else Named(str(folder), *read_whole(folder))


def _gates_of(path: str | Path) -> Mapping[str, float]:
    """The gates of a recipe. Raises RecipeError where it names none."""
    from harness.planning.validate import thresholds
    from harness.recipe import load_recipe

    found = thresholds(load_recipe(path))
    if not found:
        raise RecipeError(f"{path}: names no gates; write some, such as 'gates: {{perplexity: 0.5%}}'")
    return found


def _checked(gates: Mapping[str, str | float]) -> Mapping[str, float]:
    try:
        return {name: threshold(gated_figures(), name, written) for name, written in gates.items()}
    except ValueError as error:
        raise UsageError(str(error)) from None


def _within(word: str, folder: Path, wanted: str) -> Named:
    """The records of one session or one run, by its id or the beginning of it that no other has."""
    records, unread = read_whole(folder)
    ids = {record.session for record in records} | {record.spec.run_id for record in records}
    found = sorted(each for each in ids if each == wanted or (wanted and each.startswith(wanted)))
    if wanted in found:
        found = [wanted]
    if len(found) > 1:
        raise UsageError(f"{word}: {len(found)} sessions and runs in {folder} begin so: {', '.join(found[:4])}")
    if not found:
        sessions = ", ".join(sorted({record.session for record in records})[-4:])
        raise ResultsError(
            f"{word}: neither a folder, a baseline, nor a session or run in {folder}; sessions: {sessions}"
        )
    chosen = tuple(record for record in records if found[0] in (record.session, record.spec.run_id))
    return Named(f"{folder}@{found[0]}", chosen, unread)
