"""A bundle is run again on this machine, and its figures agree; what cannot be run again is named with the reason.

Speeds and peaks of one process are in it too: whatever they are, one process on each side cannot decide.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from own_tasks import choosing
from run_specs import changed
from typer.testing import CliRunner

import harness
from harness.analysis.regression.findings import RUNS, Finding, Verdict
from harness.api.bundle import bundle
from harness.api.replay import Replay, replay
from harness.api.verify import verify
from harness.cli.app import app
from harness.cli.render.replay import show
from harness.core.record import RunRecord
from harness.errors import ExitCode, ResultsError
from harness.storage.bundle import MANIFEST, write_bundle
from harness.storage.reading import read_records
from harness.storage.store import Store

pytestmark = [pytest.mark.heavy(minutes=0.6), pytest.mark.thorough]

MEASURED = {"perplexity", "kl", "accuracy", "prefill", "decode", "peak_memory", "stored_bytes"}
"""Figures that the sweep measures, by the names of their gates, among others."""
OF_PROCESSES = {"prefill", "decode", "peak_memory"}


@dataclass(frozen=True)
class Made:
    """The bundle of a small sweep, its model's folder and its task's file, the sweep's own folders being gone; and one
    place for all replays, so that what one has measured again the next need not."""

    bundle: Path
    model: Path
    task: Path
    replays: Path
    cache: Path

    def replayed(self, bundle: Path | None = None) -> Replay:
        return replay(bundle or self.bundle, self.replays, [self.model, self.task], self.cache)

    @property
    def options(self) -> list[str]:
        """Those of the command."""
        named = (("--results", self.replays), ("--cache", self.cache), ("--from", self.model), ("--from", self.task))
        return [str(word) for option in named for word in option]

    def records(self) -> Sequence[RunRecord]:
        folder = self.bundle.parent / "unpacked"
        with zipfile.ZipFile(self.bundle) as archive:
            archive.extractall(folder)
        return read_records(folder / "results")


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory, sweep_type: Any) -> Made:
    root = tmp_path_factory.mktemp("made")
    model = root / "mine" / "model"
    shutil.copytree(tiny, model)
    task = choosing(root / "mine", "sentences")
    timed = {"prompt_tokens": [8], "new_tokens": 4, "warmup": 1, "iterations": 1}
    recipe = sweep_type(root).recipe(
        {
            "models": [{"id": str(model), "label": "tiny", "dtype": "float32"}],
            "methods": ["none", {"rtn": {"bits": 4, "group_size": 32}}],
            "measure": {
                "perplexity": {"context": 64, "windows": 16},
                "divergence": {},
                "memory": {},
                "throughput": timed,
                "tasks": [{"name": str(task)}],
            },
            "gates": {"perplexity": "0.5%", "kl": 0.001, "accuracy": "1%"},
            "device": "cpu",
        }
    )
    records = harness.run(recipe, results=root / "out", cache=root / "cache")
    assert {record.status for record in records} == {"ok"}
    path = bundle(root / "out", root / "sweep.qh.zip").path
    shutil.rmtree(root / "out")
    return Made(path, model, task, root / "replays", root / "cache of replays")


def rebundled(records: Iterable[RunRecord], folder: Path) -> Path:
    """A bundle of records that were changed, sealed again."""
    for record in records:
        Store(folder / "results").save(record)
    path = bundle(folder / "results", folder / "changed.qh.zip").path
    assert {each.state for each in verify(path)} == {"ok"}
    return path


def named(found: Replay, *verdicts: Verdict) -> dict[str, list[Finding]]:
    """The figures by the name of their gate; of these verdicts."""
    names: dict[str, list[Finding]] = {}
    for each in found.figures:
        if not verdicts or each.verdict in verdicts:
            names.setdefault(each.metric, []).append(each)
    return names


def test_all_figures_of_a_replay_agree_or_are_undecided(made: Made) -> None:
    assert {each.state for each in verify(made.bundle)} == {"ok"}
    found = made.replayed()
    assert found.left_out == {}
    assert found.regression is not None
    assert named(found).keys() >= MEASURED
    assert named(found, "inconclusive").keys() == OF_PROCESSES, "one process each does not tell"
    assert named(found, "unchanged").keys() == named(found).keys() - OF_PROCESSES
    assert {each.verdict for each in found.regression.findings if each.metric == RUNS} <= {"unchanged"}
    assert found.exit_code == ExitCode.OK
    sessions = found.regression.base.sessions, found.regression.head.sessions
    assert set(sessions[0]).isdisjoint(sessions[1]), "it was measured again"
    ended = CliRunner().invoke(app, ["replay", str(made.bundle), *made.options])
    assert ended.exit_code == ExitCode.OK, ended.output
    agreeing, undecided = (sum(map(len, named(found, each).values())) for each in ("unchanged", "inconclusive"))
    assert f"The replay agrees as far as it can tell: {agreeing} figures agree within noise" in ended.stdout
    assert f"{undecided} figures are undecided: too few values to tell" in ended.stdout


def test_a_speed_on_other_hardware_is_incomparable_and_what_does_not_depend_on_it_agrees(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = (
        replace(each, spec=changed(each.spec, hardware="another CPU")) if each.spec.kind == "performance" else each
        for each in made.records()
    )
    path = rebundled(elsewhere, tmp_path)
    found = made.replayed(path)
    assert named(found, "incomparable").keys() == OF_PROCESSES
    incomparable = [each for own in named(found, "incomparable").values() for each in own]
    for each in incomparable:
        assert any("hardware" in why and "another CPU" in why for why in each.reasons)
    assert named(found, "unchanged").keys() == named(found).keys() - OF_PROCESSES
    show(found, as_json=False)
    assert f"{len(incomparable)} figures are incomparable" in capsys.readouterr().out.replace("\n", " ")


def test_a_model_is_known_by_its_content_and_what_is_missing_is_named(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(made.model, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    nothing = replay(made.bundle, tmp_path / "replays", [other, tmp_path / "missing"], tmp_path / "cache")
    assert nothing.regression is None
    assert nothing.exit_code == ExitCode.INCONCLUSIVE
    assert len(nothing.left_out) == 7, "a reference; quality, a task and speeds of two variants"
    assert all("the model tiny" in why and "--from" in why for why in nothing.left_out.values())
    assert not (tmp_path / "replays").exists()


def test_without_its_definition_a_task_alone_is_not_run_again(made: Made) -> None:
    other = made.task.with_name("others.yaml")
    other.write_text(made.task.read_text(encoding="utf-8").replace("cold", "warm"), encoding="utf-8")
    found = replay(made.bundle, made.replays, [made.model, other], made.cache)
    assert len(found.left_out) == 2
    assert all("the task sentences" in why and "--from" in why for why in found.left_out.values())
    assert named(found).keys() >= MEASURED - {"accuracy"}
    assert "accuracy" not in named(found)


def test_nothing_of_a_bundle_that_was_changed_is_run(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*given: object, **named: object) -> None:
        pytest.fail("it was run")

    monkeypatch.setattr("harness.api.replay.run_part", run)
    with zipfile.ZipFile(made.bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files.pop(MANIFEST))
    name = next(name for name in files if name.endswith("record.json"))
    files[name] = files[name].replace(b'"bits": 4', b'"bits": 3').replace(b'"wall_s": ', b'"wall_s": 1')
    faulty = tmp_path / "faulty.qh.zip"
    with faulty.open("w+b") as file:
        write_bundle(file, sorted(files.items()), manifest["made_by"], manifest["code"])
    with pytest.raises(ResultsError, match=name.removesuffix("/record.json")):
        replay(faulty, tmp_path / "replays")
    assert not (tmp_path / "replays").exists()


def test_a_figure_that_was_forged_does_not_agree(made: Made, tmp_path: Path) -> None:
    """Sealed again, so that only measuring can tell."""
    better: Callable[[float], float] = lambda value: value * 0.9  # noqa: E731

    def forged(record: RunRecord) -> RunRecord:
        measurements = tuple(
            replace(each, values=tuple(map(better, each.values))) if each.metric == "nll" else each
            for each in record.outcome.measurements
        )
        return replace(record, outcome=replace(record.outcome, measurements=measurements))

    found = made.replayed(rebundled(map(forged, made.records()), tmp_path))
    assert {each.verdict for each in named(found)["perplexity"]} == {"regressed"}
    assert found.exit_code == ExitCode.GATE_FAILED
