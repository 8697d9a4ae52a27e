"""The figures of one case, each with all that two of them must share to stand in one series."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.regression import exact, paired, processes
from harness.analysis.regression.cases import Case
from harness.core.gates import Gate
from harness.core.identity import digest
from harness.core.record import Measurement
from harness.core.run import RunSpec
from harness.figures.derived.peaks import SOURCES

ALSO_MEASURED = ("memory", "divergence", "energy", "throughput")
"""Of a question, what changes none of its figures; points of the grid are told apart one by one."""
OF_A_COUNT = ("model", "method", "scope", "seed", "device", "skip", "overrides", "calibration")
"""Of a question, what changes what is stored: every run of a variant tells the same bytes."""


@dataclass(frozen=True)
class Figure:
    """One number of one case. ``conditions`` are what must be the same for another one to be comparable."""

    where: str
    value: float
    n: int
    unit: str
    direction: str
    relative: bool
    conditions: Mapping[str, str]


def figures(case: Case, gate: Gate) -> Iterator[Figure]:
    """Those of one gate's metric; none where the case does not measure it, or may not be trusted with it."""
    made = {"exact": _exact, "paired": _paired, "processes": _processes}[gate.test]
    yield from made(case, gate)


def _exact(case: Case, gate: Gate) -> Iterator[Figure]:
    found = exact.count(case, gate)
    if found is not None:
        said = {"metric version": str(found.version), "unit": found.unit, **_asked(case.spec, OF_A_COUNT)}
        if gate.name == "kv_cache":
            said["grid"] = _grid(case.spec)
        yield Figure("", found.value, 1, found.unit, found.direction, gate.written == "relative", said)


def _paired(case: Case, gate: Gate) -> Iterator[Figure]:
    found = paired.measured(case, gate.metric)
    if found is None:
        return
    said = _conditions(case.spec, found) | {"items": digest(found.item_ids)}
    relative = found.unit.startswith("nat") and gate.written != "nat"
    unit, where = paired.unit(found), paired.where(case, found)
    direction = "lower" if unit == "perplexity" else found.direction
    yield Figure(where, paired.value(found), len(found.values), unit, direction, relative, said)


def _processes(case: Case, gate: Gate) -> Iterator[Figure]:
    if case.spec.kind != "performance":
        return
    measured = processes.measured(case, gate.metric)
    if gate.metric == "peak_memory_bytes":
        yield from _peak(case, measured)
        return
    for key in dict.fromkeys(key for process in measured for key in process):
        found = [process[key] for process in measured if key in process]
        yield _typical(case.spec, found, processes.where(found[0]), _conditions(case.spec, found[0]))


def _peak(case: Case, measured: Sequence[processes.Process]) -> Iterator[Figure]:
    """The highest of each process, by the one source that says most."""
    for source in SOURCES:
        of_source = [[m for key, m in process.items() if key[0] == source] for process in measured]
        found = [max(each, key=processes.FIGURES["peak_memory_bytes"].of) for each in of_source if each]
        if found:
            said = _conditions(case.spec, found[0], ()) | {"source": source, "grid": _grid(case.spec)}
            yield _typical(case.spec, found, source, said)
            return


def _typical(spec: RunSpec, found: Sequence[Measurement], where: str, said: Mapping[str, str]) -> Figure:
    """One figure of all processes, as reports show it."""
    figure = processes.FIGURES[found[0].metric]
    value = figure.over([figure.of(each) for each in found])
    direction = "lower" if figure.less_is_better else "higher"
    return Figure(where, value, len(found), figure.unit, direction, True, said)


def _conditions(spec: RunSpec, found: Measurement, protocol: Sequence[str] | None = None) -> dict[str, str]:
    """The question, the machine, the metric's version and its protocol (or what is named of it)."""
    names = sorted(found.protocol) if protocol is None else protocol
    return {
        "hardware": spec.hardware,
        "metric version": str(found.version),
        "unit": found.unit,
        **{name: str(found.protocol.get(name)) for name in names},
        **_asked(spec),
    }


def _asked(spec: RunSpec, only: Sequence[str] | None = None) -> dict[str, str]:
    """The question by its parts. A checkpoint under its name counts as one, whatever became of its content."""
    question: dict[str, Any] = {name: value for name, value in spec.question.items() if name not in ALSO_MEASURED}
    question["model"] = [spec.model.label, *question["model"][1:]]
    for role, method in (("method", spec.method), ("baseline", spec.baseline)):
        if role in question and method.published:
            question[role] = [method.name, method.label, method.stack]
    kept = question if only is None else {name: question[name] for name in only if name in question}
    return {f"asked {name}": _text(value) for name, value in kept.items()} | {"engine": spec.engine}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _grid(spec: RunSpec) -> str:
    return digest([cell.protocol for cell in spec.throughput.cells]) if spec.throughput else "none"
