"""Takes records, returns trade-off tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain

from harness.analysis.front_probability import compared_bytes
from harness.analysis.selection import (
    ComparisonSetting,
    Protocol,
    best_session,
    current,
    current_in_session,
    protocol_text,
    protocols,
    same_workload,
    setting,
)
from harness.analysis.summaries import Summaries
from harness.analysis.verdicts import judged
from harness.core.column import LazyColumn
from harness.core.job import (
    AnswerTask,
    MakeReference,
    MeasureMachine,
    MeasurePerformance,
    MeasureQuality,
    MeasureServing,
    PrepareModel,
    QuantizeModel,
    VariantJob,
    WriteText,
)
from harness.core.label import Label
from harness.core.model import MAIN_ENGINE
from harness.core.record import Measurement, RunRecord
from harness.core.run import RunSpec, baseline_engine
from harness.core.variant import labels
from harness.figures.derived.roofline import machine_of, rates
from harness.figures.evidence import Evidence
from harness.figures.formats import duration
from harness.figures.table import EngineFloor, Table, VariantRow
from harness.host.machine import PACKAGES
from harness.stats.pareto import front

RUNTIME = ("torch", "transformers", "tokenizers")
"""The libraries that determine the baseline's figures."""


@dataclass(frozen=True)
class _Runs:
    """The runs of one setting that count; ``quality`` holds those of one protocol."""

    quality: tuple[RunRecord, ...]
    quantize: tuple[RunRecord, ...]
    task: tuple[RunRecord, ...]
    performance: tuple[RunRecord, ...]
    serving: tuple[RunRecord, ...]
    references: tuple[RunRecord, ...] = ()
    machines: tuple[RunRecord, ...] = ()

    @property
    def all(self) -> tuple[RunRecord, ...]:
        return self.quality + self.quantize + self.task + self.performance + self.serving

    @cached_property
    def engine(self) -> str | None:
        """The engine whose baseline every row is compared with."""
        return baseline_engine(run.spec for run in self.all)

    @cached_property
    def unquantized(self) -> Mapping[str, tuple[RunRecord, ...]]:
        """By engine, the runs of the unquantized model that give figures: few among many."""
        found: dict[str, list[RunRecord]] = {}
        for run in self.all:
            if run.spec.is_baseline and run.gives_figures:
                found.setdefault(run.spec.engine_label, []).append(run)
        return {engine: tuple(runs) for engine, runs in found.items()}

    def of_the_baseline(self, run: RunRecord) -> bool:
        return run.spec.is_baseline and run.spec.engine_label == self.engine

    def baselines_of(self, job: type[VariantJob]) -> tuple[RunRecord, ...]:
        return self._unquantized_on(self.engine, job)

    def controls_of(self, job: type[VariantJob], spec: RunSpec) -> tuple[RunRecord, ...]:
        """The unquantized model's runs on the same engine; none on the engine of the reference."""
        return () if spec.engine_label == MAIN_ENGINE else self._unquantized_on(spec.engine_label, job)

    def _unquantized_on(self, engine: str | None, job: type[VariantJob]) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.unquantized.get(engine or "", ()) if isinstance(run.spec.job, job))


def tradeoff(records: Iterable[RunRecord], summaries: Summaries | None = None) -> tuple[Table, ...]:
    """One table per model, perplexity protocol and machine, in the order in which they first appear.

    Of several attempts the latest successful one counts; a speed is compared only with the baseline's in its
    own session and on its own node. Rows that are among the ``summaries`` are not derived again.
    """
    records = tuple(records)
    summaries = summaries or Summaries({}, {})
    groups: dict[ComparisonSetting, list[RunRecord]] = {}
    for record in records:
        if record.spec.job.row_rank is not None:
            groups.setdefault(setting(record.spec), []).append(record)
    return tuple(table for where, members in groups.items() for table in _tables(where, members, records, summaries))


