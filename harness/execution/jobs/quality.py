"""Measures the perplexity of a variant and its divergence from the baseline."""

from __future__ import annotations

from pathlib import Path

from harness.core.capability import Logits
from harness.core.job import MeasureQuality
from harness.execution import reference as references
from harness.execution.checks import noise
from harness.execution.checks.kernels import record_cuda_kernels
from harness.execution.checks.leak import check_leak, check_tokens
from harness.execution.checks.plausibility import plausibility
from harness.execution.checks.routers import comparing_routers
from harness.execution.checks.variant import record_repacking, record_streaming, verify_variant
from harness.execution.context import Context
from harness.execution.forward import observe
from harness.execution.windows import cut_windows
from harness.plugins import metric
from harness.text.leakage import RUN_TOKENS, halves_overlap


def run(job: MeasureQuality, context: Context, out: Path) -> None:
    """Measures perplexity and divergence in one forward pass over the text, and what the variant stores."""
    import torch

    spec = context.spec
    assert job.perplexity is not None, "only records of an early harness lack it"
    model = context.load(Logits)
    verify_variant(context, model)
    check_tokens(context, model)
    windows = cut_windows(context, job.perplexity, model)
    context.fact("halves_overlap", shared=halves_overlap(windows), run_tokens=RUN_TOKENS)
    if "calibrate" in spec.needs:
        check_leak(context, windows.tokens, job.allow_leak)
    observers = [metric("perplexity").make(windows)]
    kept = None
    if job.divergence:
        kept = references.Reference(context.cache.needed(spec, "reference"), job.conditions.device)
        kept.check(windows)
        observers.append(metric("divergence").make(windows))
    observers += [metric(each.name).make(windows, metric(each.name).parsed(each.params)) for each in job.observers]
    with comparing_routers(context, model, windows, kept), context.phase("forward"), torch.inference_mode():
        observe(model, windows, observers, kept)
    for observer in observers:
        context.add(observer.finish())
    if spec.is_baseline:
        plausibility(context, model, windows)
    noise.own_batch(context, model, windows)
    record_repacking(context, model)
    record_streaming(context, model)
    record_cuda_kernels(context, model)
