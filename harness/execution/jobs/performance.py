"""Measures the speed, memory and energy of a variant."""

from __future__ import annotations

from pathlib import Path

from harness.core.capability import Decodes, Logits, Spread
from harness.core.job import MeasurePerformance
from harness.execution.checks.drift import drift
from harness.execution.checks.kernels import grid_products, record_cuda_kernels
from harness.execution.checks.variant import record_repacking, verify_variant
from harness.execution.context import Context, checked
from harness.execution.footprint import footprint
from harness.execution.traffic import traffic
from harness.plugins import engine, metric


def run(job: MeasurePerformance, context: Context, out: Path) -> None:
    """Measures speed, memory and energy of prefill and decode, each in a separate pass."""
    variant = job.variant
    model = context.load(Decodes)
    if isinstance(model, Spread) and len(model.devices) > 1:
        context.label("pipelined", gpus=len(model.devices))
    if job.verify:
        verify_variant(context, checked(engine(variant.engine), model, Logits))
    if job.throughput is not None:
        with context.phase("generate"):
            context.add(metric("throughput").make(model, job.throughput, variant.seed, context.moment))
        context.labels += drift(context.moments, context.measurements)
        if job.conditions.memory:
            footprint(context, model, job.throughput)
        if job.energy:
            with context.phase("energy"):
                context.add(metric("energy").make(model, job.throughput, variant.seed, context.keep))
    for each in job.workloads:
        with context.phase(each.name):
            context.add(metric(each.name).make(model, metric(each.name).parsed(each.params), variant.seed))
    record_repacking(context, model)
    if job.throughput is not None:  # profiles, so it comes last
        traffic(context, model, job.throughput, grid_products(context, model, job.throughput))
    elif job.verify:
        record_cuda_kernels(context, checked(engine(variant.engine), model, Logits))