def _tables(
    where: ComparisonSetting, members: Sequence[RunRecord], records: Sequence[RunRecord], summaries: Summaries
) -> list[Table]:
    counted = current(members)
    quality, quantize, task = (
        tuple(record for record in counted if isinstance(record.spec.job, job))
        for job in (MeasureQuality, QuantizeModel, AnswerTask)
    )
    timed = current_in_session(members)
    performance, serving = (
        tuple(record for record in timed if isinstance(record.spec.job, job))
        for job in (MeasurePerformance, MeasureServing)
    )
    groups = protocols(quality, summaries) or {(): ()}
    before = _model_runs(where, records)
    return [
        _table(where, protocol, _Runs(group, quantize, task, performance, serving), before, summaries)
        for protocol, group in groups.items()
    ]


def _table(
    where: ComparisonSetting, protocol: Protocol, runs: _Runs, model_runs: Sequence[RunRecord], summaries: Summaries
) -> Table:
    references = tuple(run for run in model_runs if _is_reference_of(run, where, runs.quality))
    machines = tuple(run for run in model_runs if isinstance(run.spec.job, MeasureMachine))
    runs = replace(runs, references=references, machines=machines)
    rows, notes = _rows(runs, summaries)
    preparing = [run for run in model_runs if isinstance(run.spec.job, PrepareModel)]
    notes += [_failed_before(run) for run in (*preparing, *references) if run.status != "ok"]
    newest = _last(run for run in runs.performance if run.status == "ok") or _last(runs.performance)
    machine = machine_of(newest, machines)
    before = (*preparing, *references, *([machine] if machine else []))
    notes += _forecast_and_fact([*before, *runs.all])
    labels = tuple(dict.fromkeys((*(label for run in before for label in run.outcome.labels), *_common_labels(rows))))
    any_spec, whole_floor = runs.all[0].spec, _whole_floor(references)
    doubts = summaries.implausible(any_spec.model, _last(runs.baselines_of(MeasureQuality)))
    return Table(
        model=where.model,
        native_quantization=any_spec.model.native_quantization,
        protocol=protocol_text(protocol),
        hardware=where.hardware_text,
        rows=tuple(_less_labels(entry, labels) for entry in _sorted(_marked(rows, summaries))),
        labels=(*labels, *(doubt.label for doubt in doubts)),
        notes=tuple(dict.fromkeys(notes)),
        kl_noise_floor=summaries.mean(_noise_floor(references, "batch size")),
        kl_noise_floor_dtype=summaries.mean(_noise_floor(references, "dtype")),
        kl_floor_by_position=summaries.by_position(whole_floor, _longest(rows)) if whole_floor else (),
        engine_floors=_engine_floors(rows),
        recipes=tuple(dict.fromkeys(run.spec.recipe for run in runs.all)),
        grid=tuple(dict.fromkeys(speed.point for entry in rows for speed in entry.speeds)),
        loads=tuple(sorted({each.load for entry in rows for each in entry.served})),
        tasks=tuple(dict.fromkeys(score.key for entry in rows for score in entry.tasks)),
        budget_bytes=newest.spec.readers.budget_bytes if newest else None,
        price=newest.spec.readers.price if newest else None,
        conditions=protocol,
        hub_id=any_spec.model.id if any_spec.model.kind == "hub" else None,
        rates=rates(machine) if machine and any(entry.bounds for entry in rows) else None,
        implausible=doubts,
    )


