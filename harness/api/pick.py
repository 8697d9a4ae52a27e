"""``qharness pick``: compares published quantizations of a model, of which one at a time is on the disk."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import plugins as registry
from harness.analysis.choice import Recommendation
from harness.api.candidates import PickCandidates, Seeker, base_of
from harness.api.propose import find_model, forecaster_of, free_bytes, is_on_hub, is_written, recipe_name
from harness.api.run import RunSettings, run_part
from harness.api.workplace import USUAL_PLACE, Workplace
from harness.core.job import VariantJob
from harness.core.model import ModelRef
from harness.core.record import RunRecord
from harness.core.variant import Variant
from harness.engines.vllm.tables import READ
from harness.errors import UsageError
from harness.execution.debris import clear
from harness.execution.events import Cleared, Event
from harness.execution.fetch import fetch_into
from harness.execution.local import LocalSite
from harness.execution.resume import done
from harness.models import hub
from harness.models.downloads import hub_cache
from harness.models.sources import inspect, is_here, on_hub
from harness.planning.draft.draft import RecipeDraft
from harness.planning.draft.propose import LeftOut
from harness.planning.draft.sizing import EFFORTS, STANDARD
from harness.planning.expand import baseline, choices
from harness.planning.plan import PlannedRun, plan
from harness.planning.versions import environment
from harness.recipe import MethodEntry, Model, Recipe, load_recipe, recipe_at
from harness.storage.disk import Disk

TIME_LIMIT = "2h"
"""Of one run: how long loading and measuring a checkpoint takes is not known before it is here."""


@dataclass(frozen=True)
class PickRequest:
    """What to compare: published ``checkpoints`` (folders, .gguf files, hub ids) of the unquantized ``model``.

    Without checkpoints those that the hub knows are compared, and without a model it is the one that the checkpoints'
    cards name. ``disk_bytes`` is the most that the model, what is kept of it and one checkpoint at a time may take of
    the disk; None: what is free. Raises UsageError without both.
    """

    model: str | None
    checkpoints: tuple[str, ...] = ()
    engine: str = "transformers"
    disk_bytes: int | None = None
    budget: str | None = None

    def __post_init__(self) -> None:
        registry.engine(self.engine)
        if self.model is None and not self.checkpoints:
            raise UsageError("name checkpoints to compare, or with --of the model whose quantizations the hub knows")

    @property
    def arguments(self) -> str:
        """The arguments of a command that asks for the same."""
        of = ["--of", self.model] if self.model else []
        budget = ["--budget", self.budget] if self.budget else []
        return shlex.join([*self.checkpoints, *of, "--engine", self.engine, *budget])


@dataclass(frozen=True)
class PickRecipe:
    """A recipe's file, the checkpoints that it compares, and why others are not in it; none if it was there before."""

    path: Path
    checkpoints: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class PickRun:
    """The last record of each run, and the checkpoints that could not be measured."""

    records: tuple[RunRecord, ...]
    left_out: tuple[LeftOut, ...]


