"""The runs that measure: the baseline's reference, a variant's quality, its performance."""

from __future__ import annotations

from pathlib import Path

from harness.core.capability import Decodes, LoadedModel, Logits
from harness.core.job import MeasurePerformance, MeasureQuality
from harness.core.metric import Windows
from harness.errors import UnsupportedError
from harness.execution import reference as references
from harness.execution.checks import noise
from harness.execution.checks.drift import drift
from harness.execution.checks.leak import check_leak, check_tokens
from harness.execution.checks.plausibility import plausibility
from harness.execution.checks.variant import note_repacking, take_stock
from harness.execution.context import Bench, checked
from harness.execution.footprint import footprint
from harness.execution.forward import observe
from harness.execution.traffic import traffic
from harness.plugins import engine, metric
from harness.text.leakage import RUN_TOKENS, halves


def reference(bench: Bench, out: Path) -> None:
    """Runs the baseline over the text, keeps its states, and measures what another batch size or dtype changes."""
    import torch

    spec = bench.spec
    model = bench.load(Logits)
    windows = _windows(bench, model)
    with bench.phase("forward"), torch.inference_mode():
        references.write(model, windows, out)
    kept, ledger = references.Reference(out, spec.device), model.weight_ledger()
    noise.other_batch(bench, model, windows, kept)
    model.close()
    noise.other_dtype(bench, ledger, windows, kept)


def quality(bench: Bench, out: Path) -> None:
    """Perplexity and divergence of a variant in one forward pass over the text, and what it stores."""
    import torch

    spec, job = bench.spec, bench.spec.job
    assert isinstance(job, MeasureQuality)
    model = bench.load(Logits)
    take_stock(bench, model)
    check_tokens(bench, model)
    windows = _windows(bench, model)
    bench.fact("halves_overlap", shared=halves(windows), run_tokens=RUN_TOKENS)
    if "calibrate" in spec.needs:
        check_leak(bench, windows.tokens)
    observers = [metric("perplexity").make(windows)]
    kept = None
    if job.divergence:
        kept = references.Reference(bench.cache.needed(spec, "reference"), spec.device)
        kept.check(windows)
        observers.append(metric("divergence").make(windows))
    with bench.phase("forward"), torch.inference_mode():
        observe(model, windows, observers, kept)
    for observer in observers:
        bench.add(observer.finish())
    if spec.is_baseline:
        plausibility(bench, model, windows)
    noise.own_batch(bench, model, windows)
    note_repacking(bench, model)


def performance(bench: Bench, out: Path) -> None:
    """Speed, memory and energy of prefill and decode in a fresh process, each in a pass of its own."""
    spec, job = bench.spec, bench.spec.job
    assert isinstance(job, MeasurePerformance)
    model = bench.load(Decodes)
    if job.verify:
        take_stock(bench, checked(engine(spec.engine), model, Logits))
    if job.throughput is not None:
        with bench.phase("generate"):
            bench.add(metric("throughput").make(model, job.throughput, spec.variant.seed, bench.moment))
        bench.labels += drift(bench.moments, bench.measurements)
        traffic(bench, model, job.throughput)
        if job.conditions.memory:
            footprint(bench, model, job.throughput)
        if job.energy:
            with bench.phase("energy"):
                bench.add(metric("energy").make(model, job.throughput, spec.variant.seed, bench.keep))
    note_repacking(bench, model)


def _windows(bench: Bench, model: LoadedModel) -> Windows:
    from harness.text.windows import cut

    assert bench.spec.perplexity is not None
    if model.tokenizer is None:
        raise UnsupportedError("perplexity needs a tokenizer, and the checkpoint holds none")
    with bench.phase("text"):
        return cut(bench.spec.perplexity, model.tokenizer)