def _rows(runs: _Runs, summaries: Summaries) -> tuple[list[VariantRow], list[str]]:
    variants: dict[str, list[RunRecord]] = {}
    for run in runs.quality + runs.task + runs.performance + runs.serving:
        variants.setdefault(run.spec.variant.key, []).append(run)
    users: dict[str, list[list[RunRecord]]] = {}  # by artifact: the variants measured from it
    for members in variants.values() if runs.quantize else ():
        users.setdefault(members[0].spec.variant.artifact_key, []).append(members)
    for run in runs.quantize:
        of_artifact = users.get(run.spec.variant.artifact_key)
        for members in of_artifact or [variants.setdefault(run.spec.variant.key, [])]:
            members.append(run)
    found = [list(_evidence(members, runs)) for members in variants.values()]
    names = labels((each.variant, each.decode_mode) for modes in found for each in modes)
    made = [[summaries.row(each, names[each.variant.key, each.decode_mode]) for each in modes] for modes in found]
    concerned: dict[str, list[str]] = {}
    for entry, notes in chain.from_iterable(made):
        for note in notes:
            concerned.setdefault(note, []).append(entry.label)
    rows = _judged_once([[entry for entry, _ in modes] for modes in made])
    return rows, [f"{note}: {', '.join(who)}" for note, who in concerned.items()]


def _judged_once(variants: Sequence[Sequence[VariantRow]]) -> list[VariantRow]:
    """The rows with their verdicts. A method has the same quality in every decode mode, so it is judged once."""
    words = judged([modes[0] for modes in variants])
    return [
        entry.altered(perplexity_comparison=word.perplexity_comparison, tasks=word.tasks, answers=word.answers)
        for word, modes in zip(words, variants, strict=True)
        for entry in modes
    ]


def _evidence(members: Sequence[RunRecord], runs: _Runs) -> Iterator[Evidence]:
    """The evidence of a variant, in each of its decode modes."""
    timed: dict[str, list[RunRecord]] = {}
    for run in members:
        if isinstance(run.spec.job, MeasurePerformance):
            timed.setdefault(run.spec.decode_mode, []).append(run)
    serving = best_session([run for run in members if isinstance(run.spec.job, MeasureServing)])
    for mode in sorted(timed, reverse=True) or ("eager",):  # eager comes before compiled
        yield _evidence_in(members, best_session(timed.get(mode, [])), serving, runs)
        serving = ()  # a server decodes in its own way: the first row has it


def _quantization(members: Sequence[RunRecord]) -> RunRecord | None:
    """The run that made what the others measured.

    A variant that quantizes while it loads has one only for streamed runs, which name it. If others measured it, that a
    run failed to quantize it from disk says nothing of them.
    """
    made = [run for run in members if isinstance(run.spec.job, QuantizeModel)]
    measured = [run for run in members if not isinstance(run.spec.job, QuantizeModel)]
    named = {run.spec.needs.get("quantize") for run in measured}
    if (found := _last(run for run in made if run.spec.run_id in named)) is not None:
        return found
    found = _last(made)
    if found is None or found.status == "ok" or found.spec.method.stage != "on_load" or not measured:
        return found
    return None


def _evidence_in(
    members: Sequence[RunRecord], performance: tuple[RunRecord, ...], serving: tuple[RunRecord, ...], runs: _Runs
) -> Evidence:
    quality = _last(run for run in members if isinstance(run.spec.job, MeasureQuality))
    spec = members[0].spec
    is_control = spec.is_baseline and spec.engine_label != MAIN_ENGINE
    apart = not is_control and spec.engine_label != runs.engine
    return Evidence(
        is_baseline=runs.of_the_baseline(members[0]),
        quality=quality,
        quantize=_quantization(members),
        performance=performance,
        tasks=tuple({run.spec.task: run for run in members if isinstance(run.spec.job, AnswerTask)}.values()),
        baseline_quality=_baseline_quality(quality, runs.baselines_of(MeasureQuality)),
        machine=machine_of(_last(performance), runs.machines),
        noise_floor=_noise_floor(runs.references, "dtype") or _noise_floor(runs.references, "batch size"),
        baseline_performance=_baseline_performance(performance, runs.baselines_of(MeasurePerformance)),
        baseline_tasks=_like_tasks(members, runs.baselines_of(AnswerTask)),
        is_control=is_control,
        control=quality if is_control else _baseline_quality(quality, runs.controls_of(MeasureQuality, spec)),
        control_performance=_baseline_performance(performance, runs.controls_of(MeasurePerformance, spec))
        if apart
        else (),
        control_tasks=_like_tasks(members, runs.controls_of(AnswerTask, spec)) if apart else (),
        serving=serving,
        baseline_serving=_baseline_performance(serving, runs.baselines_of(MeasureServing)),
        control_serving=_baseline_performance(serving, runs.controls_of(MeasureServing, spec)) if apart else (),
    )


