"""A bundle is run again on this machine, and its figures agree; what cannot be run again is named with the reason."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import harness
from harness.api.bundle import bundle
from harness.api.replay import replay
from harness.api.verify import verify
from harness.cli.app import app
from harness.errors import ExitCode, ResultsError
from harness.storage.bundle import MANIFEST, write_bundle

pytestmark = pytest.mark.heavy(minutes=0.5)


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory, sweep_type: Any) -> tuple[Path, Path]:
    """The bundle of a small sweep, and the model's folder; the sweep's own folders are gone."""
    root = tmp_path_factory.mktemp("made")
    model = root / "mine" / "model"
    shutil.copytree(tiny, model)
    recipe = sweep_type(root).recipe(
        {
            "models": [{"id": str(model), "label": "tiny", "dtype": "float32"}],
            "methods": ["none", "int8", {"rtn": {"bits": 4, "group_size": 32}}],
            "measure": {"perplexity": {"context": 64, "windows": 16}, "divergence": {}},
            "gates": {"perplexity": "0.5%", "kl": 0.001},
            "device": "cpu",
        }
    )
    records = harness.run(recipe, results=root / "out", cache=root / "cache")
    assert {record.status for record in records} == {"ok"}
    path = bundle(root / "out", root / "sweep.qh.zip").path
    shutil.rmtree(root / "out")
    return path, model


def test_all_figures_of_a_replay_agree(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, model = made
    assert {each.state for each in verify(path)} == {"ok"}
    found = replay(path, tmp_path / "replays", [model], tmp_path / "cache")
    assert found.left_out == {}
    assert found.regression is not None
    assert {each.metric for each in found.regression.findings} >= {"perplexity", "kl"}
    assert {each.verdict for each in found.regression.findings} == {"unchanged"}
    assert found.exit_code == ExitCode.OK
    sessions = found.regression.base.sessions, found.regression.head.sessions
    assert set(sessions[0]).isdisjoint(sessions[1]), "it was measured again"
    options = {"--results": tmp_path / "replays", "--cache": tmp_path / "cache", "--from": model}
    words = [str(word) for option in options.items() for word in option]
    ended = CliRunner().invoke(app, ["replay", str(path), *words])
    assert ended.exit_code == ExitCode.OK, ended.output
    assert f"{len(found.regression.findings)} figures agree within noise" in ended.stdout


def test_a_model_is_known_by_its_content_and_what_is_missing_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(made[1], other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    nothing = replay(made[0], tmp_path / "replays", [other, tmp_path / "missing"], tmp_path / "cache")
    assert nothing.regression is None
    assert nothing.exit_code == ExitCode.INCONCLUSIVE
    assert len(nothing.left_out) == 4
    assert all("the model tiny" in why and "--from" in why for why in nothing.left_out.values())
    assert not (tmp_path / "replays").exists()


def test_nothing_of_a_bundle_that_was_changed_is_run(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*given: object, **named: object) -> None:
        pytest.fail("it was run")

    monkeypatch.setattr("harness.api.replay.run_part", run)
    with zipfile.ZipFile(made[0]) as archive:
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


def test_a_figure_that_was_forged_does_not_agree(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Sealed again, so that only measuring can tell."""
    from dataclasses import replace

    from harness.storage.reading import read_records
    from harness.storage.store import Store

    with zipfile.ZipFile(made[0]) as archive:
        archive.extractall(tmp_path / "unpacked")
    forged = tmp_path / "forged"
    better: Callable[[float], float] = lambda value: value * 0.9  # noqa: E731
    for record in read_records(tmp_path / "unpacked" / "results"):
        measurements = tuple(
            replace(each, values=tuple(map(better, each.values))) if each.metric == "nll" else each
            for each in record.outcome.measurements
        )
        Store(forged).save(replace(record, outcome=replace(record.outcome, measurements=measurements)))
    path = bundle(forged, tmp_path / "forged.qh.zip").path
    assert {each.state for each in verify(path)} == {"ok"}
    found = replay(path, tmp_path / "replays", [made[1]], tmp_path / "cache")
    assert found.regression is not None
    verdicts = {each.verdict for each in found.regression.findings if each.metric == "perplexity"}
    assert verdicts == {"regressed"}
    assert found.exit_code == ExitCode.GATE_FAILED
