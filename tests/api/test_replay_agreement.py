"""When a replay agrees with its bundle: figures were measured again, compared, and neither worse nor better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_specs import SCORED, changed, run_spec

from harness.analysis.regression.findings import Finding
from harness.analysis.regression.track import track
from harness.api.bundle import bundle
from harness.api.replay import Replay, replay
from harness.cli.render.replay import show
from harness.core.model import ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.workload import TaskWorkload, TextRef
from harness.errors import ExitCode, UsageError
from harness.recipe import Recipe
from harness.storage.checksums import file_sha256
from harness.storage.store import Store
from harness.tasks.trust import package

ITEMS = tuple(f"{number:02}" for number in range(40))
SCORES = tuple(3 + number % 7 / 10 for number in range(40))


def record(session: str, scores: tuple[float, ...] | None = SCORES) -> RunRecord:
    protocol = {"protocol": "gptq", "text_sha256": "1" * 64}
    nll = Measurement(
        "nll", 1, "nat/token", "lower", "paired", scores or (), protocol, item_ids=ITEMS[: len(scores or ())]
    )
    outcome = Outcome("ok", measurements=(nll,) if scores else ())
    return RunRecord(run_spec("quality"), outcome, session, 1, "2026-01-01T00:00:00+00:00", 1.0)


def replayed(*scores: tuple[float, ...] | None) -> Replay:
    base, head = (record(f"session {number}", each) for number, each in enumerate(scores))
    return Replay(track([base], [head], strict=True, replayed=True), {})


def verdict(base: RunRecord, head: RunRecord, replayed: bool = True) -> Finding:
    (found,) = (each for each in track([base], [head], replayed=replayed).findings if each.metric == "perplexity")
    return found


def shifted(by: float) -> tuple[float, ...]:
    return tuple(score + by * (1 + number % 3 / 10) for number, score in enumerate(SCORES))


def test_equal_figures_agree() -> None:
    assert replayed(SCORES, SCORES).exit_code == ExitCode.OK


@pytest.mark.parametrize("by", [0.2, -0.2])
def test_a_gated_figure_that_is_worse_or_better_does_not_agree(by: float) -> None:
    found = replayed(SCORES, shifted(by))
    assert {each.verdict for each in found.figures if each.metric == "perplexity"} == {
        "regressed" if by > 0 else "improved"
    }
    assert found.exit_code == ExitCode.GATE_FAILED


@pytest.mark.parametrize("by", [0.077, -0.077])
def test_four_windows_are_enough_to_find_a_forged_perplexity(by: float) -> None:
    """They are no sample of the text: the same windows by the same libraries on the same machine differ by rounding."""
    honest = record("theirs", SCORES[:4])
    found = verdict(record("mine", tuple(score + by for score in SCORES[:4])), honest)
    assert found.verdict == ("improved" if by > 0 else "regressed")
    assert found.change is not None
    assert found.change.value == pytest.approx(math.expm1(-by))
    assert "4 of 4 values differ, by up to 0.077 nat/token" in found.reasons[0]
    rounded = verdict(record("mine", tuple(score * (1 + 1e-5) for score in SCORES[:4])), honest)
    assert rounded.verdict == "unchanged"


def test_four_windows_remain_a_sample_where_more_than_rounding_may_differ() -> None:
    forged, honest = record("mine", tuple(score + 0.077 for score in SCORES[:4])), record("theirs", SCORES[:4])
    other_libraries = replace(honest, spec=changed(honest.spec, lock="another"))
    assert verdict(forged, other_libraries).verdict == "inconclusive"
    assert verdict(forged, honest, replayed=False).verdict == "inconclusive", "a comparison asks about other texts too"


def test_a_replay_in_which_nothing_was_compared_does_not_agree(capsys: pytest.CaptureFixture[str]) -> None:
    found = replayed(None, None)
    assert found.figures == ()
    assert found.exit_code == ExitCode.INCONCLUSIVE
    show(found, as_json=False)
    said = capsys.readouterr().out
    assert "agree" not in said
    assert "no figure was compared" in said


def test_the_runs_of_the_bundle_itself_are_no_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.api.replay.run_part", lambda *given, **named: pytest.fail("it was run"))
    Store(tmp_path / "results").save(record("mine"))
    path = bundle(tmp_path / "results", tmp_path / "mine.qh.zip").path
    with pytest.raises(UsageError, match="runs of the bundle itself"):
        replay(path, tmp_path / "results")
    Store(tmp_path / "others").save(replace(record("theirs"), started_at="2026-01-02T00:00:00+00:00"))
    assert replay(path, tmp_path / "others").regression is None, "the model is not here"


@pytest.fixture
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("harness.tasks.trust.find_spec", lambda name: None)
    package.cache_clear()
    yield
    package.cache_clear()


@pytest.mark.usefixtures("without_lm_eval")
def test_tasks_are_left_out_where_lm_eval_is_not_installed_and_the_rest_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The definition of one of them is here: that it cannot be read is no reason to name it."""
    own = tmp_path / "mine.yaml"
    own.write_text("task: mine\n")
    drawn: dict[str, Any] = {"samples": 2, "temperature": 0.6}
    tasks = [TaskWorkload("mine", str(own), own=file_sha256(own), **drawn), TaskWorkload("gsm8k", "/theirs", **drawn)]
    model = ModelRef("org/model", "model", "org/model@main", "hub", "org/model")
    hub = replace(SCORED, text=TextRef("org/text", hub="org/text", split="test", revision="0" * 40))
    answered = [run_spec("task", model=model, task=each) for each in tasks]
    for spec in (run_spec("quality", model=model, perplexity=hub), *answered):
        Store(tmp_path / "results").save(replace(record("mine"), spec=spec))
    asked: list[Recipe] = []
    monkeypatch.setattr("harness.api.replay.run_part", lambda recipe, *rest: asked.append(recipe) or [])
    found = replay(bundle(tmp_path / "results", tmp_path / "mine.qh.zip").path, tmp_path / "replays", [own])
    assert {name for name in ("mine", "gsm8k") for title in found.left_out if name in title} == {"mine", "gsm8k"}
    assert set(found.left_out.values()) == {"lm-eval is not installed; pip install 'qharness[eval]'"}
    (recipe,) = asked
    assert not recipe.measure.tasks
    assert recipe.measure.perplexity[0].text.hub == "org/text"
