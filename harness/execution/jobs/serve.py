"""Measures a variant's server under load."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core.capability import Endpoint
from harness.core.identity import Scalar
from harness.core.job import MeasureServing
from harness.core.label import Fact
from harness.core.owner import temporary_folder
from harness.core.record import Measurement
from harness.core.workload import ServingWorkload, Slo, shown_level
from harness.errors import UndrivenError, UnsupportedError
from harness.execution.checks.drift import drift
from harness.execution.context import Context
from harness.execution.counters import counting
from harness.execution.load import LoadGenerator, load_generator_of
from harness.libraries.load_generator import INTERPRETER
from harness.libraries.serving import LOG
from harness.metrics.energy import meters
from harness.metrics.serving import counter, fitted, largest
from harness.models.gguf.tokenizer import tokenizer_of
from harness.plugins import metric
from harness.stats.capacity import largest_level, next_level
from harness.stats.serving import Answered, answered, in_bursts, meets, misses, undriven, unfilled
from harness.storage.evidence import MAX_ROWS
from harness.text.load import Prompts, digest_of, requests


@dataclass(frozen=True)
class _UnderLoad:
    """A running server, what sends it requests, and the requests of each level."""

    endpoint: Endpoint
    generator: LoadGenerator
    workload: ServingWorkload
    prompts: Prompts


@dataclass(frozen=True)
class _Level:
    """The requests of a level that count, and whether each met the SLO; nothing of that without an SLO."""

    requests: Sequence[Answered]
    met: Sequence[float]


def run(job: MeasureServing, context: Context, out: Path) -> None:
    """Starts the server and measures every level of load, the lowest first; then those between that bisect."""
    tokenizer = tokenizer_of(context.source())
    if tokenizer is None:
        raise UnsupportedError("it has no tokenizer, by which prompts of a length are made")
    prompts = Prompts(job.serving, tokenizer)
    python = Path(os.environ[INTERPRETER])
    with ExitStack() as running:
        folder = running.enter_context(temporary_folder())
        running.callback(_keep_log, folder / LOG)  # when the server has ended
        endpoint = running.enter_context(context.serve(folder))
        _refuse_long_rows(job.serving, prompts, job.variant.seed, endpoint)
        _label_queue(context, job.serving, endpoint)
        with context.phase("start load generator"):
            generator = running.enter_context(load_generator_of(python, endpoint))
        try:
            _climb(job, context, _UnderLoad(endpoint, generator, job.serving, prompts))
        finally:  # what was measured below a level that failed is judged as that of any other run
            _fit(context)
            context.labels += drift(context.moments, (), warm=False)


def _refuse_long_rows(workload: ServingWorkload, prompts: Prompts, seed: int, endpoint: Endpoint) -> None:
    """Raises UnsupportedError if the server has no room for one of the text's rows; other lengths are known before."""
    if workload.prompt_tokens is not None or endpoint.longest_tokens is None:
        return
    asked = {each.prompt for level in workload.levels for each in requests(workload, level, seed, prompts)}
    longest = max(map(prompts.tokens, asked))
    if longest + workload.new_tokens > endpoint.longest_tokens:
        raise UnsupportedError(
            f"a row of {workload.text.id} has {longest} tokens, which with {workload.new_tokens} new ones exceed the "
            f"{endpoint.longest_tokens} that the server keeps of a text; let it keep more, name a text of shorter rows "
            "or ask for a number of tokens"
        )


def _label_queue(context: Context, workload: ServingWorkload, endpoint: Endpoint) -> None:
    highest = int(workload.levels[-1])
    if workload.arrival == "concurrent" and endpoint.together is not None and highest > endpoint.together:
        context.label("requests_queue", concurrent=highest, together=endpoint.together)


def _keep_log(log: Path) -> None:
    """Prints what a server that was started here printed, so that it is part of the run's log."""
    if log.is_file():
        print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr, flush=True)


def _climb(job: MeasureServing, context: Context, server: _UnderLoad) -> None:
    """Measures all levels, or those below one that cannot be measured: what holds the SLO among them is told."""
    workload, slo = job.serving, job.serving.slo
    climbed: dict[float, _Level] = {}

    def measure(level: float) -> None:
        found = _measure(job, context, server, level)
        climbed[level] = _Level(found, meets(found, slo) if slo else ())

    try:
        for level in workload.levels:
            measure(level)
        if slo is not None:
            for _ in range(workload.bisect):
                between = _next(workload, slo, climbed)
                if between is None or shown_level(between) in map(shown_level, climbed):
                    break
                measure(between)
    finally:
        if slo is not None and climbed:
            _report_largest(context, server, slo, climbed)


def _fit(context: Context) -> None:
    """Leaves gaps out if all levels together have more values than a record may have; a label says how many."""
    context.measurements, step = fitted(context.measurements, MAX_ROWS)
    if step > 1:
        context.label("gaps_left_out", step=step)


