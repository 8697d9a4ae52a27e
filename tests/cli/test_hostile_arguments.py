"""Whatever a path or a name on the command line is, a wrong one ends as one message and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from thorough import all_thorough_but

from harness.cli.app import main

MODEL = str(Path(__file__).parents[1] / "data" / "tiny-llama")
VALUES = {
    "folder": "folder",
    "pipe": "pipe",
    "device": "/dev/zero",
    "loop": "loop",
    "empty": "",
    "long-name": "x" * 300,
    "long-path": "x/" * 2500,
    "no-text": os.fsdecode(b"\xff\xfe"),
    "escape": "\x1b[31mred",
    "markup": "[bold]x[/bold]\ny",
}
COMMANDS = (
    *("plan %", "run %", "plan text --python autoawq=%", "report %", "report folder --format %", "compare % %"),
    *("compare folder folder --gate perplexity=%", "history %", "recommend %", "recommend folder --max-memory %"),
    *("export mlflow % --tracking-uri uri", "baseline set b %", "baseline remove %", "estimate %"),
    *("estimate MODEL --method %", "estimate MODEL --gpu %", "estimate MODEL --dtype %", "stack create %"),
    *("stack check %", "stack remove %", "list %", "formats --tensor % x"),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    Path("text").write_text("name: [")


@pytest.mark.parametrize(
    "command", all_thorough_but(("run %", "report %", "compare % %", "formats --tensor % x"), COMMANDS)
)
def test_a_wrong_argument_is_one_message_and_exit_code_2(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in VALUES.items():
        words = [word.replace("MODEL", MODEL).replace("%", value) for word in command.split()]
        monkeypatch.setattr(sys, "argv", ["qharness", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        message = capsys.readouterr().err
        assert (name, ended.value.code) == (name, 2), message[-2000:]
        assert "Traceback" not in message
        assert message.replace("\n", "").isprintable(), name
