"""The settings of the recipe, as recorded by its runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.core.job import VariantJob
from harness.core.record import RunRecord
from harness.core.run import RunSpec
from harness.core.variant import Variant
from harness.core.workload import CalibrationRef, PerplexityWorkload, ServingWorkload, TaskWorkload, ThroughputWorkload

MOST_NAMED = 60
"""Values named per setting; further ones are only counted."""


def asked(records: Sequence[RunRecord]) -> tuple[tuple[str, str], ...]:
    """Each setting with every value that occurs, in the order of the runs."""
    found: dict[str, dict[str, None]] = {}
    alike = {(each.spec.recipe, id(each.spec.job), each.spec.limits): each.spec for each in records}  # shared by many
    for spec in alike.values():
        for name, value in _of(spec):
            values = found.setdefault(name, {})
            if value:
                values[value] = None
    return tuple((name, _listed(list(values))) for name, values in found.items() if values)


def _of(spec: RunSpec) -> Iterator[tuple[str, str]]:
    yield "recipe", spec.recipe
    for model in spec.job.models[:1]:
        yield "models", _words([model.label, f"({model.id})", model.dtype])
    if isinstance(spec.job, VariantJob):
        yield from _of_variant(spec, spec.variant)
    if spec.perplexity:
        yield "perplexity", _perplexity(spec.perplexity)
    if spec.task:
        yield "tasks", _task(spec.task)
    if spec.throughput:
        yield "throughput", _throughput(spec.throughput)
    if spec.serving:
        yield "serving", _serving(spec.serving)


def _of_variant(spec: RunSpec, variant: Variant) -> Iterator[tuple[str, str]]:
    yield "baseline", spec.baseline.label
    if not spec.is_baseline:
        yield "methods", variant.method.label
    # What is made once serves every setting of an engine: it names none, but keeps the place.
    yield "engines", variant.engine_label if spec.job.measures_variant else ""
    yield "scope", ", ".join([variant.scope, *(f"not {pattern}" for pattern in variant.skip)])
    if spec.limits.time_s is not None:
        yield "time limit of a run", f"{spec.limits.time_s:g} s"
    if spec.limits.memory_bytes is not None:
        yield "memory limit of a run", f"{spec.limits.memory_bytes / 2**30:g} GiB"
    yield "seeds", str(variant.seed)
    if variant.calibration:
        yield "calibration", _calibration(variant.calibration)


def _listed(values: Sequence[str]) -> str:
    more = len(values) - MOST_NAMED
    return "; ".join(values[:MOST_NAMED]) + (f"; and {more:,} more" if more > 0 else "")


def _calibration(set_: CalibrationRef) -> str:
    return f"{set_.samples} samples of {set_.length} tokens of {set_.text.id}, {set_.packing}, seed {set_.seed}"


def _perplexity(workload: PerplexityWorkload) -> str:
    if workload.generation is not None:
        how = f"seed {workload.generation.seed}, temperature {workload.generation.temperature:g}"
        return f"{workload.windows} answers of {workload.context} tokens by the baseline to {workload.text.id}, {how}"
    windows = "all windows" if workload.windows is None else f"{workload.windows} windows"
    return f"{workload.text.id}, protocol {workload.protocol}, context {workload.context}, {windows}"


def _task(task: TaskWorkload) -> str:
    limit = f"first {task.limit}" if task.limit is not None else None
    return _words([task.name, None if task.fewshot is None else f"{task.fewshot}-shot", limit])


def _throughput(workload: ThroughputWorkload) -> str:
    batches, prompts = (" and ".join(map(str, each)) for each in (workload.batch_sizes, workload.prompt_tokens))
    return (
        f"batches of {batches}, prompts of {prompts} tokens, {workload.new_tokens} new, "
        f"{workload.warmup} to warm up, {workload.iterations} timed"
    )


def _serving(load: ServingWorkload) -> str:
    levels = " and ".join(f"{level:g}" for level in load.levels)
    count = f"{load.requests} requests" if load.requests else f"{load.duration_s:g} s"
    asked = load.protocol
    arrival = "" if load.arrival == "concurrent" else f", {load.arrival}"
    how = f"{levels} {load.unit}{arrival}; {count} each, {load.warmup} to warm up"
    slo = f"; SLO: {load.slo.label}" if load.slo else ""
    return f"{how}; prompts of {asked['prompts']}, answers of {asked['answers']}{slo}"


def _words(parts: Iterable[str | None]) -> str:
    return " ".join(part for part in parts if part)
