"""Divergence of a model from itself, and of artifacts from what was saved."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from harness.acceptance import recipes
from harness.acceptance.bench import Bench, CheckResult, judged
from harness.acceptance.models import write_small
from harness.core.job import MeasureQuality
from harness.core.record import RunRecord


def quality(bench: Bench) -> Iterator[CheckResult]:
    """The unquantized model's divergence from itself is 0, a quantized one's is not, and artifacts reload exactly."""
    folder = bench.folder / "small-model"
    write_small(folder)
    for record in bench.measure(recipes.quality(folder)):
        if isinstance(record.spec.job, MeasureQuality):
            yield _divergence(bench, record)
            if record.spec.method.stage == "offline":
                yield _reload(bench, record)


def _divergence(bench: Bench, record: RunRecord) -> CheckResult:
    method, itself = record.spec.method.label, record.spec.is_baseline
    about = "divergence from itself" if itself else f"divergence of {method}"
    found = record.find("kl")
    if record.status != "ok" or found is None:
        return bench.fault(about, record)
    largest, mean = max(map(abs, found.values)), fmean(found.values)
    reason = f"KL at most {largest:.3g} nat, {mean:.3g} on average of {len(found.values)} tokens"
    return judged(about, largest == 0 if itself else mean > 0, reason)


def _reload(bench: Bench, record: RunRecord) -> CheckResult:
    about = f"reload of {record.spec.method.label}"
    found = record.outcome.fact("reload_difference")
    if record.status != "ok" or found is None:
        return bench.fault(about, record)
    return judged(about, found.arguments["relative"] == 0, found.sentence)
