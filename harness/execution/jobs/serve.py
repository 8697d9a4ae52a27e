"""Measures a variant's server under load."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core.capability import Endpoint
from harness.core.identity import Scalar
from harness.core.job import MeasureServing
from harness.core.record import Measurement
from harness.core.workload import ServingWorkload, Slo, shown_level
from harness.errors import InvalidRunError, UnsupportedError
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
from harness.stats.serving import Answered, answered, in_bursts, misses, undriven
from harness.storage.evidence import MAX_ROWS
from harness.text.load import Prompts, digest_of, requests


@dataclass(frozen=True)
class _UnderLoad:
    """A running server, what sends it requests, and the requests of each level."""

    endpoint: Endpoint
    generator: LoadGenerator
    workload: ServingWorkload
    prompts: Prompts


def run(job: MeasureServing, context: Context, out: Path) -> None:
    """Starts the server and measures every level of load, the lowest first; then those between that bisect."""
    tokenizer = tokenizer_of(context.source())
    if tokenizer is None:
        raise UnsupportedError("it has no tokenizer, by which prompts of a length are made")
    prompts = Prompts(job.serving, tokenizer)
    python = Path(os.environ[INTERPRETER])
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="qharness-server-")))
        running.callback(_keep_log, folder / LOG)  # when the server has ended
        endpoint = running.enter_context(context.serve(folder))
        with context.phase("start load generator"):
            generator = running.enter_context(load_generator_of(python, endpoint))
        try:
            _climb(job, context, _UnderLoad(endpoint, generator, job.serving, prompts))
        finally:
            _fit(context)
    context.labels += drift(context.moments, (), warm=False)


def _keep_log(log: Path) -> None:
    """Prints what a server that was started here printed, so that it is part of the run's log."""
    if log.is_file():
        print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr, flush=True)


def _climb(job: MeasureServing, context: Context, server: _UnderLoad) -> None:
    workload, slo = job.serving, job.serving.slo
    measured = {level: _measure(job, context, server, level) for level in workload.levels}
    if slo is None:
        return
    for _ in range(workload.bisect):
        level = next_level(list(measured), _met(measured, slo), slo.share, workload.arrival == "concurrent")
        if level is None or shown_level(level) in map(shown_level, measured):
            break
        measured[level] = _measure(job, context, server, level)
        measured = dict(sorted(measured.items()))
    met = _met(measured, slo)
    held = largest_level(list(measured), met, slo.share)
    context.add([largest(held, workload.unit, slo, {**workload.protocol, "client": server.generator.version})])
    if not held:
        _report_nearest(context, workload, measured, slo)


def _fit(context: Context) -> None:
    """Leaves gaps out if all levels together have more values than a record may have; a label says how many."""
    context.measurements, step = fitted(context.measurements, MAX_ROWS)
    if step > 1:
        context.label("gaps_left_out", step=step)


def _met(measured: Mapping[float, Sequence[Answered]], slo: Slo) -> list[list[float]]:
    return [[float(not misses(each, slo, in_bursts(own))) for each in own] for own in measured.values()]


def _report_nearest(
    context: Context, workload: ServingWorkload, measured: Mapping[float, Sequence[Answered]], slo: Slo
) -> None:
    """Says which level came nearest to an SLO that none holds, and which limit most of its requests miss."""
    shares = dict(zip(measured, (float(np.mean(each)) for each in _met(measured, slo)), strict=True))
    level = max(shares, key=lambda each: shares[each])
    own = measured[level]
    missed = Counter(name for each in own for name in misses(each, slo, in_bursts(own)))
    context.fact(
        "slo_not_held",
        slo=slo.label,
        level=f"{shown_level(level)} {workload.unit}",
        share=shares[level],
        missed=missed.most_common(1)[0][0],
    )


def _measure(job: MeasureServing, context: Context, server: _UnderLoad, level: float) -> list[Answered]:
    """Measures one level of load; returns the requests that count.

    Raises InvalidRunError if the client could not send them when they were due.
    """
    workload = job.serving
    planned = requests(workload, level, job.variant.seed, server.prompts)
    concurrent = int(level) if workload.arrival == "concurrent" else None
    context.moment("load begins")
    with (
        context.phase("load", level=level),
        counting(server.endpoint.metrics_url) as counted,
        _joules(job, context) as joules,
    ):
        every = server.generator.drive(server.endpoint, planned, concurrent, workload.natural)
    context.moment("load ends")
    found = every[workload.warmup :]
    if (reason := undriven(found)) is not None:
        raise InvalidRunError(
            f"{shown_level(level)} {workload.unit}: {reason}; lower the rate, or give the client cores of its own"
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
    if not job.energy:
        yield spent
        return
    with meters(job.conditions.device, context.keep) as counters:
        before = [each.read() for each in counters]
        yield spent
        for each, began in zip(counters, before, strict=True):
            spent[each.source] = each.read() - began
