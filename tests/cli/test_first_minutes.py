"""``qharness try`` from a model's folder to a recommendation, and ``qharness init`` as it asks at a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from terminal import Terminal
from typer.testing import CliRunner, Result

from harness import load_results, recommend
from harness.cli.app import app
from harness.errors import ExitCode, UsageError
from harness.host.speeds import TYPICAL
from harness.recipe import load_recipe

pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, on a machine of known speed: how much is measured does not depend on how busy it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.execution.local.machine_speeds", lambda machine, root: TYPICAL)
    return tmp_path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def test_a_model_is_compared_reported_and_recommended_without_a_recipe(tiny: Path, place: Path) -> None:
    request = ("try", tiny, "--methods", "int8, rtn group_size=32", "--minutes", "2", "--budget", "1GiB")
    ended = command(*request)
    assert ended.exit_code == ExitCode.OK, ended.output
    assert [each.name for each in load_recipe("try-tiny-llama.yaml").methods] == ["none", "int8", "rtn"]
    frame = load_results("results/try-tiny-llama")
    assert set(frame.status) == {"ok"}
    stored = frame[frame.metric == "checkpoint_bytes"].groupby("method").value.sum()
    smallest = min((name for name in stored.index if name != "none"), key=stored.get)
    assert smallest.startswith("rtn")
    (recommended,) = recommend("results/try-tiny-llama")
    assert recommended.pick is not None
    assert recommended.pick.row.label.startswith("rtn")
    assert recommended.pick.row.label in ended.output
    assert "int8" in (place / "reports" / "try-tiny-llama" / "report.html").read_text(encoding="utf-8")
    again = command(*request)
    assert again.exit_code == ExitCode.OK, again.output
    assert "going on with it" in again.output
    assert len(load_results("results/try-tiny-llama")) == len(frame)


@pytest.mark.thorough
def test_random_weights_are_compared_by_size_and_speed_and_have_no_quality(place: Path, tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (place / "shape.json").write_text(json.dumps(config))
    refused = command("try", "synthetic:shape.json", "--for", "quality", "--budget", "1GiB", "--methods", "int8")
    assert isinstance(refused.exception, UsageError)
    assert "random weights" in str(refused.exception)
    assert "give --for size or --for speed" in str(refused.exception)
    assert not list(place.glob("*.yaml"))
    ended = command(
        "try", "synthetic:shape.json", "--for", "speed", "--budget", "1GiB", "--methods", "int8", "--minutes", 1
    )
    assert ended.exit_code == ExitCode.OK, ended.output
    frame = load_results("results/try-shape")
    assert set(frame.status) == {"ok"}
    assert "nll" not in set(frame.metric)
    assert "decode" in ended.output


def test_init_asks_and_writes_what_was_answered(tiny: Path, place: Path) -> None:
    terminal = Terminal(["init", "--methods", "int8"])
    terminal.answer("Model (a folder, a .gguf file or a hub id)", f"{tiny}\n")
    terminal.answer("What for: size, speed, quality [size]", "speed\n")
    terminal.answer("Engine: ", "\n")
    terminal.answer("Minutes [30.0]", "4\n")
    code = terminal.wait()
    assert code == ExitCode.OK, terminal.text
    written = (place / "tiny-llama.yaml").read_text()
    assert written.startswith(f"# qharness init {tiny} --methods int8 --minutes 4 --for speed\n")
    recipe = load_recipe(place / "tiny-llama.yaml")
    assert (recipe.name, [each.name for each in recipe.engines]) == ("tiny-llama", ["transformers"])
    assert "# 'qharness list methods' names the others" in written
    last = terminal.text.splitlines()[-2:]
    assert last[0] == "next: qharness run tiny-llama.yaml"
    assert last[1] == "then: qharness recommend results/tiny-llama --maximize decode"


@pytest.mark.parametrize(
    ("answers", "expected", "code"),
    [
        ([("What for", "fun\n")], "--for: expected size, speed, quality, not 'fun'", ExitCode.USAGE),
        ([("What for", "\n"), ("Engine", "steam\n"), ("Minutes", "\n")], "unknown engine", ExitCode.USAGE),
        ([("What for", "\n"), ("Engine", "\n"), ("Minutes", "soon\n")], "--minutes: expected a number", ExitCode.USAGE),
        ([("What for", "\x03")], "", ExitCode.INTERRUPTED),
        ([("What for", "\x04")], "", ExitCode.INTERRUPTED),
    ],
)
def test_a_wrong_answer_or_an_interrupt_writes_nothing(
    answers: list[tuple[str, str]], expected: str, code: int, tiny: Path, place: Path
) -> None:
    terminal = Terminal(["init", tiny])
    for question, answer in answers:
        terminal.answer(question, answer)
    assert terminal.wait() == code, terminal.text
    assert expected in terminal.text
    assert "Traceback" not in terminal.text
    assert not list(place.glob("*.yaml"))
