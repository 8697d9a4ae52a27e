"""The figures of one case, each with everything that two of them must share to be in one series."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.comparability import (
    MACHINE,
    Comparability,
    condition,
    conditions_of_items,
    conditions_of_measurement,
)
from harness.analysis.kept import NOTHING, KeptEntries
from harness.analysis.regression import exact, paired, processes
from harness.analysis.regression.cases import Case
from harness.core.exact_text import as_text, builder
from harness.core.identity import digest
from harness.core.record import Measurement
from harness.core.run import RunSpec
from harness.figures.derived.peaks import source_that_says_most
from harness.figures.figure import Figure
from harness.figures.statistic import Count, Items, PerProcess

ALSO_MEASURED = ("memory", "divergence", "energy", "throughput")
"""Parts of a question that change none of its figures; points of the grid are separate series."""
OF_A_COUNT = ("model", "method", "scope", "seed", "device", "skip", "overrides", "calibration")
"""Parts of a question that change what is stored: every run of a variant gives the same bytes."""


@dataclass(frozen=True)
class CaseValue:
    """A figure of one case. Another one is comparable if its ``asked`` and ``own`` are equal.

    ``own`` are the conditions that the question does not determine, as JSON with sorted keys; ``asked`` is a hash of
    the parts of the question, of those that change what is stored if ``of_variant``. ``conditions_of`` spells them out.
    """

    where: str
    value: float
    n: int
    unit: str
    direction: str
    relative: bool
    own: str
    asked: str
    of_variant: bool = False


def values_of(
    case: Case, figures: Sequence[Figure[Any]], kept: KeptEntries = NOTHING
) -> Mapping[str, Sequence[CaseValue]]:
    """The values of each figure by name; none of one that the case does not measure, or cannot be trusted with.

    What was derived from the same runs is taken from ``kept``.
    """
    about = " ".join(each.name for each in figures)
    values = kept.take(
        kept.key(about, case.runs),
        lambda: tuple((each.name, value) for each in figures for value in _values(case, each)),
        as_text,
        lambda text: _read(json.loads(text)),
    )
    found: dict[str, list[CaseValue]] = defaultdict(list)
    for name, value in values:
        found[name].append(value)
    return found


def conditions_of(case: Case, value: CaseValue) -> Mapping[str, str]:
    """What must be equal for another value to be comparable, by name."""
    return {**json.loads(value.own), **_question(case, value.of_variant)}


def comparability(case: Case, figure: Figure[Any], value: CaseValue) -> Comparability:
    """What must be equal for a figure of somebody else to be comparable.

    It is what a history asks of the next value, but content takes the place of names: a model or a checkpoint that
    keeps its name is the same in a history, and another one here. The machine counts only for what processes measure.
    What names a series in a history is a condition here: labels of models and methods are not, people choose them.
    """
    conditions = dict(conditions_of(case, value))
    if not isinstance(figure.statistic, PerProcess):
        conditions.pop(MACHINE, None)
    spec = case.spec
    series = {
        "figure": figure.name,
        "engine": spec.engine_label,
        "cache of keys and values": spec.kv_cache,
        "decode mode": spec.decode_mode,
    }
    content = case.runs[-1].outcome.remember("content of the question", lambda: _content_of_question(spec))
    return Comparability(conditions | series | {name: text for name, text in content.items() if name in conditions})


_read: Callable[[Any], tuple[tuple[str, CaseValue], ...]] = builder(tuple[tuple[str, CaseValue], ...])


def _values(case: Case, figure: Figure[Any]) -> Iterator[CaseValue]:
    statistic = figure.statistic
    if isinstance(statistic, Count):
        yield from _counted(case, figure, statistic)
    elif isinstance(statistic, Items):
        yield from _of_items(case, figure, statistic)
    elif isinstance(statistic, PerProcess):
        yield from _of_processes(case, figure, statistic)


def _valued(
    case: Case,
    where: str,
    value: float,
    n: int,
    unit: str,
    direction: str,
    relative: bool,
    own: Mapping[str, str],
    of_variant: bool = False,
) -> CaseValue:
    asked = case.runs[-1].outcome.remember(("asked", of_variant), lambda: digest(_question(case, of_variant)))
    text = json.dumps(own, sort_keys=True, separators=(",", ":"))
    return CaseValue(where, value, n, unit, direction, relative, text, asked, of_variant)


def _counted(case: Case, figure: Figure[Any], statistic: Count) -> Iterator[CaseValue]:
    found = exact.count(case, figure)
    if found is not None:
        own = {"metric version": str(found.version), "unit": found.unit}
        if statistic.each_run:
            own["grid"] = _grid(case.spec)
        yield _valued(case, "", found.value, 1, found.unit, found.direction, _is_relative(figure), own, of_variant=True)


def _of_items(case: Case, figure: Figure[Any], statistic: Items) -> Iterator[CaseValue]:
    found = paired.measured(case, statistic)
    if found is None:
        return
    own = {MACHINE: case.spec.hardware, **conditions_of_items(found)}
    relative = _is_relative(figure) or (found.unit.startswith("nat") and figure.gate is not None and figure.gate.share)
    unit, where = statistic.unit_of(found), statistic.where(case.spec, found)
    direction = "lower" if unit == "perplexity" else found.direction
    value = statistic.estimate(found).value
    yield _valued(case, where, value, len(found.values), unit, direction, relative, own)


def _of_processes(case: Case, figure: Figure[Any], statistic: PerProcess) -> Iterator[CaseValue]:
    if not case.spec.job.repeated:
        return
    measured = processes.measured(case, statistic)
    if statistic.pooled:
        yield from _pooled(case, figure, statistic, measured)
        return
    for key in dict.fromkeys(key for process in measured for key in process):
        found = [process[key] for process in measured if key in process]
        shown = processes.representative(statistic, found)
        yield from _typical(case, figure, statistic, found, processes.where(shown), _conditions(case, shown))


def _pooled(
    case: Case, figure: Figure[Any], statistic: PerProcess, measured: Sequence[processes.Process]
) -> Iterator[CaseValue]:
    """The highest of each process, by the one source with the highest priority."""
    source = source_that_says_most(key[0] for process in measured for key in process)
    if source is None:
        return
    of_source = [[m for key, m in process.items() if key[0] == source] for process in measured]
    found = [max(each, key=statistic.of) for each in of_source if each]
    own = _conditions(case, found[0], ()) | {"source": source, "grid": _grid(case.spec)}
    yield from _typical(case, figure, statistic, found, source, own)


def _typical(
    case: Case,
    figure: Figure[Any],
    statistic: PerProcess,
    found: Sequence[Measurement],
    where: str,
    own: Mapping[str, str],
) -> Iterator[CaseValue]:
    """One number for all processes, as in reports; none if most of them answered nothing."""
    value = statistic.figure(found)
    if value is not None:
        yield _valued(case, where, value, len(found), statistic.unit, figure.direction, True, own)


def _is_relative(figure: Figure[Any]) -> bool:
    return figure.gate is not None and figure.gate.written == "relative"


def _conditions(case: Case, found: Measurement, protocol: Sequence[str] | None = None) -> dict[str, str]:
    """The machine, the metric's version and its protocol (or the named part of it)."""
    kept = conditions_of_measurement(found)
    if protocol is not None:
        kept = {name: value for name, value in kept.items() if name not in found.protocol or name in protocol}
    return {MACHINE: case.spec.hardware, **kept}


