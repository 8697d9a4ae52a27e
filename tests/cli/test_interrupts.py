"""An interrupt ends the command with exit code 130 and without a traceback, whatever it is just doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from thorough import all_thorough_but

AT_IMPORT = """
import os, sys
left = [{times}]
def send(event, arguments):
    if event == "import" and arguments[0] == {module!r} and left[0]:
        for _ in range(left.pop(0)):
            os.kill(os.getpid(), {number})
        left.append(0)
sys.addaudithook(send)
from harness.cli import main
sys.argv = {arguments!r}
main()
"""
AT_EXIT = """
import atexit, os, signal, sys
from harness.cli import main
sys.argv = ["qharness", "--version"]
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGINT, signal.SIGTERM)])
main()
"""


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize(
    ("module", "number", "times"),
    all_thorough_but(
        [("typer", signal.SIGINT, 2), ("harness.recipe.fields", signal.SIGTERM, 1)],
        [
            ("typer", signal.SIGINT, 2),
            ("typer", signal.SIGHUP, 1),
            ("harness.cli.commands.report", signal.SIGTERM, 1),
            ("harness.api.run", signal.SIGINT, 1),
            ("harness.recipe.fields", signal.SIGINT, 2),
            ("harness.recipe.fields", signal.SIGTERM, 1),
        ],
    ),
)
def test_an_interrupt_during_imports_and_start(tmp_path: Path, module: str, number: int, times: int) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    arguments = ["qharness", "run", str(tmp_path / "recipe.yaml"), "--results", str(tmp_path / "results")]
    code = AT_IMPORT.format(times=times, module=module, number=int(number), arguments=arguments)
    ended = run(code)
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "results").exists()


def test_an_interrupt_after_the_work_is_done_changes_nothing() -> None:
    ended = run(AT_EXIT)
    assert ended.returncode == 0
    assert ended.stderr == ""


def test_what_the_command_was_started_to_ignore_stays_ignored() -> None:
    """As by ``nohup``."""
    code = AT_IMPORT.format(times=1, module="typer", number=int(signal.SIGHUP), arguments=["qharness", "--version"])
    ended = run(code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert ended.returncode == 0
    assert ended.stdout.startswith("qharness ")
