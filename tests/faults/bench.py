"""A bench: one recipe with results, cache, model, text and temporary folder of its own, commands that run on it, and
what they leave behind.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout
from warm_commands import Command, Commands

from harness.analysis.selection import current
from harness.core.label import Fact, Label
from harness.core.record import Measurement, RunRecord, Status
from harness.host.process import is_running
from harness.storage.store import Store

NAME = "sweep"
SMALL: dict[str, Any] = {"methods": ["unruly"]}
"""Three runs: one measures the baseline, one quantizes, one measures what that made."""
WHOLE: dict[str, Any] = {"methods": ["none", "unruly", "fp8"], "divergence": True}
"""Five runs: a reference, three qualities, and one that quantizes."""
PATIENCE_S = 600.0
"""How long a command may take that takes about a second where nothing else runs."""
END_S = 300.0
"""How long processes may take to end after what they depend on has ended; it is at once where nothing else runs."""
POLL_S = 0.002
KERNELS = "qharness-kernels-"
"""The user's folder for kernels that torch compiles, which stays."""

Figures = Mapping[str, tuple[Status, tuple[Measurement, ...], tuple[Label, ...], tuple[Fact, ...]]]
"""All that a sweep found, by run_id: whatever differs between two sweeps that are undisturbed is left out."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and all that it printed."""

    code: int
    output: str

    @property
    def made(self) -> tuple[str, ...]:
        """The runs that it executed, in order, each as kind and method."""
        events = [json.loads(line) for line in self.output.splitlines() if line.startswith('{"event"')]
        ended = [each for each in events if each["event"] == "ended" and not each["reused"]]
        return tuple(_name(each) for each in ended)