def write_recipe(
    request: PickRequest,
    place: Workplace = USUAL_PLACE,
    out: Path | None = None,
    replace: bool = False,
    say: Callable[[str], None] = lambda message: None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> PickRecipe:
    """Writes the recipe that compares the checkpoints, each hub id with its newest commit.

    A file that was written for the same request is left as it is. What an earlier pick downloaded before it was killed
    is deleted, since it takes room, and ``on_event`` receives that. Raises SourceError, before anything is downloaded,
    for a model that cannot be found and if no checkpoint can be compared; and after the model is downloaded if what is
    kept of it leaves no room for any checkpoint.
    """
    model = request.model or base_of(request.checkpoints)
    name = recipe_name("pick", model)
    path = out or Path(f"{name}.yaml")
    first = f"qharness pick {request.arguments}"
    site = place.site()
    if debris := clear([site.artifacts.root]):
        on_event(Cleared(debris))
    if is_written(path, first, replace):
        return PickRecipe(path)
    seeker = Seeker(request.engine, site, path.parent)
    candidates = seeker.named(request.checkpoints) if request.checkpoints else seeker.found(model)
    room = min(free_bytes(folder) for folder in (hub.cache_folder(), site.artifacts.root))
    base_bytes = _download_bytes(model)
    allowed = room if request.disk_bytes is None else min(room, request.disk_bytes)
    candidates = candidates.within(allowed - base_bytes)
    entry, source = find_model(model, None, path.parent, say)
    draft = RecipeDraft(name, entry, source, request.engine, EFFORTS[STANDARD], "demo", TIME_LIMIT, request.budget)
    planned = [run for run in plan(recipe_at(path, draft.data), site, models=[source]) if run.unsupported is None]
    kept_bytes = forecaster_of(site, place.store(site), name)(planned, planned).disk_bytes
    candidates = candidates.within(allowed - base_bytes - kept_bytes)
    draft = draft.having([each.chosen for each in candidates.kept], draft.effort)
    head = [first, "Written by the command above, which resumes with it.", *_left_out_lines(candidates)]
    Disk().write_whole(path, draft.text_with(head).encode())
    return PickRecipe(path, tuple(each.chosen.label for each in candidates.kept), candidates.left_out)


def _left_out_lines(candidates: PickCandidates) -> Iterator[str]:
    return (f"Left out: {each.label}: {each.reason}" for each in candidates.left_out)


def _download_bytes(model: str) -> int:
    """What of the unquantized model is not here yet."""
    if not is_on_hub(model):
        return 0
    found = hub.newest(model)
    return 0 if is_here(model, found.commit) else found.bytes


def measure_each(
    path: Path,
    settings: RunSettings,
    say: Callable[[str], None] = lambda message: None,
    runner: Callable[[Recipe, RunSettings], Sequence[RunRecord]] = run_part,
) -> PickRun:
    """Runs the recipe's checkpoints one after the other.

    A checkpoint is downloaded into a hub cache of its own, which is deleted afterwards, also if it was interrupted: the
    user's hub cache is read, and nothing changes in it. A checkpoint of which every run is done is not downloaded
    again. One that the hub does not give, or that turns out to be none, does not stop the others; raises its UsageError
    if there are no others.
    """
    root = settings.place.site().artifacts.root
    recipe = load_recipe(path)
    first, *checkpoints = recipe.methods
    records: dict[str, RunRecord] = {}
    faults: dict[str, UsageError] = {}
    for entry in checkpoints:
        alone = recipe.model_copy(update={"methods": (first, entry)})
        name = str(entry.params["id"])
        try:
            if _is_done(alone, settings.place):
                say(f"{name}: measured before")
                continue
            with hub_cache(root) as downloads:
                _download(entry, downloads)
                made = runner(alone.with_downloads(downloads), settings)
            records |= {record.spec.run_id: record for record in made}
        except UsageError as error:
            faults[name] = error
    if len(faults) == len(checkpoints):
        raise next(iter(faults.values()))
    left_out = (LeftOut(name, str(error).replace(f"{name!r}: ", "")) for name, error in faults.items())
    return PickRun(tuple(records.values()), tuple(left_out))


def _download(entry: MethodEntry, cache: Path) -> None:
    """Raises SourceError for a hub model that is not in the user's hub cache, and that the hub does not give."""
    given = entry.params
    if (commit := given.get("revision")) is not None:
        model = Model(id=given["id"], revision=commit, trust_remote_code=given.get("trust_remote_code", False))
        found = inspect(model, Path())
        if not found.ref.path:
            fetch_into(cache, found.ref)


def _is_done(recipe: Recipe, place: Workplace) -> bool:
    site = place.site()
    records = place.store(site).read(recipe.name).records
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


def measured_earlier(variants: Iterable[Variant], path: Path) -> list[str]:
    """The published checkpoints on a hub among the variants that the recipe does not name: an earlier pick did."""
    asked = {str(entry.params.get("id")) for entry in load_recipe(path).methods}
    published = (each.method.published for each in variants)
    return list(dict.fromkeys(ref.id for ref in published if ref is not None and ref.on_hub and ref.id not in asked))


def serve_command(recommendation: Recommendation) -> str | None:
    """The command that serves the picked checkpoint, or the unquantized one; None if no server reads it."""
    pick = recommendation.pick
    evidence = None if pick is None else pick.row.evidence
    return None if evidence is None else serving_variant(evidence.variant)


def serving_variant(variant: Variant) -> str | None:
    """The command that serves a published checkpoint, or an unquantized one as it was published; None for others."""
    ref = variant.method.published
    if ref is None and variant.method.name == "none" and variant.model.kind in ("hub", "directory"):
        ref = None if variant.model.altered else variant.model
    return None if ref is None else serving(ref)


def serving(ref: ModelRef) -> str | None:
    """``llama-server`` for a GGUF file, ``vllm serve`` for a quant_method that vLLM reads; None for any other.

    What is served is what was measured, also when its repository has a newer commit. llama-server itself would load the
    newest file of a repository, so that one is downloaded first.
    """
    if ref.kind == "gguf":
        repository, file = on_hub(ref.id)
        if not (ref.on_hub and file):
            return shlex.join(["llama-server", "--model", ref.path])
        folder = repository.split("/")[-1]
        download = ["hf", "download", repository, file, "--revision", str(ref.revision), "--local-dir", folder]
        return f"{shlex.join(download)} && {shlex.join(['llama-server', '--model', f'{folder}/{file}'])}"
    if ref.native_quantization is not None and ref.native_quantization not in READ:
        return None
    if ref.kind == "hub":
        return shlex.join(["vllm", "serve", ref.id, "--revision", str(ref.revision)])
    return shlex.join(["vllm", "serve", ref.path])
