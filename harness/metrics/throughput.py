"""Prefill and decode speed, timed separately."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.core.capability import Decoder, Decodes
from harness.core.column import numbers, texts
from harness.core.identity import Scalar
from harness.core.metric import Metric
from harness.core.record import Measurement
from harness.core.workload import GridCell, ThroughputWorkload
from harness.metrics.stopwatch import Stopwatch, stopwatch
from harness.numerics.prompts import random_tokens

if TYPE_CHECKING:
    import torch

VERSION = 2


def measure(
    model: Decodes, workload: ThroughputWorkload, seed: int, moment: Callable[[str], None] = lambda name: None
) -> Iterator[Measurement]:
    """Two measurements per cell of the grid: ``prefill_s`` per iteration and ``decode_step_s`` per step.

    Compiled mode adds a third, ``decoder_ready_s``: the time to compile, and to generate one text in both modes to
    compare them. It is shorter in later processes because torch.compile caches on disk.

    Prompts are random tokens with a fixed seed, the output length is fixed and EOS has no effect. The clock is the
    device's (see stopwatch). Warm-up iterations do the same work and are left out. ``moment`` is called when the timed
    iterations of a cell begin and end: the device is hot then.
    """
    for cell in workload.cells:
        yield from _cell(model, workload, cell, seed, moment)


def _cell(
    model: Decodes, workload: ThroughputWorkload, cell: GridCell, seed: int, moment: Callable[[str], None]
) -> Iterator[Measurement]:
    import torch

    tokens = random_tokens(model.vocabulary, cell.batch_size, cell.prompt_tokens, seed).to(model.device)
    watch = stopwatch(model)
    prefills: list[float] = []
    steps: list[tuple[int, float]] = []
    began = time.perf_counter()
    with torch.inference_mode(), model.decoder(cell.decode_mode, tokens, cell.new_tokens) as decoder:
        ready_s = time.perf_counter() - began
        for iteration in range(-workload.warmup, workload.iterations):
            if iteration == 0:
                moment("timing begins")
            model.sync()
            prefill_s, *steps_s = _generate(decoder, tokens, cell.new_tokens, watch)
            if iteration >= 0:
                prefills.append(prefill_s)
                steps += [(iteration, step_s) for step_s in steps_s]
        moment("timing ends")
    protocol: dict[str, Scalar] = {
        **cell.protocol,
        "warmup": workload.warmup,
        "iterations": workload.iterations,
        "clock": watch.clock,
    }
    names = [str(iteration) for iteration in range(workload.iterations)]
    yield _timing("prefill_s", prefills, names, protocol)
    yield _timing("decode_step_s", [s for _, s in steps], [names[iteration] for iteration, _ in steps], protocol)
    if cell.decode_mode == "compiled":
        yield _timing("decoder_ready_s", [ready_s], [], {**cell.protocol})


def _generate(decoder: Decoder, tokens: torch.Tensor, new_tokens: int, watch: Stopwatch) -> list[float]:
    """Seconds of one prefill, then of each of new_tokens greedy decoding steps, without the time to choose tokens."""
    with watch.span():
        logits, cache = decoder.prefill(tokens)
    for _ in range(new_tokens):
        token = logits.argmax(dim=-1, keepdim=True)
        with watch.span():
            logits, cache = decoder.decode(token, cache)
    return watch.read_s()


def _timing(metric: str, values: Sequence[float], clusters: Sequence[str], protocol: dict[str, Scalar]) -> Measurement:
    return Measurement(
        metric=metric,
        version=VERSION,
        unit="s",
        direction="lower",
        evidence="samples",
        values=numbers(values, len(values)),
        cluster_ids=texts(clusters, len(clusters)),
        protocol=protocol,
    )


THROUGHPUT = Metric(
    name="throughput",
    version=VERSION,
    kind="workload",
    summary="prefill and decode times per batch size and prompt length, raw values kept",
    make=measure,
)
