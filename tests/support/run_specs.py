"""Run specs for tests, built from flat names: which of its parts a name belongs to is looked up."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from harness.core.job import JOBS, Conditions, Environment, VariantJob
from harness.core.model import MethodRef, ModelRef
from harness.core.run import ReaderSettings, RunSpec
from harness.core.variant import Variant
from harness.core.workload import PerplexityWorkload, ServingWorkload, Slo, TaskWorkload, TextRef

MODEL = ModelRef("m", "M", "0" * 64, "directory", "/m")
NONE = MethodRef("none", 1, {}, "none", "none")
SCORED = PerplexityWorkload(TextRef("t", sha256="1" * 64), "gptq", 64, None)
UNDER_LOAD = ServingWorkload(
    arrival="concurrent",
    levels=(8.0,),
    text=TextRef("demo", sha256="2" * 64),
    prompt_tokens=32,
    new_tokens=5,
    natural=False,
    requests=40,
    duration_s=None,
    warmup=0,
    slo=Slo(ttft_s=0.5, share=0.9),
)
USUAL = {
    "perplexity": SCORED,
    "task": TaskWorkload("arc_easy", "/tasks/arc_easy.yaml"),
    "throughput": None,
    "serving": UNDER_LOAD,
}
"""What a kind of run scores, answers, is timed on or serves where a test does not care."""


def run_spec(
    kind: str,
    recipe: str = "sweep",
    model: ModelRef = MODEL,
    method: MethodRef = NONE,
    baseline: MethodRef = NONE,
    engine: str = "transformers",
    scope: str = "decoder",
    **others: Any,
) -> RunSpec:
    """A run of a kind. Raises TypeError for a name that no part of such a run has."""
    of_variant = issubclass(JOBS[kind], VariantJob)
    if of_variant:
        given: dict[str, Any] = {"variant": Variant(model, method, engine, scope), "baseline": baseline}
    else:
        given = {"model": model}
    own = {each.name for each in fields(JOBS[kind])}
    given = {name: value for name, value in {**USUAL, **others, **given}.items() if name in own}
    job: Any = JOBS[kind](conditions=Conditions(), **given)  # type: ignore[call-arg]
    environment = Environment(method_version=0 if kind == "machine" else method.version)
    return changed(RunSpec(recipe, job, environment), **{name: others[name] for name in others if name not in given})


def changed(spec: RunSpec, **others: Any) -> RunSpec:
    """The run with some of its parts' fields changed. Raises TypeError for a name that none of them has."""
    job: Any = spec.job
    taken: set[str] = set()

    def part(value: Any) -> Any:
        own = {each.name for each in fields(value)} & (others.keys() - taken)
        taken.update(own)
        return replace(value, **{name: others[name] for name in own})

    spec = part(spec)
    job = part(job)
    job = replace(job, conditions=part(job.conditions))
    if isinstance(job, VariantJob):
        job = replace(job, variant=part(job.variant))
    environment = part(spec.environment)
    if "method" in others and isinstance(job, VariantJob):
        environment = replace(environment, method_version=others["method"].version)
    readers: ReaderSettings = part(spec.readers)
    if others.keys() - taken:
        raise TypeError(f"a {spec.kind} run has no {', '.join(sorted(others.keys() - taken))}")
    return replace(spec, job=job, environment=environment, readers=readers)