class Running:
    """A ``qharness run`` that has been started."""

    def __init__(self, command: Command, output: Path) -> None:
        self._command = command
        self._output = output
        self.process = psutil.Process(command.pid)

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def until(self, phase: str) -> Running:
        """Returns when the command has entered a phase; raises AssertionError if it ends without it."""
        return self._until(lambda: f'"name": "{phase}"' in self.output, f"never entered {phase!r}")

    def workers(self) -> list[psutil.Process]:
        """The guard and the worker of the run of this moment, if one executes."""
        try:
            found: list[psutil.Process] = self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the command has ended."""
        with suppress(psutil.NoSuchProcess):
            self.process.send_signal(number)

    def is_running(self) -> bool:
        return is_running(self.process)

    def wait(self) -> Ended:
        """Waits for its end; raises AssertionError if it does not end."""
        self._until(lambda: not self.is_running(), "does not end", may_end=True)
        return Ended(self._command.wait(), self.output)

    def _until(self, what: Callable[[], bool], otherwise: str, may_end: bool = False) -> Running:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            late = time.monotonic() > deadline
            if late or not (may_end or self.is_running()):
                self.process.kill()
                raise AssertionError(f"the command {otherwise}:\n{self.output}")
            time.sleep(POLL_S)
        return self


class Bench:
    """Where commands run. ``content`` is SMALL or WHOLE, with changes to the recipe."""

    def __init__(self, folder: Path, commands: Commands, model: Path, content: Mapping[str, Any]) -> None:
        self.folder, self.commands = folder, commands
        self.results, self.cache, self.temporary = (folder / name for name in ("results", "cache", "temporary"))
        for each in (self.results, self.cache, self.temporary):
            each.mkdir(parents=True)
        self.model = shutil.copytree(model, folder / "model")
        self.text = folder / "text.txt"
        words = ("wide", "cold", "old", "low", "deep", "slow")
        self.text.write_text("".join(f"The river was {word} that day.\n" for word in words * 20), encoding="utf-8")
        self.go, self.clock = folder / "go", folder / "clock"
        self._content = content
        self._count = 0
        self._mounts: list[Path] = []

    def recipe(self, **changes: object) -> Path:
        """A recipe's file; what limits a run changes none of its ids."""
        content = {**self._content, **changes}
        divergence = {"divergence": {}} if content.pop("divergence", False) else {}
        path = self.folder / f"recipe-{len(list(self.folder.glob('recipe-*')))}.yaml"
        whole = {
            "name": NAME,
            "models": [{"id": str(self.model), "dtype": "float32", "label": "tiny"}],
            "measure": {"perplexity": {"text": str(self.text), "context": 64, "windows": 2}, **divergence},
            "device": "cpu",
            **content,
        }
        path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
        return path

    def start(
        self,
        *options: object,
        fault: str | None = None,
        variables: Mapping[str, str] | None = None,
        results: Path | None = None,
        cold: bool = False,
        cgroup: Path | None = None,
        **changes: object,
    ) -> Running:
        """Starts ``qharness run``. ``fault`` is what the plugin does wrong (tests/faults/plugin/unruly.py)."""
        self._count += 1
        output = self.folder / f"output-{self._count}.txt"
        own = {
            "TMPDIR": str(self.temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "kernels"),
            "QHARNESS_FAULT_GO": str(self.go),
            "QHARNESS_CLOCK": str(self.clock),
            **({"QHARNESS_FAULT": fault} if fault else {}),
            **(variables or {}),
        }
        arguments = ["run", self.recipe(**changes), "--results", results or self.results, "--cache", self.cache]
        with output.open("wb") as file:
            command = self.commands.start([*arguments, "--json", *options], file, own, cold, cgroup)
        return Running(command, output)

    def run(self, *options: object, **how: Any) -> Ended:
        """``qharness run``, to its end."""
        return self.start(*options, **how).wait()

    def records(self, results: Path | None = None) -> tuple[RunRecord, ...]:
        """All attempts."""
        return Store(results or self.results).read().records

    def counting(self) -> dict[str, RunRecord]:
        """By kind and method of a run, the attempt that counts."""
        return {_name(record.spec.names()): record for record in current(self.records())}

    def statuses(self) -> dict[str, Status]:
        """By kind and method of a run, how the attempt that counts ended."""
        return {name: record.status for name, record in self.counting().items()}

    def figures(self, results: Path | None = None) -> Figures:
        """What counts of the results."""
        found = {}
        for record in current(self.records(results)):
            outcome = record.outcome
            found[record.spec.run_id] = (outcome.status, outcome.measurements, outcome.labels, outcome.facts)
        return found

    def check(self, undisturbed: Figures, again: Collection[str] = ()) -> None:
        """Raises AssertionError unless the results are whole, equal to an undisturbed sweep's, and nothing is left.

        Every run must have succeeded once, those in ``again`` twice.
        """
        assert self.figures() == undisturbed
        succeeded = Counter(_name(record.spec.names()) for record in self.records() if record.status == "ok")
        once = Counter(_name(record.spec.names()) for record in current(self.records()))
        assert succeeded == once + Counter(again), "a run is recorded twice"
        for record in self.records():
            assert all(0 <= each <= PATIENCE_S for each in (record.wall_s, *(p.wall_s for p in record.outcome.phases)))
        left = self.debris()
        assert left == [], left

    def debris(self) -> list[str]:
        """What commands left behind: processes, temporary files, unfinished folders, locks."""
        found = [f"process {each.pid}: {each.cmdline()}" for each in self.processes()]
        found += [str(each) for each in self.temporary.iterdir() if not each.name.startswith(KERNELS)]
        found += [str(each) for root in (self.results, self.cache) for each in root.rglob("*.part")]
        for lock in self.results.rglob(".lock"):
            try:
                FileLock(lock).acquire(timeout=0).lock.release()
            except Timeout:
                found.append(f"{lock}: held")
        return found

    def processes(self) -> list[psutil.Process]:
        """The processes that are left after some time to end: commands, workers, and whatever these started."""
        return processes_below(self.commands.pid)

    def mount(self, folder: Path, size_bytes: int) -> None:
        """Makes a folder a small disk of its own. Raises OSError where mounting is not allowed."""
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise OSError(ended.stderr)
        self._mounts.append(folder)

    def close(self) -> None:
        """Ends what is left, so that the next test finds nothing of this one."""
        for process in processes_below(self.commands.pid, patience_s=0.0):
            process.kill()
        for folder in self._mounts:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _name(names: Mapping[str, Any]) -> str:
    """What a run does, and to which method."""
    return f"{names['kind']} {names['method']}"


def processes_below(pid: int, patience_s: float = END_S) -> list[psutil.Process]:
    """The descendants of a process that are still there after some time to end."""
    deadline = time.monotonic() + patience_s
    while True:
        found = [each for each in psutil.Process(pid).children(recursive=True) if is_running(each)]
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(POLL_S)
