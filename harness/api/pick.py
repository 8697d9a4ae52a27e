"""``qharness pick``: compares published quantizations of a model, of which one at a time is on the disk."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import plugins as registry
from harness.analysis.choice import Recommendation
from harness.api.locations import open_results
from harness.api.propose import as_seen_from, find_model, free_bytes, is_hub_id, is_written, recipe_name
from harness.api.run import run
from harness.core.foreign import locate
from harness.core.job import VariantJob
from harness.core.model import ModelRef
from harness.core.record import RunRecord
from harness.engines.vllm.tables import READ
from harness.errors import SourceError, UsageError
from harness.execution.events import Event
from harness.execution.local import LocalSite, local_site
from harness.execution.sweep import done
from harness.models import hub
from harness.models.sources import label_of
from harness.planning.draft.draft import RecipeDraft
from harness.planning.draft.sizing import EFFORTS, STANDARD
from harness.planning.estimate.chosen import Chosen
from harness.planning.expand import baseline, choices
from harness.planning.plan import PlannedRun, plan
from harness.planning.versions import environment
from harness.recipe import Recipe, load_recipe
from harness.storage.disk import Disk

CHECKPOINT = "checkpoint"
TIME_LIMIT = "2h"
"""Of one run: how long loading and measuring a checkpoint takes is not known before it is here."""


@dataclass(frozen=True)
class PickRequest:
    """What to compare: published ``checkpoints`` (folders, .gguf files, hub ids) of the unquantized ``model``.

    ``disk_bytes`` is the most that one of them may take of the disk; None: what is free.
    """

    model: str
    checkpoints: tuple[str, ...]
    engine: str = "transformers"
    disk_bytes: int | None = None
    budget: str | None = None

    @property
    def arguments(self) -> str:
        """The arguments of a command that asks for the same."""
        budget = ["--budget", self.budget] if self.budget else []
        return shlex.join([*self.checkpoints, "--of", self.model, "--engine", self.engine, *budget])


def write_recipe(
    request: PickRequest, out: Path | None = None, replace: bool = False, say: Callable[[str], None] = lambda m: None
) -> Path:
    """Writes the recipe that compares the checkpoints, each hub id with its newest commit; returns its path.

    A file that was written for the same request is left as it is. Raises SourceError, before anything is downloaded,
    for a model or checkpoint that cannot be found or is too large for the disk.
    """
    registry.engine(request.engine)
    name = recipe_name("pick", request.model)
    path = out or Path(f"{name}.yaml")
    first = f"qharness pick {request.arguments}"
    if is_written(path, first, replace):
        return path
    twice = [label for label, count in Counter(map(label_of, request.checkpoints)).items() if count > 1]
    if twice:
        raise UsageError(f"two checkpoints are named {twice[0]!r}: a table could not tell them apart")
    chosen = tuple(_checkpoint(each, path.parent, request.disk_bytes) for each in request.checkpoints)
    entry, source = find_model(request.model, None, path.parent, say)
    draft = RecipeDraft(
        name, entry, source, request.engine, EFFORTS[STANDARD], "demo", TIME_LIMIT, request.budget, chosen
    )
    Disk().write_whole(path, draft.text_with([first, "Written by the command above, which resumes with it."]).encode())
    return path


def _checkpoint(named: str, folder: Path, disk_bytes: int | None) -> Chosen:
    method = registry.method(CHECKPOINT)
    if locate(named, Path(), SourceError).exists():
        return Chosen(method, method.params(id=as_seen_from(folder, named)), named)
    if not is_hub_id(named):
        raise SourceError(f"checkpoint not found: {named!r} is no file or folder, and no hub id")
    found, free = hub.newest(named), free_bytes(hub.cache_folder())
    most = free if disk_bytes is None else min(disk_bytes, free)
    if found.bytes > most and not hub.is_cached(named, found.commit):
        raise SourceError(
            f"{named!r}: takes {found.bytes / 1e9:.1f} GB, and the disk may take {most / 1e9:.1f} GB more"
        )
    return Chosen(method, method.params(id=named, revision=found.commit), named)


def measure_each(
    path: Path,
    results: str | Path = "results",
    cache: str | Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda message: None,
    on_event: Callable[[Event], None] = lambda event: None,
    runner: Callable[..., Sequence[RunRecord]] = run,
) -> tuple[RunRecord, ...]:
    """Runs the recipe's checkpoints one after the other; returns the last record of each run.

    What a run downloaded of a checkpoint is deleted afterwards, also if it was interrupted; what was in the hub's cache
    before stays. A checkpoint of which every run is done is not downloaded again.
    """
    recipe = load_recipe(path)
    baseline, *checkpoints = recipe.methods
    records: dict[str, RunRecord] = {}
    for entry in checkpoints:
        alone = recipe.model_copy(update={"methods": (baseline, entry)})
        name, commit = str(entry.params["id"]), entry.params.get("revision")
        if _is_done(alone, results, cache, pythons):
            say(f"{name}: measured before")
            continue
        was_here = commit is None or hub.is_cached(name, commit)
        try:
            made = runner(alone, results, cache, pythons, on_event=on_event)
            records |= {record.spec.run_id: record for record in made}
        finally:
            if commit is not None and not was_here:
                hub.forget(name, commit)
    return tuple(records.values())


def _is_done(recipe: Recipe, results: str | Path, cache: str | Path | None, pythons: Mapping[str, Path] | None) -> bool:
    site = local_site(cache, pythons)
    records = open_results(results, site.artifacts.root).read(recipe.name).records
    planned = tuple(_as_if_here(recipe, site, records))
    finished = done(planned, records, site.artifacts.outcome)
    return all(run.unsupported or run.spec.run_id in finished for run in planned)


def _as_if_here(recipe: Recipe, site: LocalSite, records: Sequence[RunRecord]) -> Iterator[PlannedRun]:
    """The plan as it would be with the checkpoint on the disk, as far as records of its runs say what is in it.

    Its format decides which packages read it, and their versions are part of a run's identity.
    """
    measured = {record.spec.case_id: record.spec.job for record in records}
    published = next(choice for choice in choices(recipe, baseline(recipe)) if choice.checkpoint)
    for each in plan(recipe, site):
        spec, job = each.spec, measured.get(each.spec.case_id)
        if job is None or not isinstance(job, VariantJob) or job.variant.method.published is None:
            yield each
        else:
            machine, asked = site.machine(spec.device), spec.environment
            now = environment(job, published, machine, site, asked.stack, asked.repetition)
            yield replace(each, spec=replace(spec, job=job, environment=now))


def serve_command(recommendation: Recommendation) -> str | None:
    """The command that serves the picked checkpoint; None if there is none, or no server reads it."""
    pick = recommendation.pick
    evidence = None if pick is None else pick.row.evidence
    published = None if evidence is None else evidence.variant.method.published
    return None if published is None else serving(published)


def serving(ref: ModelRef) -> str | None:
    """``llama-server`` for a GGUF file, ``vllm serve`` for a quant_method that vLLM reads; None for any other."""
    if ref.kind == "gguf":
        return shlex.join(["llama-server", "--model", ref.path])
    if ref.native_quantization is not None and ref.native_quantization not in READ:
        return None
    if ref.kind == "hub":
        return shlex.join(["vllm", "serve", ref.id, "--revision", str(ref.revision)])
    return shlex.join(["vllm", "serve", ref.path])
