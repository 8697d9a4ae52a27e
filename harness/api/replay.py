"""``harness.replay``: runs again what a bundle measured, and says which of its figures agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.analysis.regression.cases import Case, cases
from harness.analysis.regression.endings import title
from harness.analysis.regression.findings import RUNS, Finding, Regression
from harness.analysis.regression.track import track
from harness.api.locations import open_results
from harness.api.run import RunSettings, run_part
from harness.api.verify_bundle import refuse_unverified
from harness.api.workplace import Workplace
from harness.core.foreign import locate, shown
from harness.core.model import ModelRef
from harness.core.owner import temporary_folder
from harness.core.record import RunRecord
from harness.core.run import RunSpec
from harness.core.workload import TaskWorkload, TextRef
from harness.errors import ExitCode, ResultsError, SourceError, UsageError
from harness.execution.events import Event
from harness.models.sources import inspect
from harness.planning.plan import PlannedRun
from harness.planning.recipe_of import Located, recipe_of
from harness.recipe import Model, Recipe
from harness.storage.anonymizer import Anonymizer
from harness.storage.bundle import RESULTS, open_bundle
from harness.storage.checksums import file_sha256
from harness.storage.reading import all_records, read_results
from harness.tasks.trust import definition, package
from harness.text.sources import DATA


@dataclass(frozen=True)
class Replay:
    """``regression`` compares the bundle with its replay; None if nothing of it could be run here.

    ``left_out`` says why, for each case that was not run again: its figures are incomparable.
    """

    regression: Regression | None
    left_out: Mapping[str, str]

    @property
    def exit_code(self) -> ExitCode:
        """As that of a comparison, but a gated figure that is better than the bundle's does not agree with it either.

        What was not run again, or not compared, is not known to agree.
        """
        if self.regression is None:
            return ExitCode.INCONCLUSIVE
        if any(found.gated and found.verdict == "improved" for found in self.figures):
            return ExitCode.GATE_FAILED
        agrees = not self.left_out and any(found.verdict == "unchanged" for found in self.figures)
        code = self.regression.exit_code
        return code if code != ExitCode.OK or agrees else ExitCode.INCONCLUSIVE

    @property
    def figures(self) -> tuple[Finding, ...]:
        """The findings about figures; the others say how runs ended."""
        found = self.regression.findings if self.regression else ()
        return tuple(each for each in found if each.metric != RUNS)


@dataclass(frozen=True)
class _Here:
    """Where on this machine things are that have a content; ``given`` are paths that the user named."""

    given: Sequence[Path]
    _found: dict[str, str | None] = field(default_factory=dict)

    def place(self, located: Located) -> str | None:
        """The path of a model, a text or a task's definition, a model's id on a hub, or a built-in text's name.

        None if it is not here.
        """
        key = _content(located)
        if key not in self._found:
            self._found[key] = self._find(located)
        return self._found[key]

    def _find(self, located: Located) -> str | None:
        if isinstance(located, ModelRef):
            return self._model(located)
        return self._text(located) if isinstance(located, TextRef) else self._task(located)

    def _model(self, model: ModelRef) -> str | None:
        if model.on_hub or model.kind == "synthetic":
            return model.id
        for name in (model.id, model.path, *map(str, self.given)):
            with suppress(SourceError, UsageError, OSError):
                where = name if name.startswith("package:") else str(locate(name, Path.cwd(), UsageError))
                if inspect(Model(id=where), Path.cwd()).ref.content == model.content:
                    return where
        return None

    def _text(self, text: TextRef) -> str | None:
        built_in = DATA / f"{text.id}.txt"
        for written in (str(built_in), *([text.path] if text.path else []), *map(str, self.given)):
            with suppress(SourceError, UsageError, OSError):
                path = locate(written, Path.cwd(), UsageError)
                if path.is_file() and file_sha256(path) == text.sha256:
                    return text.id if written == str(built_in) else str(path)
        return None

    def _task(self, task: TaskWorkload) -> str | None:
        for written in (task.definition, *map(str, self.given)):
            with suppress(UsageError, OSError):
                path = locate(written, Path.cwd(), UsageError)
                if path.is_file() and definition(path).hash_content() == task.own:
                    return str(path)
        return None

    def missing(self, spec: RunSpec) -> str | None:
        """What a run reads that is not here; None if all is."""
        for model in spec.job.models:
            if self.place(model) is None:
                return f"the model {model.label} ({model.content[:12]}) is not here; name its folder: --from PATH"
        for text in spec.job.texts:
            if text.hub is None and self.place(text) is None:
                return f"the text {text.id} ({(text.sha256 or '')[:12]}) is not here; name its file: --from PATH"
        if spec.job.tasks and (why := _without_lm_eval()) is not None:
            return why
        for task in spec.job.tasks:
            if task.own is not None and self.place(task) is None:
                return f"the task {task.name} ({task.own[:12]}) is not here; name its file: --from PATH"
        return None


def _without_lm_eval() -> str | None:
    """Why no task can be asked here, and no definition read; None if lm-eval is installed."""
    try:
        package()
    except UsageError as error:
        return str(error)
    return None


def _content(located: Located) -> str:
    if isinstance(located, ModelRef):
        return located.content
    return located.sha256 or located.id if isinstance(located, TextRef) else located.own or located.name


def replay(
    bundle: str | Path,
    results: str | Path = "replays",
    sources: Iterable[str | Path] = (),
    cache: str | Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    *,
    strict: bool = False,
    create_stacks: Callable[[str], None] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Replay:
    """Runs what a bundle measured on this machine, as far as it can, and compares: BASE is the bundle.

    Each question that was answered is asked again, as often as it was, by the recipe that follows from its records.
    Models, texts and definitions of tasks are those with the same content, wherever they are: where the bundle's recipe
    had them, on a hub, or at one of the paths ``sources``. The records are kept in the folder ``results``; a repeated
    call resumes. ``strict`` gates every metric. Runs nothing, and raises ResultsError for a bundle that is not as it
    was written, and UsageError for ``results`` that hold the bundle's own runs, which would not be made again.
    """
    path = Path(bundle)
    refuse_unverified(path)
    with temporary_folder() as folder, open_bundle(path) as opened:
        opened.unpack(RESULTS, folder)
        base = all_records(read_results(folder))
        asked = {case_id: case for case_id, case in cases(base).items() if case.measured}
        if not asked:
            raise ResultsError(
                f"{shown(path)}: no run that measures a variant gave figures, so there is nothing to replay"
            )
        recipes = sorted({case.spec.recipe for case in asked.values()})
        _refuse_own_runs(results, recipes, base)
        settings = RunSettings(Workplace(results, cache, pythons), create_stacks=create_stacks, on_event=on_event)
        here = _Here([Path(each).expanduser() for each in sources])
        reasons: dict[str, str] = {}
        head: list[RunRecord] = []
        for name in recipes:
            part = {case_id: case for case_id, case in asked.items() if case.spec.recipe == name}
            reasons |= {case_id: why for case_id, case in part.items() if (why := here.missing(case.spec))}
            part = {case_id: case for case_id, case in part.items() if case_id not in reasons}
            if not part:
                continue
            chosen = _AskedPart(part)
            try:
                recipe = Recipe.model_validate_json(json.dumps(recipe_of(_specs(part, base), here.place)))
                leak = any(getattr(case.spec.job, "allow_leak", False) for case in part.values())
                head += run_part(recipe, replace(settings, allow_leak=leak), chosen.of)
                reasons |= chosen.reasons
            except UsageError as error:
                reasons |= dict.fromkeys(part, str(error))
        compared = [record for record in base if record.spec.case_id not in reasons]
        anonymizer = Anonymizer.for_terminals()
        names = (anonymizer.path(str(path)), anonymizer.path(str(results)))
        regression = None
        if head and compared:
            regression = track(compared, head, names=names, strict=strict, replayed=True)
    return Replay(regression, {title(asked[case_id]): why for case_id, why in reasons.items()})


def _refuse_own_runs(results: str | Path, recipes: Sequence[str], base: Sequence[RunRecord]) -> None:
    store, own = open_results(results), {record.key for record in base}
    for name in recipes:
        if any(record.key in own for record in store.read(name).records):
            raise UsageError(
                f"{shown(str(results))}: holds runs of the bundle itself, which would not be made again; name another "
                "folder with --results"
            )


@dataclass(frozen=True)
class _AskedPart:
    """The part of a plan that asks what these cases asked, and what it needs.

    ``reasons`` are why cases of the last plan cannot be asked.
    """

    asked: Mapping[str, Case]
    reasons: dict[str, str] = field(default_factory=dict)

    def of(self, planned: Sequence[PlannedRun]) -> list[PlannedRun]:
        self.reasons.clear()
        repetitions = {case_id: {run.spec.repetition for run in case.measured} for case_id, case in self.asked.items()}
        mine = [run for run in planned if run.spec.repetition in repetitions.get(run.spec.case_id, ())]
        answered = {run.spec.case_id for run in mine}
        self.reasons.update(
            dict.fromkeys(self.asked.keys() - answered, "the recipe's other runs are asked in another way")
        )
        self.reasons.update({run.spec.case_id: run.unsupported for run in mine if run.unsupported})
        kept = {run.spec.run_id for run in mine if not run.unsupported}
        needed = set(kept)
        for run in reversed(planned):
            if run.spec.run_id in needed:
                needed |= set(run.spec.needs.values())
        timed = any(run.spec.throughput for run in mine if run.spec.run_id in kept)
        return [run for run in planned if run.spec.run_id in needed or (timed and run.spec.kind == "machine")]


def _specs(asked: Mapping[str, Case], records: Sequence[RunRecord]) -> list[RunSpec]:
    """The runs of these cases and those that they need, whose settings a recipe also gives; oldest first."""
    specs = {record.spec.run_id: record.spec for record in records}
    own = [run.spec for case in asked.values() for run in case.measured]
    needed = {run_id for spec in own for run_id in spec.needs.values()}
    return [*(spec for run_id, spec in specs.items() if run_id in needed), *own]
