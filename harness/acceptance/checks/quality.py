"""Divergence of a model from itself, and of artifacts from what was saved."""

from __future__ import annotations

from collections.abc import Iterator

from harness.acceptance import recipes
from harness.acceptance.bench import Bench, Finding, judged, shortfall
from harness.acceptance.models import write_small
from harness.core.job import MeasureQuality
from harness.core.record import RunRecord


def quality(bench: Bench) -> Iterator[Finding]:
    """The unquantized model's divergence from itself is 0, a quantized one's is not, and artifacts reload exactly."""
    folder = bench.folder / "small-model"
    write_small(folder)
    records = bench.measure(recipes.quality(folder))
    measured = [each for each in records if isinstance(each.spec.job, MeasureQuality)]
    fault = shortfall(records)
    if fault is not None:
        yield bench.fault("divergence", fault)
        return
    kl = {record.spec.method.label: _kl(record) for record in measured}
    itself = max(map(abs, kl["none"]), default=1.0)
    yield judged("divergence from itself", itself == 0, f"KL {itself:.3g} nat in {len(kl['none'])} tokens")
    others = {label: sum(values) / len(values) for label, values in kl.items() if label != "none" and values}
    told = ", ".join(f"{label} {mean:.3g}" for label, mean in others.items())
    good = len(others) == len(kl) - 1 and min(others.values()) > 0
    yield judged("divergence of quantized models", good, f"mean KL in nat: {told}")
    apart = {
        record.spec.method.label: fact.arguments["relative"]
        for record in measured
        if (fact := record.outcome.fact("reload_difference")) is not None
    }
    told = ", ".join(f"{label} {difference:.3g}" for label, difference in apart.items())
    exact = bool(apart) and all(difference == 0 for difference in apart.values())
    yield judged("reload", exact, f"logits of what was saved and read again differ by: {told or 'not compared'}")


def _kl(record: RunRecord) -> tuple[float, ...]:
    found = record.find("kl")
    return () if found is None else found.values
