"""Records of tasks whose answers were written, made from records that have only their scores."""

from __future__ import annotations

from dataclasses import replace

from harness.core.record import Measurement, RunRecord
from harness.tasks.aspects import ASPECTS


def with_written_answers(run: RunRecord) -> RunRecord:
    """The run with every aspect of its answers and a majority; no two figures are equal."""
    score = run.outcome.measured("task_score")[0]
    protocol = {name: value for name, value in score.protocol.items() if name not in ("score", "filter", "aggregation")}
    count = len(score.values)

    def measured(name: str, unit: str, direction: str, place: int) -> Measurement:
        every, counted = 3 + place, unit in ("share", "score")
        numbers = [number % every for number in range(count)]
        values = tuple(float(each == 0) if counted else float(10 * place + each) for each in numbers)
        return Measurement(name, 1, unit, direction, "paired", values, protocol, (), score.item_ids)  # type: ignore[arg-type]

    found = [measured(each.name, each.unit, each.direction, place) for place, each in enumerate(ASPECTS)]
    found.append(measured("task_majority", "score", "higher", len(ASPECTS)))
    return replace(run, outcome=replace(run.outcome, measurements=(*run.outcome.measurements, *found)))
