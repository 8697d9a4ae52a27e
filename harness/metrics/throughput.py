"""Prefill and decode speed, timed apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.contracts import LoadedModel, Metric
from harness.metrics.stopwatch import Stopwatch, stopwatch
from harness.numerics.prompts import random_tokens
from harness.record import Measurement
from harness.spec import Cell, Scalar, ThroughputWorkload

if TYPE_CHECKING:
    import torch

VERSION = 2


def measure(model: LoadedModel, workload: ThroughputWorkload, seed: int) -> Iterator[Measurement]:
    """Two measurements per cell of the grid: ``prefill_s`` per iteration and ``decode_step_s`` per step.

    Prompts are random tokens of a fixed seed, the output length is fixed and EOS has no effect; the
    clock is the device's (see stopwatch). Warm-up iterations run the same work and are left out.
    """
    for cell in workload.cells:
        yield from _cell(model, workload, cell, seed)


def _cell(model: LoadedModel, workload: ThroughputWorkload, cell: Cell, seed: int) -> Iterator[Measurement]:
    import torch

    tokens = random_tokens(model.vocabulary, cell.batch_size, cell.prompt_tokens, seed).to(model.device)
    watch = stopwatch(model)
    prefills: list[float] = []
    steps: list[tuple[int, float]] = []
    with torch.inference_mode():
        for iteration in range(-workload.warmup, workload.iterations):
            prefill_s, *steps_s = _generate(model, tokens, workload.new_tokens, watch)
            if iteration >= 0:
                prefills.append(prefill_s)
                steps += [(iteration, step_s) for step_s in steps_s]
    protocol: dict[str, Scalar] = {
        **cell.protocol,
        "warmup": workload.warmup,
        "iterations": workload.iterations,
        "clock": watch.clock,
    }
    yield _timing("prefill_s", tuple(prefills), tuple(map(str, range(len(prefills)))), protocol)
    yield _timing("decode_step_s", tuple(s for _, s in steps), tuple(str(i) for i, _ in steps), protocol)


def _generate(model: LoadedModel, tokens: torch.Tensor, new_tokens: int, watch: Stopwatch) -> list[float]:
    """Seconds of one prefill, then of each of new_tokens greedy decoding steps; choosing tokens is not in them."""
    model.sync()
    with watch.span():
        logits, cache = model.prefill(tokens)
    for _ in range(new_tokens):
        token = logits.argmax(dim=-1, keepdim=True)
        with watch.span():
            logits, cache = model.decode(token, cache)
    return watch.read_s()


def _timing(
    metric: str, values: tuple[float, ...], clusters: tuple[str, ...], protocol: dict[str, Scalar]
) -> Measurement:
    return Measurement(
        metric=metric,
        version=VERSION,
        unit="s",
        direction="lower",
        evidence="samples",
        values=values,
        cluster_ids=clusters,
        protocol=protocol,
    )


THROUGHPUT = Metric(
    name="throughput",
    version=VERSION,
    kind="workload",
    summary="prefill and decode times per batch size and prompt length, raw values kept",
    make=measure,
)