def _question(case: Case, of_variant: bool) -> Mapping[str, str]:
    """The parts of the question. A checkpoint under its name counts as one, even if its content changed.

    The engine is not among them, since every series names its own.
    """
    newest, only = case.runs[-1], OF_A_COUNT if of_variant else None
    return newest.outcome.remember(("question", only), lambda: _parts_of_question(newest.spec, only))


def _parts_of_question(spec: RunSpec, only: tuple[str, ...] | None) -> dict[str, str]:
    question: dict[str, Any] = {name: value for name, value in spec.question.items() if name not in ALSO_MEASURED}
    question["model"] = [spec.model.label, *question["model"][1:]]
    for role, method in (("method", spec.method), ("baseline", spec.baseline)):
        if role in question and method.published:
            question[role] = [method.name, method.label, method.stack]
    kept = question if only is None else {name: question[name] for name in only if name in question}
    return {f"asked {name}": condition(value) for name, value in kept.items()}


def _content_of_question(spec: RunSpec) -> dict[str, str]:
    """The parts that name content, with their content."""
    question = spec.question
    return {f"asked {name}": condition(question[name]) for name in ("model", "method", "baseline") if name in question}


def _grid(spec: RunSpec) -> str:
    return digest([cell.protocol for cell in spec.throughput.cells]) if spec.throughput else "none"
