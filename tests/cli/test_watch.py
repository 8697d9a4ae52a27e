"""``qharness watch`` at a terminal: it shows what a sweep saves meanwhile, until the sweep or an interrupt ends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from terminal import Terminal

from harness.core.progress import SweepProgress
from harness.errors import ExitCode
from harness.storage.place import LocalPlace
from harness.storage.progress import write_progress

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
RECORDS = {run: json.loads((run / "1" / "record.json").read_text(encoding="utf-8")) for run in EXAMPLE.glob("*/")}
RUNS = {each["spec"]["method"]["label"]: run for run, each in RECORDS.items() if each["spec"]["kind"] == "quality"}
"""The runs of the example that score a text, by method."""
OFTEN = "from harness.api import watch; watch.LOOK_EVERY_S = 0.02; from harness.cli import main; main()"
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
"""How a terminal's cursor is hidden, and shown again."""


class Sweep:
    """A sweep of the example's runs into a results folder, as who watches it sees it. It never falls silent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.note = SweepProgress("example", datetime.now(UTC).isoformat(), "", 3600.0, len(RUNS))
        self._note()

    def save(self, method: str) -> None:
        shutil.copytree(RUNS[method], self.root / "example" / RUNS[method].name)
        saved = self.note.saved + 1
        self._note(ended={"ok": saved}, saved=saved)

    def end(self) -> None:
        self._note(ending="finished")

    def _note(self, **changes: object) -> None:
        self.note = replace(self.note, noted=datetime.now(UTC).isoformat(), **changes)  # type: ignore[arg-type]
        write_progress(LocalPlace(self.root), self.note)


@pytest.fixture
def watched(tmp_path: Path) -> Callable[[], Terminal]:
    return lambda: Terminal(["watch", tmp_path], ("-c", OFTEN))


def test_each_record_is_shown_when_it_is_saved_until_the_sweep_ends(
    tmp_path: Path, watched: Callable[[], Terminal]
) -> None:
    sweep = Sweep(tmp_path)
    terminal = watched()
    terminal.wait_for(HIDDEN)
    terminal.wait_for(f"0 of {len(RUNS)} runs")
    for saved, method in enumerate(sorted(RUNS, key=lambda each: each != "none"), 1):
        sweep.save(method)
        terminal.wait_for(f"{saved} of {len(RUNS)} runs")
        terminal.wait_for(method)
    sweep.end()
    assert terminal.wait() == ExitCode.OK, terminal.text
    assert "example · finished after" in terminal.text
    assert SHOWN in terminal.text


def test_a_sweep_that_begins_later_is_waited_for(tmp_path: Path) -> None:
    """Also if not even its folder is there."""
    patient = f"from harness.api import watch; watch.FIRST_LOOKS = 10**9; {OFTEN}"
    terminal = Terminal(["watch", tmp_path / "results"], ("-c", patient))
    terminal.wait_for("no sweep runs here: waiting")
    sweep = Sweep(tmp_path / "results")
    terminal.wait_for(f"0 of {len(RUNS)} runs")
    sweep.end()
    assert terminal.wait() == ExitCode.OK, terminal.text
    assert "example · finished after" in terminal.text


def test_a_folder_that_does_not_appear_is_a_wrong_one(tmp_path: Path) -> None:
    terminal = Terminal(["watch", tmp_path / "nowhere"], ("-c", OFTEN))
    assert terminal.wait() == ExitCode.USAGE, terminal.text
    assert "no such folder" in terminal.text
    assert "Traceback" not in terminal.text


def test_an_interrupt_ends_it_and_leaves_the_terminal_as_it_was(
    tmp_path: Path, watched: Callable[[], Terminal]
) -> None:
    Sweep(tmp_path)
    terminal = watched()
    terminal.wait_for(HIDDEN)
    terminal.wait_for(f"0 of {len(RUNS)} runs")
    terminal.interrupt()
    assert terminal.wait() == ExitCode.INTERRUPTED, terminal.text
    assert SHOWN in terminal.text
    assert "Traceback" not in terminal.text