def _like_tasks(members: Sequence[RunRecord], unquantized: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """For each task of a variant, the unquantized model's run to compare it with, if there is one."""
    asked = (run for run in members if run.spec.task)
    return tuple(found for run in asked if (found := _baseline_quality(run, _same_task(run, unquantized))))


def _same_task(run: RunRecord, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that asked the same questions."""
    question = run.spec.task.identity() if run.spec.task else None
    return [other for other in runs if other.spec.task and other.spec.task.identity() == question]


def _baseline_quality(quality: RunRecord | None, baselines: Sequence[RunRecord]) -> RunRecord | None:
    """The baseline with equal libraries, from the same session if there is one."""
    if quality is None:
        return None
    alike = [run for run in baselines if _comparable(quality, run)]
    return _last(run for run in alike if run.session == quality.session) or _last(alike)


def _baseline_performance(mine: Sequence[RunRecord], baselines: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """The baseline's runs of the same session, node and decode mode, with equal libraries."""
    if not mine:
        return ()
    return tuple(
        run
        for run in baselines
        if run.timed_within == mine[0].timed_within
        and run.spec.decode_mode == mine[0].spec.decode_mode
        and _comparable(mine[0], run)
    )


def _comparable(mine: RunRecord, base: RunRecord) -> bool:
    """Whether a variant ran with the same libraries as the unquantized model; on another engine they all differ.

    The spec's lock cannot be used: it also holds the libraries of the method. Those of another engine than the main one
    are the packages that the unquantized model's run declares beside the harness's own.
    """
    if mine.spec.engine != base.spec.engine:
        return True
    ours, theirs = _software(mine), _software(base)
    declared = () if base.spec.engine == MAIN_ENGINE else theirs.keys() - set(PACKAGES)
    return mine.spec.stack == base.spec.stack and all(
        ours.get(name) == theirs.get(name) for name in (*RUNTIME, *declared)
    )


def _software(run: RunRecord) -> Mapping[str, str]:
    return run.outcome.before.software if run.outcome.before else {}


def _marked(rows: Sequence[VariantRow], summaries: Summaries) -> list[VariantRow]:
    """The rows, marking those on the front of KL divergence and stored bytes; the reference's KL is zero.

    KL is the whole divergence, the engine's own included: it is what users of that engine get. Also adds the
    probability of being on the front that includes decode speed.
    """
    sized = enumerate(zip(rows, compared_bytes(rows), strict=True))
    points = {index: point for index, (entry, size) in sized if (point := _point(entry, size)) is not None}
    indices = list(points)
    kept = {indices[position] for position in front(list(points.values()), ("lower", "lower"))}
    likely = front_probabilities_of(rows, summaries)
    return [
        entry.altered(front=index in kept, front_shares=likely, front_place=index) for index, entry in enumerate(rows)
    ]


def front_probabilities_of(rows: Sequence[VariantRow], summaries: Summaries) -> Sequence[float | None]:
    """``front_shares`` of rows in the order of their ``front_place``."""
    return LazyColumn[float | None](len(rows), cache(lambda: summaries.front_probabilities(rows)))


def _point(entry: VariantRow, size: int | None) -> tuple[float, float] | None:
    divergence = 0.0 if entry.is_reference else entry.kl_mean.value if entry.kl_mean else None
    if size is None or divergence is None or math.isnan(divergence):
        return None
    return size, divergence


def _sorted(rows: Sequence[VariantRow]) -> list[VariantRow]:
    """Baseline first, then from large to small; variants without a size come last."""
    return sorted(rows, key=lambda entry: (not entry.is_baseline, -(entry.stored_bytes or 0), entry.label))


def _common_labels(rows: Sequence[VariantRow]) -> tuple[Label, ...]:
    """Labels shared by every variant with figures, which the table shows once."""
    by_row = [entry.labels for entry in rows if entry.status == "ok"]
    return tuple(label for label in by_row[0] if all(label in labels for labels in by_row)) if by_row else ()


def _less_labels(entry: VariantRow, common: tuple[Label, ...]) -> VariantRow:
    if not any(label in common for label in entry.labels):
        return entry
    return entry.altered(labels=tuple(label for label in entry.labels if label not in common))


def _model_runs(where: ComparisonSetting, records: Iterable[RunRecord]) -> tuple[RunRecord, ...]:
    """Runs before any variant: the model's conversion, what it wrote and its reference, and the machine's speed."""
    own = [
        run
        for run in records
        if isinstance(run.spec.job, PrepareModel | WriteText | MakeReference)
        and run.spec.model.content_id == where.model_id
    ]
    machines = [run for run in records if isinstance(run.spec.job, MeasureMachine)]
    return (*current(own), *current_in_session(machines))


def _is_reference_of(run: RunRecord, where: ComparisonSetting, quality: Sequence[RunRecord]) -> bool:
    return (
        isinstance(run.spec.job, WriteText | MakeReference)
        and setting(run.spec) == where
        and any(same_workload(run.spec, other.spec) for other in quality)
    )


def _failed_before(run: RunRecord) -> str:
    message = run.outcome.failure.message.splitlines()[0] if run.outcome.failure else "no reason recorded"
    return f"{run.spec.kind} of {run.spec.model.label}: {run.status}: {message}"


def _forecast_and_fact(runs: Iterable[RunRecord]) -> Iterator[str]:
    """How long the runs took and were forecast to take; nothing if no run was forecast."""
    compared = [(run.forecast, run.wall_s) for run in runs if run.forecast is not None and run.status == "ok"]
    if compared:
        took = duration(sum(wall_s for _, wall_s in compared))
        expected = duration(sum(forecast.expected_s for forecast, _ in compared))
        within = sum(forecast.low_s <= wall_s <= forecast.high_s for forecast, wall_s in compared)
        ranges = f"{within} of {len(compared)} within their ranges"
        yield f"the runs took {took} and were forecast to take {expected}; {ranges}"


def _engine_floors(rows: Iterable[VariantRow]) -> tuple[EngineFloor, ...]:
    found = {row.engine: row.kl_mean for row in rows if row.is_control and row.kl_mean}
    return tuple(EngineFloor(engine, kl) for engine, kl in found.items())


def _noise_floor(references: Sequence[RunRecord], changed: str) -> Measurement | None:
    """The newest one. Before there was a second kind, records did not name what was changed: the batch size."""
    found = [
        measurement
        for run in references
        if run.status == "ok"
        for measurement in run.outcome.measured("kl_noise_floor")
        if measurement.protocol.get("changed", "batch size") == changed
    ]
    return next(reversed(found), None)


def _whole_floor(references: Sequence[RunRecord]) -> Measurement | None:
    """The noise floor of another dtype, if it was measured on whole windows."""
    floor = _noise_floor(references, "dtype")
    return floor if floor is not None and floor.protocol.get("whole") else None


def _longest(rows: Iterable[VariantRow]) -> float:
    """Where the last bin of a divergence by position ends."""
    return max((each.high for row in rows for each in row.kl_by_position), default=1.0)


def _last(runs: Iterable[RunRecord]) -> RunRecord | None:
    """The newest of records that are in order."""
    return next(reversed(list(runs)), None)
