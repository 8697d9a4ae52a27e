"""When a replay agrees with its bundle: figures were measured again, compared, and neither worse nor better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_specs import run_spec

from harness.analysis.regression.track import track
from harness.api.bundle import bundle
from harness.api.replay import Replay, replay
from harness.cli.render.replay import show
from harness.core.record import Measurement, Outcome, RunRecord
from harness.errors import ExitCode, UsageError
from harness.storage.store import Store

ITEMS = tuple(f"{number:02}" for number in range(40))
SCORES = tuple(3 + number % 7 / 10 for number in range(40))


def record(session: str, scores: tuple[float, ...] | None = SCORES) -> RunRecord:
    protocol = {"protocol": "gptq", "text_sha256": "1" * 64}
    nll = Measurement(
        "nll", 1, "nat/token", "lower", "paired", scores or (), protocol, item_ids=ITEMS if scores else ()
    )
    outcome = Outcome("ok", measurements=(nll,) if scores else ())
    return RunRecord(run_spec("quality"), outcome, session, 1, "2026-01-01T00:00:00+00:00", 1.0)


def replayed(*scores: tuple[float, ...] | None) -> Replay:
    base, head = (record(f"session {number}", each) for number, each in enumerate(scores))
    return Replay(track([base], [head], strict=True), {})


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