def _next(workload: ServingWorkload, slo: Slo, climbed: Mapping[float, _Level]) -> float | None:
    levels, met = _rising(climbed)
    return next_level(levels, met, slo.share, workload.arrival == "concurrent", workload.least_level)


def _rising(climbed: Mapping[float, _Level]) -> tuple[list[float], list[Sequence[float]]]:
    """The levels, the lowest first, and which of their requests met the SLO."""
    levels = sorted(climbed)
    return levels, [climbed[level].met for level in levels]


def _report_largest(context: Context, server: _UnderLoad, slo: Slo, climbed: Mapping[float, _Level]) -> None:
    """The largest load that holds the SLO; of one that none holds, the level that came nearest, and what it misses."""
    workload, (levels, met) = server.workload, _rising(climbed)
    held = largest_level(levels, met, slo.share)
    context.add([largest(held, workload.unit, slo, {**workload.protocol, "client": server.generator.version})])
    if held:
        return
    shares = {level: float(np.mean(climbed[level].met)) for level in levels}
    nearest = max(shares, key=lambda each: shares[each])
    own = climbed[nearest].requests
    bursts = in_bursts(own)
    missed = Counter(name for each in own for name in misses(each, slo, bursts))
    context.fact(
        "slo_not_held",
        slo=slo.label,
        level=f"{shown_level(nearest)} {workload.unit}",
        share=shares[nearest],
        missed=missed.most_common(1)[0][0],
        lowest=f"{shown_level(levels[0])} {workload.unit}",
    )


def _measure(job: MeasureServing, context: Context, server: _UnderLoad, level: float) -> list[Answered]:
    """Measures one level of load; returns the requests that count.

    Raises UndrivenError if the client could not send them when they were due, or when there was room for them.
    """
    workload = job.serving
    planned = requests(workload, level, job.variant.seed, server.prompts)
    concurrent = int(level) if workload.arrival == "concurrent" else None
    context.moment("load begins")
    try:
        with (
            context.phase("load", level=level),
            counting(server.endpoint.metrics_url) as counted,
            _joules(job, context) as joules,
        ):
            every = server.generator.drive(server.endpoint, planned, concurrent, workload.natural)
    finally:
        context.moment("load ends")
    found = every[workload.warmup :]
    if (reason := undriven(found) if concurrent is None else unfilled(every, concurrent)) is not None:
        lower = "rate" if concurrent is None else "concurrency"
        raise UndrivenError(
            f"{shown_level(level)} {workload.unit}: {reason}; lower the {lower}, or give the client cores of its own"
        )
    protocol: dict[str, Scalar] = {
        **workload.protocol,
        "level": level,
        "client": server.generator.version,
        "requests": len(found),
        "warmup": workload.warmup,
        "schedule": digest_of(planned),
    }
    context.add(metric("serving").make(found, workload.slo, protocol))
    context.add(_counters(counted.risen, counted.highest, protocol))
    tokens = sum(each.output_tokens for each in answered(every))
    if tokens:
        context.add(
            counter("serving_j_per_tok", "J/token", spent / tokens, {**protocol, "source": source})
            for source, spent in joules.items()
        )
    _note_answers(context, workload, level, found)
    return found


def _note_answers(context: Context, workload: ServingWorkload, level: float, found: Sequence[Answered]) -> None:
    failed = [each.error for each in found if each.error]
    if failed:
        ((reason, _),) = Counter(failed).most_common(1)
        where = f"{shown_level(level)} {workload.unit}"
        context.fact("requests_failed", failed=len(failed), requests=len(found), level=where, reason=reason)
    if in_bursts(found):
        context.fact("tokens_in_bursts")
    short = [each for each in answered(found) if each.output_tokens < workload.new_tokens]
    if short and not workload.natural and not any(each.code == "answers_short" for each in context.labels):
        context.label("answers_short", tokens=workload.new_tokens)


def _counters(
    risen: Mapping[str, float], highest: Mapping[str, float], protocol: Mapping[str, Scalar]
) -> Iterator[Measurement]:
    if "preemptions" in risen:
        yield counter("serving_preemptions", "preemptions", risen["preemptions"], protocol)
    if risen.get("prefix_cache_queries"):
        share = risen.get("prefix_cache_hits", 0.0) / risen["prefix_cache_queries"]
        yield counter("serving_prefix_cache_hits", "", share, protocol)
    for name, value in highest.items():
        yield counter(f"serving_{name}", "" if name == "cache_use" else "requests", value, protocol)


@contextmanager
def _joules(job: MeasureServing, context: Context) -> Iterator[dict[str, float]]:
    """By the name of each energy counter, what it counts in the meantime; the power at rest is part of it."""
    spent: dict[str, float] = {}
    if (obstacle := job.energy_obstacle) is not None:
        context.keep(Fact("energy_not_measured", {"counter": "server", "reason": obstacle}))
    if not job.energy or obstacle is not None:
        yield spent
        return
    with meters(job.conditions.device, context.keep) as counters:
        before = [each.read() for each in counters]
        yield spent
        for each, began in zip(counters, before, strict=True):
            spent[each.source] = each.read() - began
